"""How good predicted depth is, after what cannot be known from an image is aligned.

All functions take tensors of any shape; what is passed together is aligned together, so that a
video has one scale.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..geometry import fov_from_focal
from ..scene import Cameras
from .tables import EvaluationError

Alignment = Literal[
    "none", "median", "scale", "scale-shift", "absolute-scale", "absolute-scale-shift"
]
"""`none` for metric depth; `median` and `scale`: one factor; `scale-shift`: one factor and one
offset. These two make relative errors least; with `absolute-`, errors in units of depth, as the
published tables of video depth do."""

_ROUNDS = 20
"""Of reweighting; the fit settles within ten. Errors in units of depth settle more slowly."""
_ABSOLUTE_ROUNDS = 60
_LAST_ROUNDS = 5
_ENOUGH_PIXELS = 500_000
"""Of more, a part is fitted first; all of them only in the last rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthErrors:
    """Over all valid pixels (Eigen et al. 2014, arXiv 1406.2283, section 4.2)."""

    abs_rel: float
    """Mean of |predicted - true| / true."""

    sq_rel: float
    """Mean of (predicted - true)^2 / true, in units of depth."""

    rmse: float
    """Root of the mean squared error, in units of depth."""

    within: tuple[float, float, float]
    """Share of pixels off by less than the factors 1.25, 1.25^2 and 1.25^3, either way."""

    scale: float
    """That predictions were multiplied by."""

    shift: float
    """That was added then."""


def depth_errors(
    predicted: Float[Tensor, "*axes"],
    true: Float[Tensor, "*axes"],
    valid: Bool[Tensor, "*axes"],
    alignment: Alignment = "scale",
) -> DepthErrors:
    """Compare depth (camera z) where the truth is `valid`.

    Raises:
        EvaluationError: nothing is valid, or the prediction is not finite and positive there.
    """
    ours, theirs = _valid_pairs(predicted, true, valid)
    scale, shift = align(ours, theirs, alignment)
    return errors_of_aligned(scale * ours + shift, theirs, scale=scale, shift=shift)


def errors_of_aligned(
    predicted: Float[Tensor, "pixel"],
    true: Float[Tensor, "pixel"],
    *,
    scale: float = 1.0,
    shift: float = 0.0,
) -> DepthErrors:
    """Compare depth as it is; `scale` and `shift` are only told on."""
    error = predicted - true
    # A shift can push pixels to or behind the camera; those are off by more than any factor.
    factor = torch.maximum(predicted / true, true / predicted).where(predicted > 0, math.inf)
    first, second, third = (float((factor < 1.25**n).double().mean()) for n in (1, 2, 3))
    return DepthErrors(
        abs_rel=float((error.abs() / true).mean()),
        sq_rel=float((error.square() / true).mean()),
        rmse=float(error.square().mean().sqrt()),
        within=(first, second, third),
        scale=scale,
        shift=shift,
    )


def align(
    predicted: Float[Tensor, "pixel"], true: Float[Tensor, "pixel"], alignment: Alignment
) -> tuple[float, float]:
    """Return (scale, shift) to be applied to predictions.

    `scale` and `scale-shift` minimise the mean relative error AbsRel; being absolute and not
    squared, it is little moved by wrong truth, but a prediction that is many times too far still
    weighs as many times more. `median` is the median of true / predicted, which no minority of
    pixels moves far. A scale alone is a weighted median, in closed form; with a shift it is found
    by reweighted least squares, each round in closed form.
    """
    if alignment == "none":
        return 1.0, 0.0
    if alignment == "median":
        return float((true / predicted).median()), 0.0
    if alignment == "scale":
        # sum |s p - t| / t = sum (p / t) |s - t / p|, least at the weighted median of t / p.
        return weighted_median(true / predicted, predicted / true), 0.0
    if alignment == "absolute-scale":
        # sum |s p - t| = sum p |s - t / p|
        return weighted_median(true / predicted, predicted), 0.0
    relative = alignment == "scale-shift"
    unit = true.double() if relative else torch.ones_like(true).double()
    rounds = _ROUNDS if relative else _ABSOLUTE_ROUNDS
    return _scale_and_shift(predicted.double(), true.double(), unit, rounds)


