"""What every source of depth gives, and the rule for the camera that goes with it."""

import logging
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..geometry import focal_from_fov, intrinsics_from_focal
from ..scene import Scene4D
from ..shapes import check_shapes
from .lifting import DepthError, lift_depth, usable_depth

_log = logging.getLogger(__name__)


class DepthProviderError(ValueError):
    """A source of depth that is missing, unknown, or gave nonsense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthPrediction:
    """Depth of one image."""

    depth: Float[Tensor, "height width"]
    """Camera z, metres if `is_metric`. Without meaning where `valid` is False."""

    intrinsics: Float[Tensor, "3 3"] | None
    """Pixels of the image; None where the provider knows nothing of the camera."""

    provider: str
    """Who made it, for messages and logs."""

    is_metric: bool
    """Whether the depth is in metres rather than up to an unknown scale."""

    def __post_init__(self) -> None:
        check_shapes(depth=(self.depth, "height width"))
        if self.intrinsics is not None:
            check_shapes(intrinsics=(self.intrinsics, "3 3"))

    @property
    def valid(self) -> Bool[Tensor, "height width"]:
        """True where depth is finite and positive."""
        return usable_depth(self.depth)


@runtime_checkable
class DepthProvider(Protocol):
    """A source of depth: a file, or a network."""

    def predict(self, image: Float[Tensor, "height width 3"]) -> DepthPrediction:
        """Depth of an image (sRGB in [0, 1]), of the image's size and on its device."""
        ...


def lift_prediction(
    image: Float[Tensor, "height width 3"],
    prediction: DepthPrediction,
    *,
    fov_rad: float | None = None,
    max_depth: float | None = None,
    drop_edges: bool = False,
    fps: float = 8.0,
) -> Scene4D:
    """One image and its predicted depth to a scene of one frame; see `lift_depth`.

    The predicted intrinsics are used, unless a horizontal field of view is given.

    Raises:
        DepthError: neither intrinsics nor field of view, or no usable depth.
    """
    height, width = prediction.depth.shape
    if fov_rad is not None:
        focal_px = torch.tensor(focal_from_fov(fov_rad, width))
        intrinsics = intrinsics_from_focal(focal_px, height, width)
        if prediction.intrinsics is not None:
            _log.info("The given field of view replaces that of %s.", prediction.provider)
    elif prediction.intrinsics is not None:
        intrinsics = prediction.intrinsics
    else:
        raise DepthError(
            f"{prediction.provider} gives depth without a camera, so its points have no "
            "direction. Give the picture's horizontal field of view (about 55 degrees for a "
            "phone, 40 for a 50 mm lens) or its intrinsics."
        )
    return lift_depth(
        image, prediction.depth, intrinsics, max_depth=max_depth, drop_edges=drop_edges, fps=fps
    )
