"""One image to a 4D scene and its videos: every stage of the job, resumable, in one folder."""

from .job import CameraOutputs as CameraOutputs
from .job import DepthSource as DepthSource
from .job import GenerationSettings as GenerationSettings
from .job import image_to_4d_video as image_to_4d_video
from .model_choice import ModelChoice as ModelChoice
from .model_choice import choose_models as choose_models
from .models import FileModels as FileModels
from .models import Models as Models
from .models import find_files as find_files
