"""Depth from a file that lies beside the picture."""

import os
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..files.depth_maps import load_depth
from .lifting import check_same_size
from .provider import DepthPrediction


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthFile:
    """A 16-bit PNG, EXR or npy file with the depth of one picture, taken to be metres."""

    path: str | os.PathLike[str]
    """Where it is."""

    unit_m: float = 0.001
    """Metres per step of a file of whole numbers."""

    intrinsics: Float[Tensor, "3 3"] | None = None
    """Of the picture, in pixels, if known."""

    def predict(self, image: Float[Tensor, "height width 3"]) -> DepthPrediction:
        """Read the file.

        Raises:
            FileFormatError: damaged, or not a depth map.
            DepthError: of another size than the image.
        """
        depth = load_depth(self.path, unit_m=self.unit_m).to(image)
        check_same_size(depth, *image.shape[:2])
        return DepthPrediction(
            depth=depth, intrinsics=self.intrinsics, provider=str(self.path), is_metric=True
        )
