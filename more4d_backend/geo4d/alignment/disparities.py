"""Scale and shift of each window's disparity, in closed form and robustly."""

import torch
from jaxtyping import Float
from torch import Tensor

_ROUNDS = 12
_TINY = 1e-12


def fit_lines(
    predicted: Float[Tensor, "window sample"],
    known: Float[Tensor, "window sample"],
    weights: Float[Tensor, "window sample"],
) -> tuple[Float[Tensor, "window"], Float[Tensor, "window"]]:
    """Scale and shift with known = scale * predicted + shift, least absolute deviations.

    Reweighted least squares, each round in closed form, for all windows at once. The deviation is
    measured in the predicted value, which has the noise: measured in the known one, noise would
    flatten the line. Where the known values have no spread only the shift is fitted, with scale 1;
    windows without weight get scale 1 and shift 0.
    """
    robust = weights
    slope, offset = torch.ones_like(weights[:, 0]), torch.zeros_like(weights[:, 0])
    for _ in range(_ROUNDS):
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
        residual = (slope[:, None] * known + offset[:, None] - predicted).abs()
        typical = (weights * residual).sum(-1) / weights.sum(-1).clamp_min(_TINY)
        robust = weights / residual.clamp_min(0.05 * typical[:, None] + 1e-6)
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
