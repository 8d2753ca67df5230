"""Headless PyTorch backend: 4D scenes, camera paths, rendering and the models that make them.

Knows nothing of ComfyUI, of the nodes, or of training.
"""

from .geometry import GeometryError as GeometryError
from .scene import Cameras as Cameras
from .scene import PointMaps as PointMaps
from .scene import PointTracks as PointTracks
from .scene import Scene4D as Scene4D
from .shapes import ShapeError as ShapeError
from .shapes import TensorKindError as TensorKindError
