import pytest
import torch

from more4d_backend.depth_edges import depth_breaks, depth_edges
from more4d_backend.geometry import intrinsics_from_focal, pixel_centers, unproject


def plane_depth(normal: tuple[float, float, float], distance: float, size=(24, 32)):
    """Depth of the plane normal . p = distance, seen with a focal length of 30 pixels."""
    K = intrinsics_from_focal(torch.tensor(30.0, dtype=torch.float64), *size)
    rays = unproject(
        pixel_centers(*size, dtype=torch.float64), torch.ones(size, dtype=torch.float64), K
    )
    return (distance / (rays @ torch.tensor(normal, dtype=torch.float64)))[None]


def everywhere(depth):
    return torch.ones_like(depth, dtype=torch.bool)


@pytest.mark.parametrize("normal", [(0, 0, 1), (1.4, 0, 1), (0, 1.6, 1), (-0.9, 0.8, 1)])
def test_a_plane_has_no_edges_however_it_is_tilted(normal):
    depth = plane_depth(normal, 2.0)
    valid = depth > 0
    if normal != (0, 0, 1):  # the test is about tilts whose steps are beyond the noise threshold
        steps = [(1 / depth).diff(dim=axis).abs() * depth.narrow(axis, 1, -1 + depth.shape[axis])
                 for axis in (1, 2)]  # fmt: skip
        assert max(float(step.max()) for step in steps) > 0.03
    assert not depth_edges(depth, valid, steepest=10.0).any()


def test_both_sides_of_a_step_are_edges_and_nothing_else_is():
    depth = torch.full((1, 12, 16), 4.0)
    depth[:, 3:9, 5:11] = 2.0
    right, down = depth_breaks(depth, everywhere(depth))
    expected_right = torch.zeros(1, 12, 16, dtype=torch.bool)
    expected_right[:, 3:9, [4, 10]] = True
    expected_down = torch.zeros(1, 12, 16, dtype=torch.bool)
    expected_down[:, [2, 8], 5:11] = True
    assert torch.equal(right, expected_right)
    assert torch.equal(down, expected_down)
    edges = depth_edges(depth, everywhere(depth))
    assert edges[0, 5].nonzero()[:, 0].tolist() == [4, 5, 10, 11]
    assert edges[0, :, 7].nonzero()[:, 0].tolist() == [2, 3, 8, 9]


def test_a_step_between_two_tilted_planes_is_an_edge():
    near, far = plane_depth((0.6, 0, 1), 2.0), plane_depth((0.6, 0, 1), 2.6)
    depth = torch.where(torch.arange(32) < 16, near, far)
    right, down = depth_breaks(depth, everywhere(depth))
    assert right[0].nonzero()[:, 1].unique().tolist() == [15]
    assert not down.any()


def test_a_pixel_half_way_across_an_edge_does_not_hide_it():
    depth = 1 / torch.tensor([1.0, 1, 1, 1, 0.95, 0.9, 0.9, 0.9, 0.9]).expand(1, 5, 9)
    right, _ = depth_breaks(depth, everywhere(depth))
    assert right[0, 0].nonzero()[:, 0].tolist() == [3, 4]


def test_a_crease_between_two_planes_is_no_edge():
    floor, wall = plane_depth((0, 1.2, 1), 2.0), plane_depth((0, -1.2, 1), 2.0)
    depth = torch.minimum(
        floor.where(floor > 0, torch.inf), wall.where(wall > 0, torch.inf)
    )  # both are the same at the middle row
    assert not depth_edges(depth, depth.isfinite(), steepest=10.0).any()


def test_a_smeared_edge_is_cut_where_it_is_steeper_than_any_surface():
    depth = 1 / torch.tensor([1.0, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2]).expand(1, 4, 9)
    right, _ = depth_breaks(depth, everywhere(depth))
    assert right[0, 0, 2:6].all()


def test_noise_below_the_relative_jump_is_no_edge():
    noise = torch.rand(2, 40, 40, generator=torch.Generator().manual_seed(0))
    depth = 3 * (1 + 0.029 * noise)
    assert not depth_edges(depth, everywhere(depth)).any()


def test_missing_depth_makes_no_edge_and_hides_none_beside_it():
    depth = torch.full((1, 6, 12), 4.0)
    depth[..., 6:] = 2.0
    depth[:, :, 0], depth[:, 2] = torch.nan, 0.0
    valid = depth > 0
    right, down = depth_breaks(depth, valid)
    assert right.sum() == 5
    assert right[0, [0, 1, 3, 4, 5], 5].all()
    assert not down.any()


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (4, 1)])
def test_tiny_images_are_accepted(size):
    depth = torch.rand(2, *size) + 1
    right, down = depth_breaks(depth, everywhere(depth))
    assert not right[..., -1].any()
    assert not down[:, -1].any()
    assert depth_edges(depth, everywhere(depth)).shape == depth.shape
