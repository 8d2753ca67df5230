"""Depth of a pixel out of all that windows say about it: points near its ray, and disparities.

Per pixel this minimises sum a |d ray - point| + sum b |1 / d - disparity| over the depth d. It is
used for the samples while cameras are sought, and for every pixel at the end.
"""

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

POINT_FLOOR = 1e-3
"""Distances below this share of the depth are squared, not absolute."""

_MAX_STEP = 0.5
"""Of the logarithm of the depth."""
_TINY = 1e-20


def robust_depth(
    points: Float[Tensor, "frame slot pixel 3"],
    point_weights: Float[Tensor, "frame slot pixel"],
    rays: Float[Tensor, "pixel 3"],
    *,
    disparity: Float[Tensor, "frame slot pixel"] | None = None,
    disparity_weights: Float[Tensor, "frame slot pixel"] | None = None,
    start: Float[Tensor, "frame pixel"] | None = None,
    rounds: int = 4,
) -> Float[Tensor, "frame pixel"]:
    """Fuse points in camera coordinates, and disparities (1 / depth) if there are any.

    Without `start` it begins at the weighted median of all answers, so that no minority of wrong
    ones can draw it away. Where nothing is known the depth is 1.
    """
    length2 = rays.square().sum(-1)
    along = einsum(points, rays, "f s p i, p i -> f s p")
    # Squared distance of each point from the ray: what no depth can take away.
    off2 = (points.square().sum(-1) - along.square() / length2).clamp_min(0)
    reach = along / length2
    depth = start
    if depth is None:
        depth = _median(reach, point_weights, disparity, disparity_weights)
    for _ in range(rounds):
        ahead = depth[:, None]
        gap = ahead - reach
        distance = (off2 + length2 * gap.square()).sqrt()
        weight = point_weights / torch.maximum(distance, POINT_FLOOR * ahead) * length2
        # In log depth, Gauss-Newton: the derivative of a point's distance along the ray is d |ray|.
        slope = (weight * gap).sum(1) * depth
        curvature = weight.sum(1) * depth.square()
        if disparity is not None and disparity_weights is not None:
            error = 1 / ahead - disparity
            weight = disparity_weights / error.abs().clamp_min(POINT_FLOOR / ahead)
            slope -= (weight * error).sum(1) / depth
            curvature += weight.sum(1) / depth.square()
        step = (slope / curvature.clamp_min(_TINY)).clamp(-_MAX_STEP, _MAX_STEP)
        depth = depth * torch.exp(-step)
    return depth


def _median(
    reach: Tensor, point_weights: Tensor, disparity: Tensor | None, disparity_weights: Tensor | None
) -> Float[Tensor, "frame pixel"]:
    """Weighted median of the positive depths; 1 where there is none."""
    values, weights = reach, point_weights
    if disparity is not None and disparity_weights is not None:
        values = torch.cat([values, 1 / disparity.clamp_min(1e-6)], dim=1)
        # The same error makes |d ray - point| change by d times what it does to |1 / d - disparity|
        # times d: near a depth of 1, the unit, both count alike.
        weights = torch.cat([weights, disparity_weights * (disparity > 0)], dim=1)
    weights = weights * (values > 0)
    ordered, order = values.sort(dim=1)
    cumulative = weights.gather(1, order).cumsum(1)
    middle = (cumulative < cumulative[:, -1:] / 2).sum(1, keepdim=True)
    median = ordered.gather(1, middle.clamp_max(values.shape[1] - 1))[:, 0]
    return median.where(cumulative[:, -1] > 0, 1.0)