def weighted_median(values: Float[Tensor, "item"], weights: Float[Tensor, "item"]) -> float:
    """Return the value that splits the weights in halves."""
    ordered, order = values.sort()
    cumulative = weights[order].double().cumsum(0)
    return float(ordered[torch.searchsorted(cumulative, cumulative[-1] / 2)])


def _scale_and_shift(
    predicted: Float[Tensor, "pixel"],
    true: Float[Tensor, "pixel"],
    unit: Float[Tensor, "pixel"],
    rounds: int,
) -> tuple[float, float]:
    """Minimise the sum of |scale * predicted + shift - true| / unit."""
    part = slice(None, None, max(1, len(true) // _ENOUGH_PIXELS))
    weights = 1 / unit[part].square()
    found = _reweighted(predicted[part], true[part], unit[part], weights, rounds)
    if len(true) < 2 * _ENOUGH_PIXELS:
        return found
    weights = _absolute_weights(predicted, true, unit, found)
    return _reweighted(predicted, true, unit, weights, _LAST_ROUNDS)


def _reweighted(
    predicted: Float[Tensor, "pixel"],
    true: Float[Tensor, "pixel"],
    unit: Float[Tensor, "pixel"],
    weights: Float[Tensor, "pixel"],
    rounds: int,
) -> tuple[float, float]:
    scale, shift = 1.0, 0.0
    for _ in range(rounds):
        total = weights.sum()
        mean_p, mean_t = (weights * predicted).sum() / total, (weights * true).sum() / total
        spread = (weights * (predicted - mean_p).square()).sum()
        if spread <= 1e-12 * total * mean_p.square():  # one depth everywhere: only a shift is told
            return 1.0, weighted_median(true - predicted, 1 / unit)
        covariance = (weights * (predicted - mean_p) * (true - mean_t)).sum()
        scale = float(covariance / spread)
        shift = float(mean_t - scale * mean_p)
        weights = _absolute_weights(predicted, true, unit, (scale, shift))
    return scale, shift


def _absolute_weights(
    predicted: Tensor, true: Tensor, unit: Tensor, fit: tuple[float, float]
) -> Float[Tensor, "pixel"]:
    """Weights that make squares absolute: |r| / u = r^2 / (|r| u); bounded near r = 0."""
    residual = (fit[0] * predicted + fit[1] - true).abs()
    return 1 / (residual.clamp_min(1e-6 * float(true.mean())) * unit)


def constant_abs_rel(true: Float[Tensor, "*axes"], valid: Bool[Tensor, "*axes"]) -> float:
    """AbsRel of the best constant: what alignment by one scale gives a prediction of no shape.

    Raises:
        EvaluationError: nothing is valid.
    """
    return depth_errors(torch.ones_like(true), true, valid).abs_rel


def horizontal_fov_deg(cameras: Cameras) -> float:
    """Return the horizontal field of view of frame 0."""
    return math.degrees(fov_from_focal(float(cameras.intrinsics[0, 0, 0]), cameras.width))


def constant_fov_error_deg(true_fov_deg: Float[Tensor, "sample"]) -> float:
    """Median error of the best constant guess of the field of view.

    That is half the width of the narrowest interval that holds half of the samples, guessed at
    its middle. Of an even number of errors the lower one in the middle is the median.
    """
    ordered = true_fov_deg.double().sort().values
    held = (len(ordered) + 1) // 2
    widths = ordered[held - 1 :] - ordered[: len(ordered) - held + 1]
    return float(widths.min() / 2)


def _valid_pairs(predicted: Tensor, true: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    if predicted.shape != true.shape or valid.shape != true.shape:
        raise EvaluationError(
            f"Predicted depth has shape {tuple(predicted.shape)}, true depth {tuple(true.shape)} "
            f"and valid {tuple(valid.shape)}; expected one shape."
        )
    valid = valid & true.isfinite() & (true > 0)
    if not valid.any():
        raise EvaluationError("The true depth has no valid pixel.")
    ours, theirs = predicted[valid].double(), true[valid].double()
    usable = ours.isfinite() & (ours > 0)
    if not usable.all():
        raise EvaluationError(
            f"Predicted depth is not finite and positive in {int((~usable).sum())} of "
            f"{len(ours)} valid pixels."
        )
    return ours, theirs
