"""What each preset does."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from more4d_backend.camera_paths import EASES, CameraPathError, PathSettings, make_path
from more4d_backend.camera_paths.presets import CAMERA_PRESETS

HEIGHT, WIDTH, FOCAL_PX = 48, 64, 50.0  # of `one_camera`
AROUND_PIVOT = ["orbit-left", "orbit-right", "arc-left", "arc-right", "crane-up", "crane-down"]
FACING = ["up", "down", "left", "right", "forward", "push-in", "spiral"]


def end(cameras):
    return cameras.camera_to_world[-1, :3, 3].tolist()


# Every preset


@pytest.mark.parametrize("name", CAMERA_PRESETS)
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    amplitude=st.floats(-1.5, 1.5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    ease=st.sampled_from(list(EASES)),
    loop=st.booleans(),
    num_frames=st.integers(1, 7),
)
def test_frame_0_is_the_input_view_bit_for_bit(
    one_camera, random_pose, name, seed, amplitude, dtype, ease, loop, num_frames
):
    start = one_camera(random_pose(seed), dtype, focal_px=31.7)
    how = PathSettings(amplitude=amplitude, ease=ease, loop=loop, pivot_distance=2.3)
    cameras = make_path(name, start, num_frames, settings=how)
    assert cameras.num_frames == num_frames
    assert cameras.world_to_camera.dtype == dtype
    assert torch.equal(cameras.world_to_camera[:1], start.world_to_camera)
    assert torch.equal(cameras.intrinsics[:1], start.intrinsics)


@pytest.mark.parametrize("name", CAMERA_PRESETS)
def test_no_preset_jumps_away_from_the_input_view(path, name):
    cameras = path(name, 2001, pivot=(0.3, -0.2, 2.0), pivot_distance=2.0)
    jumps = cameras.camera_to_world.diff(dim=0).abs().amax((1, 2))
    assert jumps[0] <= 3 * jumps[1] + 1e-12
    assert jumps.max() < 0.02
    assert cameras.intrinsics.diff(dim=0).abs().max() < 0.01 * FOCAL_PX


@pytest.mark.parametrize("name", CAMERA_PRESETS)
def test_the_same_path_from_another_place_is_seen_the_same_from_there(
    one_camera, random_pose, path, name
):
    pose = random_pose(5)
    here, there = (
        path(name, pivot_distance=1.7),
        path(name, start=one_camera(pose), pivot_distance=1.7),
    )
    moved = here.world_to_camera @ pose
    torch.testing.assert_close(there.world_to_camera, moved, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CAMERA_PRESETS)
def test_distances_grow_with_the_scene_and_views_stay_the_same(path, name):
    near, far = path(name, pivot_distance=0.5), path(name, pivot_distance=50.0)
    near_poses, far_poses = near.camera_to_world, far.camera_to_world
    torch.testing.assert_close(near_poses[:, :3, :3], far_poses[:, :3, :3], rtol=0, atol=1e-12)
    torch.testing.assert_close(100 * near_poses[:, :3, 3], far_poses[:, :3, 3], rtol=0, atol=1e-9)
    torch.testing.assert_close(near.intrinsics, far.intrinsics, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", CAMERA_PRESETS)
def test_every_preset_moves(path, name):
    assert (path(name).camera_to_world - torch.eye(4).double()).abs().max() > 0.005


# What each one does


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("orbit-left", (-2, 0, 2)),
        ("orbit-right", (2, 0, 2)),
        ("crane-up", (0, -1, 2 - math.sqrt(3))),
        ("crane-down", (0, 1, 2 - math.sqrt(3))),
        ("dolly-in", (0, 0, 0.8)),
        ("dolly-out", (0, 0, -0.8)),
        ("truck-left", (-0.6, 0, 0)),
        ("truck-right", (0.6, 0, 0)),
        ("push-in", (0, 0, 1)),
        ("dolly-zoom", (0, 0, -1)),
        ("spiral", (0, -0.4, 0.4)),
        ("handheld", (0, 0, 0)),
        ("up", (0, -0.6, 0)),
        ("down", (0, 0.6, 0)),
        ("left", (-0.6, 0, 0)),
        ("right", (0.6, 0, 0)),
        ("forward", (0, 0, 0.6)),
    ],
)
def test_convention_where_each_path_ends_with_the_pivot_2_units_away(path, name, position):
    assert end(path(name, pivot_distance=2.0)) == pytest.approx(position, abs=1e-12)


def test_convention_an_orbit_to_the_left_ends_looking_to_the_right(path):
    pose = path("orbit-left", pivot_distance=2.0).camera_to_world[-1]
    wanted = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]  # forward is +x, down stays down
    torch.testing.assert_close(pose[:3, :3], torch.tensor(wanted).double(), rtol=0, atol=1e-12)


def test_an_orbit_turns_evenly_at_a_constant_distance(path):
    cameras = path("orbit-left", 31, pivot_distance=3.0)
    poses = cameras.camera_to_world
    pivot = torch.tensor([0, 0, 3.0]).double()
    assert (poses[:, :3, 3] - pivot).norm(dim=-1) == pytest.approx(torch.full((31,), 3.0).numpy())
    heading_rad = torch.atan2(poses[:, 0, 2], poses[:, 2, 2])
    torch.testing.assert_close(heading_rad.diff(), torch.full((30,), math.radians(3)).double())


def test_an_arc_turns_45_degrees_and_rises_15(path):
    pose = path("arc-left", pivot_distance=1.0).camera_to_world[-1]
    from_pivot = pose[:3, 3] - torch.tensor([0, 0, 1.0]).double()
    assert from_pivot.norm() == pytest.approx(1)
    assert math.degrees(math.asin(-from_pivot[1])) == pytest.approx(15)
    assert math.degrees(math.atan2(-from_pivot[0], -from_pivot[2])) == pytest.approx(45)
    assert pose[1, 0] == pytest.approx(0, abs=1e-12)  # the horizon stays level


@pytest.mark.parametrize("name", AROUND_PIVOT)
@settings(deadline=None, max_examples=40)
@given(
    x=st.floats(-1, 1),
    y=st.floats(-1, 1),
    z=st.floats(0.5, 4),
    amplitude=st.floats(-1.5, 1.5),
)
def test_turning_around_a_pivot_anywhere_keeps_its_pixel_and_depth(
    path, pixels_of, name, x, y, z, amplitude
):
    cameras = path(name, pivot=(x, y, z), amplitude=amplitude)
    pixels, depth = pixels_of((x, y, z), cameras)
    torch.testing.assert_close(pixels, pixels[:1].expand(9, 2), rtol=0, atol=1e-9)
    torch.testing.assert_close(depth, depth[:1].expand(9), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", FACING)
def test_paths_that_look_at_the_pivot_keep_it_in_the_middle_and_the_horizon_level(
    path, pixels_of, name
):
    cameras = path(name, pivot_distance=2.0)
    pixels, _ = pixels_of((0, 0, 2), cameras)
    middle = torch.tensor([WIDTH / 2, HEIGHT / 2]).double()
    torch.testing.assert_close(pixels, middle.expand(9, 2), rtol=0, atol=1e-9)
    assert cameras.camera_to_world[:, 1, 0].abs().max() < 1e-12


@pytest.mark.parametrize("name", FACING)
def test_a_pivot_off_the_axis_is_in_the_middle_at_the_end(path, pixels_of, name):
    pixels, depth = pixels_of((0.5, -0.3, 2), path(name, pivot=(0.5, -0.3, 2.0)))
    assert pixels[-1].tolist() == pytest.approx([WIDTH / 2, HEIGHT / 2])
    assert depth[-1] > 0


@pytest.mark.parametrize("name", ["dolly-in", "truck-left", "truck-right", "dolly-out"])
def test_dolly_and_truck_do_not_turn(path, name):
    rotations = path(name).camera_to_world[:, :3, :3]
    assert torch.equal(rotations, torch.eye(3).double().expand(9, 3, 3))


@settings(deadline=None, max_examples=40)
@given(amplitude=st.floats(-1.8, 3), x=st.floats(-2, 2))
def test_a_dolly_zoom_keeps_the_size_of_the_pivot_plane_and_changes_the_background(
    path, pixels_of, amplitude, x
):
    cameras = path("dolly-zoom", pivot_distance=2.0, amplitude=amplitude)
    at_pivot, _ = pixels_of((x, 1.0, 2.0), cameras)
    torch.testing.assert_close(at_pivot, at_pivot[:1].expand(9, 2), rtol=0, atol=1e-9)
    behind, _ = pixels_of((1.0, 0.0, 6.0), cameras)
    grows = (behind[-1, 0] - behind[0, 0]) * amplitude
    assert grows > 0 or abs(amplitude) < 1e-9


def test_a_dolly_zoom_or_push_in_that_reaches_the_pivot_is_refused(path):
    with pytest.raises(CameraPathError, match=r"dolly-zoom with amplitude -2 .*above -1\.9"):
        path("dolly-zoom", amplitude=-2.0)
    with pytest.raises(CameraPathError, match="pivot in front of the camera"):
        path("dolly-zoom", pivot=(0.0, 0.0, -1.0))
    with pytest.raises(CameraPathError, match=r"push-in with amplitude 2 .*less than 1\.9"):
        path("push-in", amplitude=2.0)


def test_handheld_is_small_smooth_seeded_and_not_periodic(path):
    cameras = path("handheld", 97, seed=4)
    again, other = path("handheld", 97, seed=4), path("handheld", 97, seed=5)
    assert torch.equal(cameras.world_to_camera, again.world_to_camera)
    assert (cameras.world_to_camera - other.world_to_camera).abs().max() > 0.005
    position = cameras.camera_to_world[:, :3, 3]
    assert 0.01 < position.norm(dim=-1).max() < 0.08
    step = position.diff(dim=0).norm(dim=-1)
    bend = position.diff(n=2, dim=0).norm(dim=-1)
    # A white noise of the same size would bend as much as it moves. Measured: 0.44.
    assert bend.mean() < 0.5 * step.mean()
    assert (position[:48] - position[48:96]).norm(dim=-1).max() > 0.01


def test_handheld_does_not_touch_the_random_state_of_others(path):
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    path("handheld")
    assert torch.equal(torch.rand(3), wanted)
