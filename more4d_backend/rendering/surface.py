"""Which points belong to one surface, and how far apart they are on it.

Points on a pixel grid have neighbours. Whether two neighbours are joined is judged in the view
that the points were seen from, because there a plane is recognised exactly (`depth_edges`).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..depth_edges import depth_breaks, touching
from ..scene import Cameras, Scene4D
from .view import PointFrames, PointsInView, point_frames, points_in_view

_TORN = 3.0
"""Neighbours on tracks that are further apart than this many spacings have parted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joins:
    """Which neighbours on the grid lie on one surface."""

    right: Bool[Tensor, "frame point"]
    """True where the point and its right neighbour do. False in the last column."""

    down: Bool[Tensor, "frame point"]
    """True where the point and the neighbour below do. False in the last row."""

    edge: Bool[Tensor, "frame point"]
    """True where any of the four neighbours lies on another surface."""

    beside_edge: Bool[Tensor, "frame point"]
    """True where the point is joined to a point at an edge and is not itself at one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """The surface around each point."""

    spacing: Float[Tensor, "frame point"]
    """World distance to the next point where the surface faces the source camera: source depth /
    source focal length. Means nothing where the source camera cannot have seen the point."""

    joins: Joins | None
    """None for points without a grid."""


def surface_of(points: PointFrames, kept_spacing: Float[Tensor, "1 point"] | None) -> Surface:
    """Measure the surface of each frame. `kept_spacing` is that of `first_spacing(scene)`."""
    seen = points_in_view(points, points.source)
    spacing = _face_on_spacing(seen, points)
    if kept_spacing is not None:
        spacing = torch.where(kept_spacing > 0, kept_spacing, spacing)
    if points.grid_hw is None:
        return Surface(spacing=spacing, joins=None)
    grid = (-1, *points.grid_hw)
    valid = seen.drawn.view(grid)
    right_breaks, down_breaks = depth_breaks(seen.depth.view(grid), valid)
    if points.is_tracks:
        right_torn, down_torn = _torn(seen, spacing, points)
        right_breaks, down_breaks = right_breaks | right_torn, down_breaks | down_torn
    right, down = valid.clone(), valid.clone()
    right[..., :-1] &= valid[..., 1:] & ~right_breaks[..., :-1]
    down[..., :-1, :] &= valid[..., 1:, :] & ~down_breaks[..., :-1, :]
    right[..., -1], down[..., -1, :] = False, False
    edge = touching(right_breaks, down_breaks)
    joins = Joins(
        right=right.flatten(1),
        down=down.flatten(1),
        edge=edge.flatten(1),
        beside_edge=(_joined_to(edge, right, down) & ~edge).flatten(1),
    )
    return Surface(spacing=spacing, joins=joins)


def first_spacing(scene: Scene4D, device: torch.device) -> Float[Tensor, "1 point"] | None:
    """Spacing of tracks in frame 0, which they keep as they move; 0 where unknown there.

    None for point maps, whose points are new in every frame.
    """
    points = point_frames(scene, slice(0, 1), device, draw_unseen=True)
    if not points.is_tracks:
        return None
    seen = points_in_view(points, points.source)
    return _face_on_spacing(seen, points).where(seen.drawn, 0.0)


def focal_px(cameras: Cameras, device: torch.device) -> Float[Tensor, "frame 1"]:
    """One focal length per camera, the geometric mean of both axes."""
    K = cameras.intrinsics
    return (K[:, 0, 0] * K[:, 1, 1]).sqrt()[:, None].to(device, torch.float32)


def _face_on_spacing(seen: PointsInView, points: PointFrames) -> Float[Tensor, "frame point"]:
    stride = points.source.width / points.grid_hw[1] if points.grid_hw else 1.0
    return seen.depth * (stride / focal_px(points.source, seen.depth.device))


def _joined_to(
    marked: Bool[Tensor, "frame height width"],
    right: Bool[Tensor, "frame height width"],
    down: Bool[Tensor, "frame height width"],
) -> Bool[Tensor, "frame height width"]:
    """Mark the points that are joined to a marked one."""
    joined = torch.zeros_like(marked)
    joined[..., :-1] |= right[..., :-1] & marked[..., 1:]
    joined[..., 1:] |= right[..., :-1] & marked[..., :-1]
    joined[..., :-1, :] |= down[..., :-1, :] & marked[..., 1:, :]
    joined[..., 1:, :] |= down[..., :-1, :] & marked[..., :-1, :]
    return joined


def _torn(
    seen: PointsInView, spacing: Float[Tensor, "frame point"], points: PointFrames
) -> tuple[Bool[Tensor, "frame height width"], Bool[Tensor, "frame height width"]]:
    """Tell which neighbours have moved apart sideways, though they may be at one depth."""
    assert points.grid_hw is not None
    grid = (-1, *points.grid_hw)
    focal = focal_px(points.source, seen.depth.device)
    limit_px = (_TORN * focal * spacing / seen.depth).view(grid)
    x, y = seen.x.view(grid), seen.y.view(grid)
    pad = torch.nn.functional.pad
    parted = []
    for axis, padding in ((2, (0, 1)), (1, (0, 0, 0, 1))):
        gap = torch.maximum(x.diff(dim=axis).abs(), y.diff(dim=axis).abs())
        parted.append(pad(gap > limit_px.narrow(axis, 0, gap.shape[axis]), padding))
    valid = seen.drawn.view(grid)
    right, down = parted[0] & valid, parted[1] & valid
    right[..., :-1] &= valid[..., 1:]
    down[..., :-1, :] &= valid[..., 1:, :]
    return right, down
