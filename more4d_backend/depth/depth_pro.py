"""Depth Pro (Bochkovskii et al., arXiv 2410.02073) through transformers: depth and focal length.

The released weights, apple/DepthPro-hf, are under Apple's research licence (not commercial).
"""

import os
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..geometry import focal_from_fov, intrinsics_from_focal
from .hub_models import load_depth_model
from .provider import DepthPrediction, DepthProviderError

if TYPE_CHECKING:
    from transformers import DepthProForDepthEstimation

_FARTHEST_M = 1e4
"""Depth Pro predicts inverse depth; below its inverse there is only sky."""


class DepthPro:
    """Metric depth and field of view of a picture, without any knowledge of its camera."""

    name = "depth-pro"
    default_source = "apple/DepthPro-hf"

    def __init__(self, model: "DepthProForDepthEstimation") -> None:
        if not model.use_fov_model:
            raise DepthProviderError(
                "These Depth Pro weights have no field-of-view head (use_fov_model is False in "
                f"their config), so their depth has no scale. Use {self.default_source}."
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
    ) -> "DepthPro":
        """Load from a folder or the local Hugging Face cache; download only if allowed."""
        source = source or cls.default_source
        return cls(
            load_depth_model(
                "DepthProForDepthEstimation", source, device=device, dtype=dtype, download=download
            )
        )

    @torch.no_grad()
    def predict(self, image: Float[Tensor, "height width 3"]) -> DepthPrediction:
        """See `DepthProvider`. The image is squeezed into the network's square (1536 pixels).

        Raises:
            DepthProviderError: the network predicts an impossible field of view.
        """
        height, width = image.shape[:2]
        output = self.model(pixel_values=self._pixels(image))
        fov_deg = float(output.field_of_view.float())
        if not 1 < fov_deg < 179:
            raise DepthProviderError(
                f"Depth Pro predicts a field of view of {fov_deg:.4g} degrees; expected 1 to 179. "
                "Are its weights complete?"
            )
        focal_px = focal_from_fov(fov_deg * torch.pi / 180, width)
        # The network sees a camera of focal length 1 image width; its inverse depth is for that.
        inverse = output.predicted_depth.float()[None] * (width / focal_px)
        inverse = torch.nn.functional.interpolate(inverse, (height, width), mode="bilinear")[0, 0]
        depth = torch.where(inverse > 1 / _FARTHEST_M, 1 / inverse, torch.inf)
        return DepthPrediction(
            depth=depth.to(image),
            intrinsics=intrinsics_from_focal(image.new_tensor(focal_px), height, width),
            provider=self.name,
            is_metric=True,
        )

    def _pixels(self, image: Float[Tensor, "height width 3"]) -> Float[Tensor, "1 3 side side"]:
        config = self.model.config
        patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
        side = round(patch / min(config.scaled_images_ratios))
        pixels = rearrange(image.float() * 2 - 1, "h w c -> 1 c h w")
        pixels = torch.nn.functional.interpolate(pixels, (side, side), mode="bilinear")
        return pixels.to(self.model.device, self.model.dtype)
