"""The embedded depth network: no download, a CPU is enough, procedural scenes only."""

import os
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..geometry import intrinsics_from_focal
from ..strag.edge_snapping import snap_depth_to_edges
from .provider import DepthPrediction

if TYPE_CHECKING:
    from ..tiny.depth_network import DepthNetwork


class TinyDepth:
    """Depth and field of view of a picture, up to scale on anything but its training scenes."""

    name = "tiny"
    default_source = "embedded"

    def __init__(self, model: "DepthNetwork") -> None:
        """Wrap a network; it is put into evaluation mode."""
        self.model = model.eval()

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        download: bool = False,
    ) -> "TinyDepth":
        """Load the embedded file, or another of its kind. There is nothing to download.

        Raises:
            WeightsError: not a whole one, or this installation came without it.
        """
        from ..tiny import embedded_file
        from ..weights.model_loading import load_depth_network

        path = embedded_file("depth") if source in (None, cls.default_source) else source
        assert path is not None
        return cls(load_depth_network(path, dtype=dtype, device=device))

    @torch.no_grad()
    def predict(self, image: Float[Tensor, "height width 3"]) -> DepthPrediction:
        """See `DepthProvider`. The picture is seen at about the size of the training's."""
        from ..tiny.depth_network import network_size

        height, width = image.shape[:2]
        weight = self.model.depth.weight
        pixels = rearrange(image, "h w c -> 1 c h w").to(weight)
        size = network_size(height, width)
        if size != (height, width):
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        log_depth, log_focal = self.model(pixels)
        seen = rearrange(pixels, "1 c h w -> h w c").float()
        depth = snap_depth_to_edges(log_depth[0].float().exp(), seen)[None, None]
        if size != (height, width):
            # Bilinear, because bicubic overshoots at depth edges.
            depth = F.interpolate(depth, (height, width), mode="bilinear")
        focal_px = log_focal[0].float().exp() * max(height, width)
        return DepthPrediction(
            depth=depth[0, 0].to(image),
            intrinsics=intrinsics_from_focal(focal_px, height, width).to(image),
            provider=self.name,
            is_metric=False,
        )
