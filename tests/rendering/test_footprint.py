"""Footprints in numbers: a 5x6 grid of points, moved about the picture by an affine map."""

import math

import pytest
import torch

from more4d_backend.geometry import intrinsics_from_focal
from more4d_backend.rendering.footprint import grid_footprints, round_footprints
from more4d_backend.rendering.surface import Joins, Surface
from more4d_backend.rendering.view import PointsInView
from more4d_backend.scene import Cameras

ROWS, COLUMNS = 5, 6
HALF, OVERLAP = 0.55, 0.01  # of a step; in pixels


def seen(affine: list[list[float]], frames: int = 1) -> PointsInView:
    row, column = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
    place = torch.tensor(affine) @ torch.stack([column.flatten(), row.flatten()]).float() + 40.3
    return PointsInView(
        x=place[:1].expand(frames, -1),
        y=place[1:].expand(frames, -1),
        depth=torch.ones(frames, ROWS * COLUMNS),
        drawn=torch.ones(frames, ROWS * COLUMNS, dtype=torch.bool),
    )


def joins(edge: torch.Tensor | None = None, beside: torch.Tensor | None = None) -> Joins:
    nowhere = torch.zeros(1, ROWS, COLUMNS, dtype=torch.bool)
    right, down = ~nowhere, ~nowhere
    right[..., -1], down[:, -1] = False, False
    edge, beside = (nowhere if mask is None else mask for mask in (edge, beside))
    return Joins(
        right=right.flatten(1),
        down=down.flatten(1),
        edge=edge.flatten(1),
        beside_edge=beside.flatten(1),
    )


def sides(view: PointsInView, surface: Joins, limit: float = 100.0) -> torch.Tensor:
    """Left, right, up and down of every point, on the grid."""
    footprints, _ = grid_footprints(view, surface, COLUMNS, limit)
    stacked = torch.stack([footprints.left, footprints.right, footprints.up, footprints.down], -1)
    return stacked.view(-1, ROWS, COLUMNS, 4)


@pytest.mark.parametrize("zoom", [1.0, 2.0, 7.5])
def test_a_footprint_is_half_a_step_and_a_little_to_each_side(zoom):
    found = sides(seen([[zoom, 0.0], [0.0, 1.5 * zoom]], frames=2), joins())
    width, height = HALF * zoom + OVERLAP, HALF * 1.5 * zoom + OVERLAP
    expected = torch.tensor([width, width, height, height]).expand(2, ROWS, COLUMNS, 4)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("angle_deg", [30, 45, 135, 200])
def test_under_roll_both_steps_add_up(angle_deg):
    c, s = 3 * math.cos(math.radians(angle_deg)), 3 * math.sin(math.radians(angle_deg))
    found = sides(seen([[c, -s], [s, c]]), joins())
    expected = torch.full_like(found, HALF * (abs(c) + abs(s)) + OVERLAP)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_small_steps_leave_one_pixel_and_large_ones_are_capped():
    assert sides(seen([[0.4, 0.0], [0.0, 0.4]]), joins()).eq(0.5).all()
    assert sides(seen([[9.0, 0.0], [0.0, 9.0]]), joins(), limit=6.0).eq(3.0).all()


def test_points_at_edges_keep_one_pixel_and_those_beside_reach_up_to_it():
    edge, beside = torch.zeros(2, 1, ROWS, COLUMNS, dtype=torch.bool)
    edge[..., 0], beside[..., 1] = True, True
    found = sides(seen([[4.0, 0.0], [0.0, 4.0]]), joins(edge, beside))[0]
    assert found[:, 0].eq(0.5).all()
    torch.testing.assert_close(found[:, 1], torch.full((ROWS, 4), 3.5 + OVERLAP))
    torch.testing.assert_close(found[:, 2:], torch.full((ROWS, 4, 4), 4 * HALF + OVERLAP))


def test_neighbours_that_are_not_drawn_have_no_say():
    view = seen([[4.0, 0.0], [0.0, 4.0]])
    x, drawn = view.x.clone(), view.drawn.clone()
    hidden = 2 * COLUMNS + 3
    x[:, hidden], drawn[:, hidden] = 1e5, False
    found = sides(PointsInView(x=x, y=view.y, depth=view.depth, drawn=drawn), joins())[0]
    others = torch.arange(ROWS * COLUMNS) != hidden
    torch.testing.assert_close(found.view(-1, 4)[others], torch.full((29, 4), 4 * HALF + OVERLAP))


def test_the_local_map_is_two_steps():
    _, local_map = grid_footprints(seen([[2.0, -0.5], [0.25, 3.0]]), joins(), COLUMNS, 100.0)
    for name, step in (("right_x", 2.0), ("right_y", 0.25), ("down_x", -0.5), ("down_y", 3.0)):
        found = getattr(local_map, name)
        torch.testing.assert_close(found, torch.full_like(found, 2 * step), atol=1e-4, rtol=0)


def test_without_a_grid_the_spacing_is_projected():
    cameras = Cameras(
        world_to_camera=torch.eye(4)[None],
        intrinsics=intrinsics_from_focal(torch.tensor([200.0]), 60, 80),
        height=60,
        width=80,
    )
    depth = torch.tensor([[1.0, 4.0, 0.1, 2.0]])
    view = PointsInView(
        x=depth, y=depth, depth=depth, drawn=torch.tensor([[True, True, True, False]])
    )
    surface = Surface(spacing=torch.full((1, 4), 0.02), joins=None)
    footprints = round_footprints(view, surface, cameras, 16.0)
    torch.testing.assert_close(footprints.left, torch.tensor([[4 * HALF, HALF, 8.0, 0.5]]))
