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

_OVERLAP_PX = 0.01  # closes what rounding opens between boxes of one and the same size
_ONE_PIXEL = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprints:
    """A box around each point, in pixels from it.

    Sides are at least 0.5, which is exactly as far as the pixel that the point falls on.
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
    """Pixels in x for two steps to the right; 0 where the point is joined to neither side."""

    right_y: Float[Tensor, "frame point"]
    """Pixels in y for two steps to the right."""

    down_x: Float[Tensor, "frame point"]
    """Pixels in x for two steps down."""

    down_y: Float[Tensor, "frame point"]
    """Pixels in y for two steps down."""

    right: Bool[Tensor, "frame point"]
    """True where the point and its right neighbour are on one surface, and both drawn."""

    down: Bool[Tensor, "frame point"]
    """True where the point and the neighbour below are on one surface, and both drawn."""


def grid_footprints(
    view: PointsInView, joins: Joins, grid_width: int, max_footprint_px: float
) -> tuple[Footprints, LocalMap]:
    """Footprints from the projected neighbours: the box around half of each step.

    Points at depth edges keep a single pixel; the points beside them on the same surface reach up
    to that pixel, so that no gap opens between. Where a neighbour is missing, the footprint is as
    wide as on the other side. A box, because noise in depth lets tight cells part and crack; and
    the steps of both directions add up, because under roll each alone is too short.
    """
    along = _joined(view, joins.right, 1)
    across = _joined(view, joins.down, grid_width)
    right_x, low_x, high_x = _steps(view.x, along, 1)
    down_x, low, high = _steps(view.x, across, grid_width)
    low_x.add_(low)
    high_x.add_(high)
    right_y, low_y, high_y = _steps(view.y, along, 1)
    down_y, low, high = _steps(view.y, across, grid_width)
    low_y.add_(low)
    high_y.add_(high)
    left, right, up, down = (
        _side(reach, joins, max_footprint_px / 2)
        for reach in (low_x.neg_(), high_x, low_y.neg_(), high_y)
    )
    return Footprints(left=left, right=right, up=up, down=down), LocalMap(
        right_x=right_x,
        right_y=right_y,
        down_x=down_x,
        down_y=down_y,
        right=along[:, 1:],
        down=across[:, grid_width:],
    )


def round_footprints(
    view: PointsInView, surface: Surface, cameras: Cameras, max_footprint_px: float
) -> Footprints:
    """Footprints of points without a grid: their spacing, as if the surface faced the camera."""
    spacing_px = surface.spacing * focal_px(cameras, view.depth.device) / view.depth
    half = spacing_px.mul_(_HALF).masked_fill_(~view.drawn, _ONE_PIXEL)
    half = half.clamp_(_ONE_PIXEL, max_footprint_px / 2)
    return Footprints(left=half, right=half, up=half, down=half)


def _joined(
    view: PointsInView, linked: Bool[Tensor, "#frame point"], offset: int
) -> Bool[Tensor, "frame longer"]:
    """Whether each point is joined to the next one, after `offset` times False.

    So the first columns say the same about the previous point.
    """
    joined = torch.nn.functional.pad(linked & view.drawn, (offset, 0))
    joined[:, offset:-offset] &= view.drawn[:, offset:]
    return joined


def _steps(
    values: Float[Tensor, "frame point"], joined: Bool[Tensor, "frame longer"], offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Twice the mean step to the next point; the lowest and the highest offset of a neighbour.

    A missing neighbour is taken to be as far as the one on the other side.
    """
    steps = torch.zeros(joined.shape, device=values.device)
    torch.sub(values[:, offset:], values[:, :-offset], out=steps[:, offset:-offset])
    steps.masked_fill_(~joined, 0.0)
    ahead, behind = steps[:, offset:], steps[:, :-offset]
    to_next = torch.where(joined[:, offset:], ahead, behind)
    to_previous = torch.where(joined[:, :-offset], behind, ahead).neg_()
    low, high = torch.minimum(to_next, to_previous), torch.maximum(to_next, to_previous)
    return to_next.sub_(to_previous), low, high


def _side(
    reach: Float[Tensor, "frame point"], joins: Joins, limit: float
) -> Float[Tensor, "frame point"]:
    """Side of a footprint, from the distance to its neighbours on that side."""
    up_to_pixel = torch.maximum(reach - _ONE_PIXEL, reach * _HALF)
    side = torch.where(joins.beside_edge, up_to_pixel, reach.mul_(_HALF))
    return side.add_(_OVERLAP_PX).clamp_(max=limit).masked_fill_(joins.edge, 0.0).clamp_(_ONE_PIXEL)
