"""How good a completed video is where the render was known, and where it was filled.

Axes: frame, height, width, rgb. Colours are sRGB in [0, 1].
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from ..shapes import check_shapes
from .tables import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_PSNR_DB = 100.0
"""Given to regions that are equal, whose ratio is infinite."""

_SSIM_WINDOW = 11
_MIN_LIVELINESS = 1e-4
"""True variation below this is stillness, to which nothing can be relative."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemporalStability:
    """How filled regions change from frame to frame, without any warping.

    Only pixels that are holes in both frames of a pair count.
    """

    liveliness: float | None
    """Mean |change| over the true video's mean |change|: above 1 flickers, below 1 is blurred or
    frozen. None where the true video stands still there."""

    error: float
    """Mean |change - true change|; 0 for the truth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewErrors:
    """Of one video. None where its region is empty."""

    psnr_known_db: float | None
    """PSNR outside the holes."""

    psnr_filled_db: float | None
    """PSNR inside the holes."""

    ssim_known: float | None
    """Mean of the SSIM map outside the holes."""

    ssim_filled: float | None
    """Mean of the SSIM map inside the holes; windows at their borders also see known pixels."""

    stability: TemporalStability | None
    """Of the holes."""


def view_errors(
    predicted: Float[Tensor, "frame height width 3"],
    true: Float[Tensor, "frame height width 3"],
    hole_mask: Bool[Tensor, "frame height width"],
) -> ViewErrors:
    """Compare a completed video, as the network gave it, with the true one.

    Raises:
        ShapeError: the videos or the mask differ in size.
        EvaluationError: the prediction is not finite.
    """
    check_shapes(
        true=(true, "frame height width 3"),
        predicted=(predicted, "frame height width 3"),
        hole_mask=(hole_mask, "frame height width"),
    )
    if not predicted.isfinite().all():
        raise EvaluationError("The predicted video holds NaN or infinity.")
    similarity = ssim_map(predicted, true)
    return ViewErrors(
        psnr_known_db=psnr_db(predicted, true, ~hole_mask),
        psnr_filled_db=psnr_db(predicted, true, hole_mask),
        ssim_known=_mean(similarity, ~hole_mask),
        ssim_filled=_mean(similarity, hole_mask),
        stability=temporal_stability(predicted, true, hole_mask),
    )


def psnr_db(
    predicted: Float[Tensor, "frame height width 3"],
    true: Float[Tensor, "frame height width 3"],
    region: Bool[Tensor, "frame height width"],
) -> float | None:
    """PSNR over a region of all frames together; None where it is empty."""
    if not region.any():
        return None
    error = (predicted - true)[region].double().square().mean()
    return min(MAX_PSNR_DB, float(-10 * torch.log10(error)))


def ssim_map(
    predicted: Float[Tensor, "frame height width 3"], true: Float[Tensor, "frame height width 3"]
) -> Float[Tensor, "frame height width"]:
    """SSIM (Wang et al. 2004) of windows of 11 pixels around each pixel, mean over colours.

    Raises:
        EvaluationError: the frames are smaller than a window.
    """
    ssim = _load_ssim()
    if min(true.shape[1:3]) < _SSIM_WINDOW:
        raise EvaluationError(
            f"Frames are {true.shape[1]}x{true.shape[2]}; SSIM needs {_SSIM_WINDOW} pixels a side."
        )
    pairs = zip(predicted.split(8), true.split(8), strict=True)  # bounds the memory
    maps = [
        ssim(rearrange(p, "f h w c -> f c h w"), rearrange(t, "f h w c -> f c h w"), _SSIM_WINDOW)
        for p, t in pairs
    ]
    return torch.cat(maps).mean(1)


def temporal_stability(
    predicted: Float[Tensor, "frame height width 3"],
    true: Float[Tensor, "frame height width 3"],
    region: Bool[Tensor, "frame height width"],
) -> TemporalStability | None:
    """Compare changes from frame to frame; None where no pixel is in the region twice in a row."""
    both = region[1:] & region[:-1]
    if not both.any():
        return None
    change = (predicted[1:] - predicted[:-1])[both].double()
    true_change = (true[1:] - true[:-1])[both].double()
    variation, true_variation = float(change.abs().mean()), float(true_change.abs().mean())
    return TemporalStability(
        liveliness=variation / true_variation if true_variation > _MIN_LIVELINESS else None,
        error=float((change - true_change).abs().mean()),
    )


def _mean(values: Tensor, region: Tensor) -> float | None:
    return float(values[region].double().mean()) if region.any() else None


def _load_ssim() -> "Callable[[Tensor, Tensor, int], Tensor]":
    try:
        from kornia.metrics import ssim
    except ImportError as e:
        raise ImportError("SSIM needs kornia: pip install kornia") from e
    return ssim
