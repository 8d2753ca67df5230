"""The part of the picture that belongs to each point, and the affine map of the grid around it."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..scene import Cameras
from .surface import Joins, Surface, focal_px
from .view import PointsInView

_HALF = 0.55
"""Half of the way to a neighbour, and a little more: where depth is noisy, boxes that only meet
leave pinholes (a third as many on an indoor sensor photo seen from half of the distance). What
overlaps shows the same picture twice, because colour is read from the grid between points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprints:
    """A box around each point, in pixels from it.

    A side of half a pixel or less ends with the pixel that the point falls on.
    """

    left: Float[Tensor, "frame point"]
    """Towards smaller x."""

    right: Float[Tensor, "frame point"]
    """Towards larger x."""

    up: Float[Tensor, "frame point"]
    """Towards smaller y."""

    down: Float[Tensor, "frame point"]
    """Towards larger y."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalMap:
    """How the picture moves along the grid of points, around each point."""

    right_x: Float[Tensor, "frame point"]
    """Pixels in x for one step to the right; 0 where the point is joined to neither side."""

    right_y: Float[Tensor, "frame point"]
    """Pixels in y for one step to the right."""

    down_x: Float[Tensor, "frame point"]
    """Pixels in x for one step down."""

    down_y: Float[Tensor, "frame point"]
    """Pixels in y for one step down."""

    right: Bool[Tensor, "frame point"]
    """True where the point and its right neighbour are on one surface, and both drawn."""

    down: Bool[Tensor, "frame point"]
    """True where the point and the neighbour below are on one surface, and both drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """Steps along one direction of the grid, in pixels; 0 where the neighbour is not joined."""

    next_x: Float[Tensor, "frame point"]
    next_y: Float[Tensor, "frame point"]
    previous_x: Float[Tensor, "frame point"]
    previous_y: Float[Tensor, "frame point"]
    joined_next: Bool[Tensor, "frame point"]
    joined_previous: Bool[Tensor, "frame point"]


def grid_footprints(
    view: PointsInView, joins: Joins, grid_width: int, max_footprint_px: float
) -> tuple[Footprints, LocalMap]:
    """Footprints from the projected neighbours: the box around half of each step.

    Points at depth edges keep a single pixel; their neighbours inside the surface reach all the
    way to that pixel, so that no gap opens between. Where a neighbour is missing, the footprint
    is as wide as on the other side. A box, because noise in depth lets tight cells part and
    crack; and the steps of both directions add up, because under roll each alone is too short.
    """
    along = _steps(view, joins.right, 1)
    across = _steps(view, joins.down, grid_width)
    low_x, high_x, low_y, high_y = _extent(along, joins.edge, 1)
    extent = _extent(across, joins.edge, grid_width)
    for side, other in zip((low_x, high_x, low_y, high_y), extent, strict=True):
        side.add_(other)
    limit = max_footprint_px / 2
    footprints = Footprints(
        left=low_x.neg_().clamp_(max=limit),
        right=high_x.clamp_(max=limit),
        up=low_y.neg_().clamp_(max=limit),
        down=high_y.clamp_(max=limit),
    )
    right_x, right_y = _mean_step(along)
    down_x, down_y = _mean_step(across)
    return footprints, LocalMap(
        right_x=right_x,
        right_y=right_y,
        down_x=down_x,
        down_y=down_y,
        right=along.joined_next,
        down=across.joined_next,
    )


def round_footprints(
    view: PointsInView, surface: Surface, cameras: Cameras, max_footprint_px: float
) -> Footprints:
    """Footprints of points without a grid: their spacing, as if the surface faced the camera."""
    half = surface.spacing * (focal_px(cameras, view.depth.device) / 2) / view.depth
    half = half.masked_fill_(~view.drawn, 0.0).clamp_(0.0, max_footprint_px / 2)
    return Footprints(left=half, right=half, up=half, down=half)


def _steps(view: PointsInView, linked: Bool[Tensor, "#frame point"], offset: int) -> _Steps:
    joined = linked & view.drawn
    joined[:, :-offset] &= view.drawn[:, offset:]
    following, previous = [], []
    for values in (view.x, view.y):
        ahead = torch.zeros_like(values)
        torch.sub(values[:, offset:], values[:, :-offset], out=ahead[:, :-offset])
        following.append(ahead.masked_fill_(~joined, 0.0))
        previous.append(_shifted(ahead, offset).neg_())
    return _Steps(
        next_x=following[0],
        next_y=following[1],
        previous_x=previous[0],
        previous_y=previous[1],
        joined_next=joined,
        joined_previous=_shifted(joined, offset),
    )


def _extent(
    steps: _Steps, edge: Bool[Tensor, "#frame point"], offset: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lowest and highest offset in x, then in y, that belongs to the point."""
    # What rolls around the end is not joined, so that its step is 0.
    to_next = _reach(steps.next_x, steps.next_y, edge, edge.roll(-offset, 1))
    to_previous = _reach(steps.previous_x, steps.previous_y, edge, edge.roll(offset, 1))
    half = _HALF * ~edge
    mirror_next, mirror_previous = half * ~steps.joined_next, half * ~steps.joined_previous
    sides = []
    for following, previous in (
        (steps.next_x, steps.previous_x),
        (steps.next_y, steps.previous_y),
    ):
        end = (following * to_next).addcmul_(previous, mirror_next, value=-1)
        start = (previous * to_previous).addcmul_(following, mirror_previous, value=-1)
        sides += [torch.minimum(end, start), torch.maximum(end, start, out=end)]
    return sides[0], sides[1], sides[2], sides[3]


def _reach(
    step_x: Float[Tensor, "frame point"],
    step_y: Float[Tensor, "frame point"],
    edge: Bool[Tensor, "#frame point"],
    to_edge: Bool[Tensor, "#frame point"],
) -> Float[Tensor, "frame point"]:
    """Share of a step that belongs to the point: half, or up to the pixel of an edge point."""
    length = torch.maximum(step_x.abs(), step_y.abs())
    up_to_pixel = (1 - 0.5 / length).clamp_(min=_HALF)
    return torch.where(to_edge, up_to_pixel, _HALF) * ~edge


def _mean_step(steps: _Steps) -> tuple[Float[Tensor, "frame point"], Float[Tensor, "frame point"]]:
    """Step to the next point in x and y, averaged over the sides that are joined."""
    sides = steps.joined_next.to(torch.float32).add_(steps.joined_previous).clamp_(min=1)
    return (
        (steps.next_x - steps.previous_x).div_(sides),
        (steps.next_y - steps.previous_y).div_(sides),
    )


def _shifted(values: Tensor, offset: int) -> Tensor:
    """What the previous point has; zero or False for the first."""
    shifted = torch.zeros_like(values)
    shifted[:, offset:] = values[:, :-offset]
    return shifted
