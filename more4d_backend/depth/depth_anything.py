"""Depth Anything V2, metric (Yang et al., arXiv 2406.09414), through transformers: depth only.

Small weights are under Apache-2.0, Base and Large under CC BY-NC 4.0.
"""

import os
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .hub_models import load_depth_model
from .provider import DepthPrediction, DepthProviderError

if TYPE_CHECKING:
    from transformers import DepthAnythingForDepthEstimation

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class DepthAnything:
    """Metric depth of a picture. It knows nothing of the camera: give a field of view."""

    name = "depth-anything-v2-metric"
    default_source = "depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf"

    def __init__(self, model: "DepthAnythingForDepthEstimation") -> None:
        kind = model.config.depth_estimation_type
        if kind != "metric":
            raise DepthProviderError(
                f"These Depth Anything weights give {kind} depth, without scale; expected metric "
                f"ones, such as {self.default_source} (or Outdoor)."
            )
        self.model = model

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        download: bool = False,
    ) -> "DepthAnything":
        """Load from a folder or the local Hugging Face cache; download only if allowed."""
        source = source or cls.default_source
        return cls(
            load_depth_model(
                "DepthAnythingForDepthEstimation",
                source,
                device=device,
                dtype=dtype,
                download=download,
            )
        )

    @torch.no_grad()
    def predict(self, image: Float[Tensor, "height width 3"]) -> DepthPrediction:
        """See `DepthProvider`. The aspect ratio is kept."""
        height, width = image.shape[:2]
        depth = self.model(pixel_values=self._pixels(image)).predicted_depth.float()
        # Bilinear, because bicubic overshoots at depth edges.
        depth = torch.nn.functional.interpolate(depth[None], (height, width), mode="bilinear")
        return DepthPrediction(
            depth=depth[0, 0].to(image), intrinsics=None, provider=self.name, is_metric=True
        )

    def _pixels(self, image: Float[Tensor, "height width 3"]) -> Float[Tensor, "1 3 h w"]:
        height, width = image.shape[:2]
        config: Any = self.model.config
        patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
        side = config.backbone_config.image_size
        size = network_size(height, width, side if isinstance(side, int) else side[0], patch)
        pixels = rearrange(image.float(), "h w c -> 1 c h w")
        pixels = torch.nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True)
        mean, std = torch.tensor([_IMAGENET_MEAN, _IMAGENET_STD]).to(pixels).view(2, 1, 3, 1, 1)
        pixels = (pixels.clamp(0, 1) - mean) / std
        return pixels.to(self.model.device, self.model.dtype)


def network_size(height: int, width: int, side: int, patch: int) -> tuple[int, int]:
    """Size that an image is resized to: aspect kept, multiples of `patch`.

    Of the two scales that make one side `side` long, that which changes the image less.
    """
    scale = side / width if abs(1 - side / width) < abs(1 - side / height) else side / height
    return (
        max(1, round(scale * height / patch)) * patch,
        max(1, round(scale * width / patch)) * patch,
    )
