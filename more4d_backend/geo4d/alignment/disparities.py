"""Scale and shift of each window's disparity, in closed form and robustly."""

import torch
from jaxtyping import Float
from torch import Tensor

_ROUNDS = 12
_QUARTILES = (0.25, 0.5, 0.75)
_FAR = 5.0
"""Median deviations from the line at which a sample has lost half of its weight."""
_TINY = 1e-12


def fit_lines(
    predicted: Float[Tensor, "window sample"],
    known: Float[Tensor, "window sample"],
    weights: Float[Tensor, "window sample"],
) -> tuple[Float[Tensor, "window"], Float[Tensor, "window"]]:
    """Scale and shift with known = scale * predicted + shift, robust to errors of both.

    Reweighted least squares, each round in closed form, for all windows at once. The deviation is
    measured in the predicted value, which has the noise: measured in the known one, noise would
    flatten the line. Absolute deviations are still drawn by single known values that are far off;
    so it starts from quartiles, and what is far from the line loses its weight. Where the known
    values have no spread only the shift is fitted, with scale 1; windows without weight get scale
    1 and shift 0.
    """
    known_low, known_middle, known_high = (_quantile(known, weights, q) for q in _QUARTILES)
    low, middle, high = (_quantile(predicted, weights, q) for q in _QUARTILES)
    slope = (high - low) / (known_high - known_low).clamp_min(_TINY)
    offset = middle - slope * known_middle
    for _ in range(_ROUNDS):
        residual = (slope[:, None] * known + offset[:, None] - predicted).abs()
        typical = _quantile(residual, weights, 0.5)[:, None] + 1e-6
        robust = weights / residual.clamp_min(0.1 * typical)
        robust = robust / (1 + (residual / (_FAR * typical)).square())
        total = robust.sum(-1).clamp_min(_TINY)
        mean_known = (robust * known).sum(-1) / total
        mean_predicted = (robust * predicted).sum(-1) / total
        centered = known - mean_known[:, None]
        variance = (robust * centered.square()).sum(-1)
        covariance = (robust * centered * (predicted - mean_predicted[:, None])).sum(-1)
        # predicted = slope * known + offset; a falling line would turn the scene inside out.
        flat = (variance <= 1e-8 * total * mean_known.square()) | (covariance <= 0)
        slope = torch.where(flat, 1.0, covariance / variance.clamp_min(_TINY))
        offset = mean_predicted - slope * mean_known
    empty = weights.sum(-1) <= 0
    scale = torch.where(empty, 1.0, 1 / slope)
    return scale, torch.where(empty, 0.0, -offset / slope)


def share_within(
    fitted: Float[Tensor, "window sample"],
    known: Float[Tensor, "window sample"],
    weights: Float[Tensor, "window sample"],
    factor: float = 1.25,
) -> Float[Tensor, "window"]:
    """Share of each window's usable samples off by less than the factor, either way."""
    near = (fitted < factor * known) & (known < factor * fitted)
    usable = weights > 0
    return (near & usable).sum(-1) / usable.sum(-1).clamp_min(1)


def _quantile(values: Tensor, weights: Tensor, share: float) -> Float[Tensor, "window"]:
    """Value that holds `share` of the weight below it, row by row."""
    ordered, order = values.sort(dim=-1)
    cumulative = weights.gather(-1, order).cumsum(-1)
    place = (cumulative < share * cumulative[:, -1:]).sum(-1, keepdim=True)
    return ordered.gather(-1, place.clamp_max(values.shape[-1] - 1))[:, 0]
