"""Predictions against truth: trajectories, directions, views, depth, and their tables."""

from .comparison import SceneTruth as SceneTruth
from .comparison import compare_depth as compare_depth
from .comparison import compare_point_maps as compare_point_maps
from .comparison import compare_scenes as compare_scenes
from .comparison import compare_videos as compare_videos
from .comparison import object_matches as object_matches
from .file_pairs import DepthPair as DepthPair
from .file_pairs import ScenePair as ScenePair
from .file_pairs import VideoPair as VideoPair
from .file_pairs import evaluate as evaluate
from .file_pairs import pairs_of_folders as pairs_of_folders
from .file_pairs import read_manifest as read_manifest
from .tables import Column as Column
from .tables import EvaluationError as EvaluationError
from .tables import EvaluationReport as EvaluationReport
from .tables import Ratio as Ratio
from .tables import SampleRow as SampleRow
from .tables import save_reports as save_reports
