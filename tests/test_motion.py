from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from more4d_backend.geometry import invert_rigid, look_at, transform_points
from more4d_backend.motion import (
    OWN_MOTION,
    RELEASED_MOTION,
    MotionError,
    MotionNormalization,
    denormalize_motion,
    normalize_motion,
)
from more4d_backend.scene import Cameras
from more4d_backend.synthetic import make_world

BOTH = pytest.mark.parametrize("normalization", [RELEASED_MOTION, OWN_MOTION])


def cameras_at(world_to_camera: torch.Tensor) -> Cameras:
    intrinsics = torch.tensor([[300.0, 0, 200], [0, 250, 100], [0, 0, 1]]).double()
    return Cameras(
        world_to_camera=world_to_camera[None], intrinsics=intrinsics[None], height=200, width=400
    )


CAMERA_0 = cameras_at(torch.eye(4).double())


def test_motion_is_divided_by_depth_and_scaled_by_focal_over_size():
    start = torch.tensor([[0.5, 0.2, 2.0], [0.0, 0.0, 4.0]]).double()
    moved = start + torch.tensor([[0.4, 0.8, 1.0], [0.0, 0.0, -2.0]]).double()
    positions = torch.stack([start, moved])
    own = normalize_motion(positions, CAMERA_0, OWN_MOTION)
    assert own[0].abs().max() == 0
    expected = [[0.75 * 0.4 / 2, 1.25 * 0.8 / 2, 1.0 / 2], [0.0, 0.0, -2.0 / 4]]
    torch.testing.assert_close(own[1] / OWN_MOTION.gain, torch.tensor(expected).double())
    released = normalize_motion(positions, CAMERA_0, RELEASED_MOTION)
    expected[0][:2] = [24 / 23 * 0.4 / 2, 0.8 / 2]
    torch.testing.assert_close(released[1], torch.tensor(expected).double())


@given(
    depth=st.floats(1e-6, 1e6),
    other_depth=st.floats(1e-6, 1e6),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    normalization=st.sampled_from([RELEASED_MOTION, OWN_MOTION]),
)
def test_the_inverse_is_exact_for_any_positive_depth(
    depth, other_depth, seed, dtype, normalization
):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(2, 3, 3, generator=generator, dtype=dtype)
    start[..., 2] = torch.tensor([depth, other_depth, 1.0], dtype=dtype)
    motion = torch.randn(4, 2, 3, 3, generator=generator, dtype=dtype) * start[..., 2:]
    motion[0] = 0
    positions = start + motion
    back = denormalize_motion(
        normalize_motion(positions, CAMERA_0, normalization), start, CAMERA_0, normalization
    )
    # Relative to the point's own distance: that is what its coordinates can resolve.
    size = positions.norm(dim=-1, keepdim=True).amax(0)
    assert ((back - positions).abs() / size).max() < 1e-5


@BOTH
def test_where_the_world_puts_camera_0_makes_no_difference(normalization):
    world = make_world(2)
    cameras = world.cameras(5, 12, 16, dtype=torch.float64)
    positions = world.tracks(cameras).positions
    placed = look_at(*torch.tensor([[3.0, -1, 2], [0, 0, 7], [0.1, -1, 0]]).double())
    elsewhere = transform_points(positions, invert_rigid(placed))
    here = Cameras(
        world_to_camera=placed[None],
        intrinsics=cameras.intrinsics[:1],
        height=12,
        width=16,
    )
    at_camera_0 = normalize_motion(positions, cameras, normalization)
    assert at_camera_0.abs().max() > 0.05
    normalized = normalize_motion(elsewhere, here, normalization)
    torch.testing.assert_close(normalized, at_camera_0, atol=1e-9, rtol=1e-9)
    back = denormalize_motion(normalized, elsewhere[0], here, normalization)
    torch.testing.assert_close(back, elsewhere, atol=1e-9, rtol=1e-9)


@BOTH
def test_image_grids_and_point_lists_give_the_same_numbers(normalization):
    positions = torch.rand(3, 4, 5, 3).double() + 1
    grid = normalize_motion(positions, CAMERA_0, normalization)
    points = normalize_motion(positions.reshape(3, 20, 3), CAMERA_0, normalization)
    assert torch.equal(grid.reshape(3, 20, 3), points)


def test_released_weights_see_a_depth_of_1_where_it_is_0_or_not_finite():
    depth = torch.tensor([0.0, torch.inf, torch.nan, 2.0, -2.0]).double()
    start = torch.stack([torch.zeros(5).double(), torch.zeros(5).double(), depth], dim=-1)
    normalized = torch.ones(2, 5, 3).double()
    moved = denormalize_motion(normalized, start, CAMERA_0, RELEASED_MOTION)
    assert moved[1, :, 1].tolist() == [1.0, 1.0, 1.0, 2.0, -2.0]


def test_own_weights_see_no_depth_far_below_the_median():
    depth = torch.tensor([1e-6, -1.0, torch.nan, 4.0, 5.0, 5.0, 6.0]).double()
    start = torch.stack([torch.zeros(7).double(), torch.zeros(7).double(), depth], dim=-1)
    normalized = OWN_MOTION.gain * torch.ones(2, 7, 3).double()
    moved = denormalize_motion(normalized, start, CAMERA_0, OWN_MOTION)
    # a_y = 1.25; the median of the five usable depths is 5, and 2 % of it 0.1.
    assert (moved[1, :, 1] * 1.25).tolist() == pytest.approx([0.1, 5.0, 5.0, 4.0, 5.0, 5.0, 6.0])


def test_frame_0_is_the_start_whatever_a_network_predicts_there():
    start = torch.rand(6, 3) + 1
    positions = denormalize_motion(torch.ones(3, 6, 3), start, CAMERA_0, RELEASED_MOTION)
    assert torch.equal(positions[0], start)
    assert not torch.equal(positions[1], start)


def test_points_without_any_depth_are_refused():
    positions = torch.zeros(2, 4, 3)
    with pytest.raises(MotionError, match=r"None of the 4 points has a positive, finite depth"):
        normalize_motion(positions, CAMERA_0, OWN_MOTION)


def test_without_guidance_by_depth_all_points_are_divided_by_the_median():
    depth = torch.tensor([2.0, 4.0, 40.0]).double()
    start = torch.stack([torch.zeros(3).double(), torch.zeros(3).double(), depth], dim=-1)
    positions = torch.stack([start, start + torch.tensor([0.0, 0.0, 1.0])])
    ablated = replace(OWN_MOTION, divide_by="median", gain=1.0)
    normalized = normalize_motion(positions, CAMERA_0, ablated)
    assert normalized[1, :, 2].tolist() == [0.25, 0.25, 0.25]
    back = denormalize_motion(normalized, start, CAMERA_0, ablated)
    torch.testing.assert_close(back, positions, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"focal_xy": (0.0, 1.0)}, "focal_xy is"),
        ({"depth_repair": "none"}, "depth_repair is 'none'"),
        ({"relative_floor": 0.0}, "relative_floor is 0.0"),
        ({"divide_by": "mean"}, "divide_by is 'mean'"),
    ],
)
def test_a_wrong_setting_is_named(fields, message, as_users_run_it):
    with pytest.raises(ValueError, match=message):
        MotionNormalization(**({"focal_xy": None, "depth_repair": "floor"} | fields))
