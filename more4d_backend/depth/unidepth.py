"""UniDepth V2 (Piccinelli et al., arXiv 2502.20110), where the user has installed it.

Its code and weights are under CC BY-NC 4.0 (no commercial use) and not on PyPI, so it is never
among our requirements. MoRe4D's training data was made with it.
"""

import os
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .hub_models import weights_folder
from .provider import DepthPrediction, DepthProviderError

INSTALL = (
    "pip install timm wandb matplotlib opencv-python-headless (the last only if you have no "
    "OpenCV), then pip install --no-deps git+https://github.com/lpiccinelli-eth/UniDepth"
)
"""Not on PyPI. Its requirements name xformers, which replaces torch, and triton, which Windows has
not by that name; these are what its model imports (8d8cfe4)."""


class UniDepth:
    """Metric depth and intrinsics of a picture."""

    name = "unidepth"
    default_source = "lpiccinelli/unidepth-v2-vitl14"

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        download: bool = False,
    ) -> "UniDepth":
        """Load from a folder or the local Hugging Face cache; download only if allowed.

        Raises:
            DepthProviderError: the package or its weights are not there.
        """
        try:
            from unidepth.models import UniDepthV2  # pyright: ignore[reportMissingImports]
        except ImportError as e:
            raise DepthProviderError(
                f"UniDepth is not installed ({e}). Its licence, CC BY-NC 4.0, forbids commercial "
                f"use, so it is not one of our requirements. If that suits you: {INSTALL}"
            ) from e
        folder = weights_folder(source or cls.default_source, download=download)
        model = UniDepthV2.from_pretrained(folder)
        model.interpolation_mode = "bilinear"
        return cls(model.to(device, dtype).eval())

    @torch.no_grad()
    def predict(self, image: Float[Tensor, "height width 3"]) -> DepthPrediction:
        """See `DepthProvider`. UniDepth wants 0 to 255, and counts pixel centres as we do."""
        rgb = (image.clamp(0, 1) * 255).round().to(torch.uint8)
        output = self.model.infer(rearrange(rgb, "h w c -> c h w"))
        return DepthPrediction(
            depth=output["depth"].reshape(image.shape[:2]).to(image),
            intrinsics=output["intrinsics"].reshape(3, 3).to(image),
            provider=self.name,
            is_metric=True,
        )
