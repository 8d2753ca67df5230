"""One image to a 4D scene and its videos: every stage of the job, resumable, in one folder."""

from .job import image_to_4d_video as image_to_4d_video
from .job import images_to_4d_videos as images_to_4d_videos
from .model_choice import ModelChoice as ModelChoice
from .model_choice import choose_models as choose_models
from .models import FileModels as FileModels
from .models import Models as Models
from .models import find_files as find_files
from .settings import CameraOutputs as CameraOutputs
from .settings import DepthSource as DepthSource
from .settings import GenerationSettings as GenerationSettings
from .settings import Item as Item
from .settings import Outcome as Outcome
