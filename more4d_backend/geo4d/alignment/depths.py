"""Depth of a pixel out of all that windows say about it: points near its ray, and disparities.

Per pixel this minimises sum a |d ray - point| / u + sum b |1 / d - disparity| / v over the depth d,
where the units u (about the depth) and v (about 1 / depth) make both relative errors. They belong
to the prediction and do not change with what is solved for. (Absolute differences, or those over
the depth that is sought, get better by pushing everything away from the camera.) It is used for the
samples while cameras are sought, and for every pixel at the end.

Differences within the noise are squared and only those beyond it absolute (Huber): the depth is
then a mean of what agrees, which has less noise than a median, and Gauss-Newton is fast, because
no difference weighs many times as much as others only for being small by chance.
"""

from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

_MAX_STEP = 0.5
"""Of the logarithm of the depth."""
_TINY = 1e-20


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseWidths:
    """Where relative differences become absolute instead of squared."""

    point: float = 1e-3
    """Of the distance of points."""

    disparity: float = 1e-3
    """Of the difference of disparities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A depth to start from, and units of the differences."""

    depth: Float[Tensor, "frame pixel"]
    """Positive."""

    point_unit: Float[Tensor, "frame #slot pixel"]
    """Length that is an error of 100 %: about the depth."""

    disparity_unit: Float[Tensor, "frame #slot pixel"]
    """The same for 1 / depth."""


def huber(difference: Float[Tensor, "*axes"], width: float) -> Float[Tensor, "*axes"]:
    """Absolute value, rounded off below `width`; never below half of it."""
    inside = 0.5 * (difference.square() / width + width)
    return torch.where(difference.abs() < width, inside, difference.abs())


def robust_depth(
    points: Float[Tensor, "frame slot pixel 3"],
    point_weights: Float[Tensor, "frame slot pixel"],
    rays: Float[Tensor, "pixel 3"],
    widths: NoiseWidths,
    *,
    disparity: Float[Tensor, "frame slot pixel"] | None = None,
    disparity_weights: Float[Tensor, "frame slot pixel"] | None = None,
    start: Start | None = None,
    rounds: int = 4,
) -> Float[Tensor, "frame pixel"]:
    """Fuse points in camera coordinates, and disparities (1 / depth) if there are any.

    Without `start` it begins at the weighted median of all answers, so that no minority of wrong
    ones can draw it away. Where nothing is known the depth is 1.
    """
    length2 = rays.square().sum(-1)
    reach = reach_along(points, rays)
    along = reach * length2
    # Squared distance of each point from the ray: what no depth can take away.
    off2 = (points.square().sum(-1) - along.square() / length2).clamp_min(0)
    if start is None:
        depth = median_depth(reach, point_weights, disparity, disparity_weights)
        start = Start(depth=depth, point_unit=depth[:, None], disparity_unit=1 / depth[:, None])
    depth, unit, disparity_unit = start.depth, start.point_unit, start.disparity_unit
    for _ in range(rounds):
        ahead = depth[:, None]
        gap = ahead - reach
        distance = (off2 + length2 * gap.square()).sqrt()
        weight = point_weights / (torch.maximum(distance, widths.point * unit) * unit) * length2
        # In log depth, Gauss-Newton: the derivative of a point's distance along the ray is d |ray|.
        slope = (weight * gap).sum(1) * depth
        curvature = weight.sum(1) * depth.square()
        if disparity is not None and disparity_weights is not None:
            error = 1 / ahead - disparity
            bounded = torch.maximum(error.abs(), widths.disparity * disparity_unit)
            weight = disparity_weights / (bounded * disparity_unit)
            slope -= (weight * error).sum(1) / depth
            curvature += weight.sum(1) / depth.square()
        step = (slope / curvature.clamp_min(_TINY)).clamp(-_MAX_STEP, _MAX_STEP)
        depth = depth * torch.exp(-step)
    return depth


def reach_along(
    points: Float[Tensor, "frame slot pixel 3"], rays: Float[Tensor, "pixel 3"]
) -> Float[Tensor, "frame slot pixel"]:
    """Depth at which each pixel's ray comes nearest to the point."""
    return einsum(points, rays, "f s p i, p i -> f s p") / rays.square().sum(-1)


def median_depth(
    reach: Float[Tensor, "frame slot pixel"],
    point_weights: Float[Tensor, "frame slot pixel"],
    disparity: Float[Tensor, "frame slot pixel"] | None = None,
    disparity_weights: Float[Tensor, "frame slot pixel"] | None = None,
) -> Float[Tensor, "frame pixel"]:
    """Weighted median of the positive depths that points and disparities give; 1 without any."""
    values, weights = reach, point_weights
    if disparity is not None and disparity_weights is not None:
        values = torch.cat([values, 1 / disparity.clamp_min(1e-6)], dim=1)
        weights = torch.cat([weights, disparity_weights * (disparity > 0)], dim=1)
    weights = weights * (values > 0)
    ordered, order = values.sort(dim=1)
    cumulative = weights.gather(1, order).cumsum(1)
    middle = (cumulative < cumulative[:, -1:] / 2).sum(1, keepdim=True)
    median = ordered.gather(1, middle.clamp_max(values.shape[1] - 1))[:, 0]
    return median.where(cumulative[:, -1] > 0, 1.0)
