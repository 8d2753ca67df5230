"""Splats: every point covers its own part of the surface, and nothing beyond it.

The nearest footprint at each pixel wins. Its colour is read from the grid of points around the
winner, at the place where the pixel's centre lies on that grid (the inverse of the local affine
map), so that a large footprint shows a piece of picture and not one flat colour.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..scene import Cameras
from .boxes import pixels_in_boxes
from .footprint import Footprints, grid_footprints, round_footprints
from .settings import RenderOutput
from .shading import at_points, between_points
from .surface import Surface
from .view import PointFrames, PointsInView
from .zbuffer import ZBuffer, z_buffer

_FRAGMENTS_AT_ONCE = 2**24  # about 1.5 GB; more are drawn part by part, with the same result


def splat(
    points: PointFrames,
    view: PointsInView,
    surface: Surface,
    cameras: Cameras,
    max_footprint_px: float,
) -> RenderOutput:
    """Render points with the footprints that their surface gives them."""
    buffer = z_buffer(cameras.num_frames * cameras.height * cameras.width, view.depth.device)
    if surface.joins is None or points.grid_hw is None:
        footprints = round_footprints(view, surface, cameras, max_footprint_px)
        draw_footprints(buffer, view, footprints, cameras)
        return at_points(buffer, points, cameras)
    footprints, local_map = grid_footprints(
        view, surface.joins, points.grid_hw[1], max_footprint_px
    )
    draw_footprints(buffer, view, footprints, cameras)
    return between_points(buffer, points, view, local_map, cameras)


def draw_footprints(
    buffer: ZBuffer, view: PointsInView, footprints: Footprints, cameras: Cameras
) -> None:
    """Draw every pixel of every footprint.

    Points that cover a single pixel, in most views the greater part, are drawn as they lie; only
    the others are collected and expanded.
    """
    num_points = view.depth.shape[1]
    num_pixels = cameras.height * cameras.width
    first_x, num_x = _pixels_covered(view.x, footprints.left, footprints.right, cameras.width)
    first_y, area = _pixels_covered(view.y, footprints.up, footprints.down, cameras.height)
    corner = first_y.mul_(cameras.width).add_(first_x)
    area.mul_(num_x).masked_fill_(~view.drawn, 0)
    number = torch.arange(num_points, device=view.depth.device)
    single = area == 1
    # The others go nowhere (depth infinity), each to a pixel of its own: atomics on one address
    # would queue up.
    pixel = torch.where(single, corner, number % num_pixels)
    buffer.draw_frames(pixel, view.depth.where(single, torch.inf), number)
    corner, num_x, area, depth = (t.flatten() for t in (corner, num_x, area, view.depth))
    large = (area > 1).nonzero()[:, 0]
    for part in _parts(large, area):
        frame = part // num_points
        box, pixel = pixels_in_boxes(
            corner[part] + frame * num_pixels,
            num_x[part].to(torch.int64),
            area[part].to(torch.int64),
            cameras.width,
        )
        buffer.draw(pixel, depth[part][box], (part - frame * num_points)[box])


def _pixels_covered(
    center: Float[Tensor, "frame point"],
    before: Float[Tensor, "frame point"],
    after: Float[Tensor, "frame point"],
    size: int,
) -> tuple[Int[Tensor, "frame point"], Int[Tensor, "frame point"]]:
    """First pixel of the picture with its centre in (center - before, center + after]; how many.

    With 0.5 before and after, that is the one pixel that the centre falls into.
    """
    before_first = (center - before).sub_(0.5).floor_().clamp_(-1, size - 1).to(torch.int32)
    last = (center + after).sub_(0.5).floor_().clamp_(-1, size - 1).to(torch.int32)
    return before_first + 1, last.sub_(before_first)


def _parts(large: Int[Tensor, "large"], area: Int[Tensor, "point"]) -> Iterator[Tensor]:
    """Split the large footprints into parts of a bounded number of pixels."""
    if large.numel() == 0:
        return
    ends = area[large].cumsum(0)
    limits = range(_FRAGMENTS_AT_ONCE, int(ends[-1]), _FRAGMENTS_AT_ONCE)
    limits = torch.tensor(limits, dtype=ends.dtype, device=ends.device)
    cuts = torch.searchsorted(ends, limits).tolist()
    for start, end in zip([0, *cuts], [*cuts, len(large)], strict=True):
        yield large[start:end]
