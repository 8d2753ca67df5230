import dataclasses
import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from more4d_backend import Cameras, PointMaps, PointTracks, Scene4D
from more4d_backend.camera_paths import (
    EASES,
    CameraPathError,
    PathSettings,
    make_path,
    mean_point,
    path_descriptions,
    scene_path,
    scene_scale,
)
from more4d_backend.camera_paths.presets import CAMERA_PRESETS
from more4d_backend.camera_paths.reference_paths import REFERENCE_ALTERNATIVES, REFERENCE_PATHS
from more4d_backend.geometry import (
    intrinsics_from_focal,
    invert_rigid,
    matrix_from_quaternion_wxyz,
    project,
    rigid,
    transform_points,
)

HEIGHT, WIDTH, FOCAL_PX = 48, 64, 50.0
TURNING = [name for name, preset in CAMERA_PRESETS.items() if preset.angle_deg is not None]
AROUND_PIVOT = ["orbit-left", "orbit-right", "arc-left", "arc-right", "crane-up", "crane-down"]
FACING = ["up", "down", "left", "right", "forward", "push-in", "spiral"]


def one_camera(world_to_camera=None, dtype=torch.float64, focal_px=FOCAL_PX):
    pose = torch.eye(4) if world_to_camera is None else world_to_camera
    return Cameras(
        world_to_camera=pose[None].to(dtype),
        intrinsics=intrinsics_from_focal(torch.tensor([focal_px]), HEIGHT, WIDTH).to(dtype),
        height=HEIGHT,
        width=WIDTH,
    )


def random_pose(seed):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(7, generator=generator, dtype=torch.float64)
    return rigid(matrix_from_quaternion_wxyz(numbers[:4]), 3 * numbers[4:])


def path(name, num_frames=9, start=None, **how):
    return make_path(name, start or one_camera(), num_frames, settings=PathSettings(**how))


def pixels_of(point, cameras):
    """Pixel and depth of one world point in every camera."""
    point = torch.as_tensor(point, dtype=torch.float64)
    return project(transform_points(point, cameras.world_to_camera), cameras.intrinsics)


def end(cameras):
    return cameras.camera_to_world[-1, :3, 3].tolist()


def tracks_scene(positions, visibility=None, camera=None, num_frames=2):
    positions = torch.as_tensor(positions, dtype=torch.float32)
    if visibility is None:
        visibility = torch.ones(len(positions), dtype=torch.bool)
    return Scene4D(
        points=PointTracks(
            positions=positions.repeat(num_frames, 1, 1),
            colors=torch.rand(len(positions), 3),
            visibility=torch.as_tensor(visibility).repeat(num_frames, 1),
        ),
        cameras=(camera or one_camera(dtype=torch.float32)).repeated(num_frames),
        fps=8.0,
    )


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
    name, seed, amplitude, dtype, ease, loop, num_frames
):
    start = one_camera(random_pose(seed), dtype, focal_px=31.7)
    how = PathSettings(amplitude=amplitude, ease=ease, loop=loop, pivot_distance=2.3)
    cameras = make_path(name, start, num_frames, settings=how)
    assert cameras.num_frames == num_frames
    assert cameras.world_to_camera.dtype == dtype
    assert torch.equal(cameras.world_to_camera[:1], start.world_to_camera)
    assert torch.equal(cameras.intrinsics[:1], start.intrinsics)


@pytest.mark.parametrize("name", CAMERA_PRESETS)
def test_no_preset_jumps_away_from_the_input_view(name):
    cameras = path(name, 2001, pivot=(0.3, -0.2, 2.0), pivot_distance=2.0)
    jumps = cameras.camera_to_world.diff(dim=0).abs().amax((1, 2))
    assert jumps[0] <= 3 * jumps[1] + 1e-12
    assert jumps.max() < 0.02
    assert cameras.intrinsics.diff(dim=0).abs().max() < 0.01 * FOCAL_PX


@pytest.mark.parametrize("name", CAMERA_PRESETS)
def test_the_same_path_from_another_place_is_seen_the_same_from_there(name):
    pose = random_pose(5)
    here, there = (
        path(name, pivot_distance=1.7),
        path(name, start=one_camera(pose), pivot_distance=1.7),
    )
    moved = here.world_to_camera @ pose
    torch.testing.assert_close(there.world_to_camera, moved, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CAMERA_PRESETS)
def test_distances_grow_with_the_scene_and_views_stay_the_same(name):
    near, far = path(name, pivot_distance=0.5), path(name, pivot_distance=50.0)
    near_poses, far_poses = near.camera_to_world, far.camera_to_world
    torch.testing.assert_close(near_poses[:, :3, :3], far_poses[:, :3, :3], rtol=0, atol=1e-12)
    torch.testing.assert_close(100 * near_poses[:, :3, 3], far_poses[:, :3, 3], rtol=0, atol=1e-9)
    torch.testing.assert_close(near.intrinsics, far.intrinsics, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", CAMERA_PRESETS)
def test_every_preset_moves(name):
    assert (path(name).camera_to_world - torch.eye(4).double()).abs().max() > 0.005


def test_every_name_has_one_line_of_description():
    assert set(path_descriptions()) == set(CAMERA_PRESETS) | set(REFERENCE_PATHS)
    for name, line in path_descriptions().items():
        assert line.endswith("."), name
        assert len(line) <= 90, name
        assert "\n" not in line, name


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
def test_convention_where_each_path_ends_with_the_pivot_2_units_away(name, position):
    assert end(path(name, pivot_distance=2.0)) == pytest.approx(position, abs=1e-12)


def test_convention_an_orbit_to_the_left_ends_looking_to_the_right():
    pose = path("orbit-left", pivot_distance=2.0).camera_to_world[-1]
    wanted = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]  # forward is +x, down stays down
    torch.testing.assert_close(pose[:3, :3], torch.tensor(wanted).double(), rtol=0, atol=1e-12)


def test_an_orbit_turns_evenly_at_a_constant_distance():
    cameras = path("orbit-left", 31, pivot_distance=3.0)
    poses = cameras.camera_to_world
    pivot = torch.tensor([0, 0, 3.0]).double()
    assert (poses[:, :3, 3] - pivot).norm(dim=-1) == pytest.approx(torch.full((31,), 3.0).numpy())
    heading_rad = torch.atan2(poses[:, 0, 2], poses[:, 2, 2])
    torch.testing.assert_close(heading_rad.diff(), torch.full((30,), math.radians(3)).double())


def test_an_arc_turns_45_degrees_and_rises_15():
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
def test_turning_around_a_pivot_anywhere_keeps_its_pixel_and_depth(name, x, y, z, amplitude):
    cameras = path(name, pivot=(x, y, z), amplitude=amplitude)
    pixels, depth = pixels_of((x, y, z), cameras)
    torch.testing.assert_close(pixels, pixels[:1].expand(9, 2), rtol=0, atol=1e-9)
    torch.testing.assert_close(depth, depth[:1].expand(9), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", FACING)
def test_paths_that_look_at_the_pivot_keep_it_in_the_middle_and_the_horizon_level(name):
    cameras = path(name, pivot_distance=2.0)
    pixels, _ = pixels_of((0, 0, 2), cameras)
    middle = torch.tensor([WIDTH / 2, HEIGHT / 2]).double()
    torch.testing.assert_close(pixels, middle.expand(9, 2), rtol=0, atol=1e-9)
    assert cameras.camera_to_world[:, 1, 0].abs().max() < 1e-12


@pytest.mark.parametrize("name", FACING)
def test_a_pivot_off_the_axis_is_in_the_middle_at_the_end(name):
    pixels, depth = pixels_of((0.5, -0.3, 2), path(name, pivot=(0.5, -0.3, 2.0)))
    assert pixels[-1].tolist() == pytest.approx([WIDTH / 2, HEIGHT / 2])
    assert depth[-1] > 0


@pytest.mark.parametrize("name", ["dolly-in", "truck-left", "truck-right", "dolly-out"])
def test_dolly_and_truck_do_not_turn(name):
    rotations = path(name).camera_to_world[:, :3, :3]
    assert torch.equal(rotations, torch.eye(3).double().expand(9, 3, 3))


@settings(deadline=None, max_examples=40)
@given(amplitude=st.floats(-1.8, 3), x=st.floats(-2, 2))
def test_a_dolly_zoom_keeps_the_size_of_the_pivot_plane_and_changes_the_background(amplitude, x):
    cameras = path("dolly-zoom", pivot_distance=2.0, amplitude=amplitude)
    at_pivot, _ = pixels_of((x, 1.0, 2.0), cameras)
    torch.testing.assert_close(at_pivot, at_pivot[:1].expand(9, 2), rtol=0, atol=1e-9)
    behind, _ = pixels_of((1.0, 0.0, 6.0), cameras)
    grows = (behind[-1, 0] - behind[0, 0]) * amplitude
    assert grows > 0 or abs(amplitude) < 1e-9


def test_a_dolly_zoom_or_push_in_that_reaches_the_pivot_is_refused():
    with pytest.raises(CameraPathError, match=r"dolly-zoom with amplitude -2 .*above -1\.9"):
        path("dolly-zoom", amplitude=-2.0)
    with pytest.raises(CameraPathError, match="pivot in front of the camera"):
        path("dolly-zoom", pivot=(0.0, 0.0, -1.0))
    with pytest.raises(CameraPathError, match=r"push-in with amplitude 2 .*less than 1\.9"):
        path("push-in", amplitude=2.0)


def test_handheld_is_small_smooth_seeded_and_not_periodic():
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


def test_handheld_does_not_touch_the_random_state_of_others():
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    path("handheld")
    assert torch.equal(torch.rand(3), wanted)


# Settings


@pytest.mark.parametrize(
    ("name", "mirror"),
    [
        ("orbit-left", "orbit-right"),
        ("crane-up", "crane-down"),
        ("dolly-in", "dolly-out"),
        ("truck-left", "truck-right"),
        ("left", "right"),
        ("up", "down"),
    ],
)
def test_a_negative_amplitude_goes_the_other_way(name, mirror):
    torch.testing.assert_close(
        path(name, amplitude=-0.7).world_to_camera,
        path(mirror, amplitude=0.7).world_to_camera,
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("name", CAMERA_PRESETS)
def test_amplitude_0_stands_still(name):
    cameras = path(name, amplitude=0.0)
    still = torch.eye(4).double().expand(9, 4, 4)
    torch.testing.assert_close(cameras.world_to_camera, still, rtol=0, atol=1e-12)


def test_the_angle_is_before_the_amplitude():
    half = path("orbit-left", amplitude=0.5)
    for how in ({"angle_deg": 45.0}, {"angle_deg": 90.0, "amplitude": 0.5}):
        other = path("orbit-left", **how)
        torch.testing.assert_close(half.world_to_camera, other.world_to_camera)


@pytest.mark.parametrize("name", sorted(set(CAMERA_PRESETS) - set(TURNING)))
def test_an_angle_for_a_path_without_one_is_said_to_have_no_effect(name, caplog):
    with caplog.at_level(logging.WARNING):
        path(name, angle_deg=30.0)
    assert f"angle_deg has no effect on the camera path {name}" in caplog.text


@pytest.mark.parametrize("ease", EASES)
def test_eases_start_at_0_end_at_1_and_never_go_back(ease):
    time = torch.linspace(0, 1, 101, dtype=torch.float64)
    eased = EASES[ease](time)
    assert (eased[0], eased[-1]) == (0, 1)
    assert (eased.diff() > 0).all()


def test_ease_in_starts_slowly_and_ease_out_ends_slowly():
    def steps(ease):
        cameras = path("truck-right", 21, ease=ease)
        return cameras.camera_to_world[:, 0, 3].diff()

    assert steps("linear").std() < 1e-12
    assert steps("in")[0] < 0.1 * steps("in")[-1]
    assert steps("out")[-1] < 0.1 * steps("out")[0]
    assert steps("in-out")[0] == pytest.approx(steps("in-out")[-1])
    assert steps("in-out")[0] < 0.2 * steps("in-out").max()


@pytest.mark.parametrize("name", CAMERA_PRESETS)
@pytest.mark.parametrize("num_frames", [24, 25])
def test_a_looped_path_joins_its_start_without_a_jump(name, num_frames):
    poses = path(name, num_frames, loop=True).camera_to_world
    steps = torch.cat([poses, poses[:1]]).diff(dim=0).flatten(1).norm(dim=-1)
    assert steps[-1] <= 1.6 * steps[:-1].max()
    assert steps[-1] > 0  # the first frame is not shown twice


def test_a_full_turn_loops_onwards_and_a_half_turn_comes_back():
    full = path("orbit-left", 12, angle_deg=360.0, loop=True, pivot_distance=1e8)
    heading = torch.atan2(full.camera_to_world[:, 0, 2], full.camera_to_world[:, 2, 2])
    turned = heading.diff() % (2 * math.pi)
    torch.testing.assert_close(turned, torch.full((11,), math.radians(30)).double())
    half = path("orbit-left", 12, angle_deg=180.0, loop=True)
    poses = half.world_to_camera
    torch.testing.assert_close(poses[1:], poses[1:].flip(0), rtol=0, atol=1e-12)
    assert path("orbit-left", 12, angle_deg=180.0, loop=True).camera_to_world[6, 2, 2] < -0.999


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"amplitude": math.nan}, "amplitude is nan; expected a finite number"),
        ({"angle_deg": math.inf}, "angle_deg is inf"),
        ({"pivot_distance": 0.0}, "pivot_distance is 0.0; expected a positive"),
        ({"pivot_distance": math.nan}, "pivot_distance is nan"),
        ({"pivot": (0.0, math.nan, 1.0)}, "pivot is .*three finite"),
        ({"ease": "in_out"}, "ease is 'in_out'; expected one of .*Did you mean in-out?"),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(how, message):
    with pytest.raises(CameraPathError, match=message):
        PathSettings(**how)


# Names


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("orbit_left", "orbit-left"),
        ("Orbit-Left", "orbit-left"),
        ("arc", "arc-"),
        ("dollyzoom", "dolly-zoom"),
        ("forward-backward", "forward_backward"),
        ("hand-held", "handheld"),
        ("truck", "truck-"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name, suggestion):
    with pytest.raises(
        CameraPathError, match=f"no camera path '{name}'. Did you mean .*{suggestion}"
    ):
        path(name)


def test_a_name_like_no_other_lists_them_all():
    with pytest.raises(CameraPathError, match=r"'qqqq'\. Known: orbit-left, .*camera_rotate\."):
        path("qqqq")


@pytest.mark.parametrize("name", REFERENCE_ALTERNATIVES)
def test_the_names_that_the_reference_has_no_code_for_are_refused_with_one_of_ours(name):
    with pytest.raises(
        CameraPathError, match=r"only as a name, without code\. The nearest of ours"
    ):
        path(name)
    assert REFERENCE_ALTERNATIVES[name] in CAMERA_PRESETS


def test_the_six_names_without_code_are_the_known_ones():
    names = {"mix1", "mix2", "anti-surrounding", "circular", "y_moving", "x_moving"}
    assert set(REFERENCE_ALTERNATIVES) == names


def test_a_path_needs_one_start_and_at_least_one_frame():
    with pytest.raises(CameraPathError, match="start has 3 cameras; expected one"):
        make_path("up", one_camera().repeated(3), 9)
    with pytest.raises(CameraPathError, match="num_frames is 0; expected at least 1"):
        make_path("up", one_camera(), 0)


# The reference's paths (numbers are compared in tests/parity)


@pytest.mark.parametrize("name", REFERENCE_PATHS)
def test_the_reference_paths_are_relative_to_the_input_view(name):
    pose = random_pose(8)
    here = path(name, pivot=(0.1, 0.2, 3.0))
    there = path(name, start=one_camera(pose), pivot=(0.1, 0.2, 3.0))
    torch.testing.assert_close(there.world_to_camera, here.world_to_camera @ pose)
    assert torch.equal(there.intrinsics, there.intrinsics[:1].expand(9, 3, 3))


def test_settings_that_a_formula_does_not_know_are_said_to_have_no_effect(caplog):
    with caplog.at_level(logging.WARNING):
        path("surrounding", amplitude=2.0, ease="in", loop=True)
    for field in ("amplitude", "ease", "loop"):
        assert f"{field} has no effect on the camera path surrounding" in caplog.text
    assert "angle_deg" not in caplog.text


# Scenes


def test_the_scale_of_a_scene_is_its_median_visible_depth():
    positions = [[0, 0, 1], [5, 0, 2], [0, 7, 3], [0, 0, 1e7], [0, 0, 1e7], [0, 0, -4], [0, 0, 2]]
    visibility = [True, True, True, True, False, True, True]
    assert scene_scale(tracks_scene(positions, visibility)) == 2.0


def test_the_scale_is_measured_from_the_input_view_in_frame_0():
    camera = one_camera(random_pose(3), torch.float32)
    inside = torch.tensor([[0.2, 0.1, 4.0], [0, 0, 6.0], [1, 1, 5.0]])
    world = transform_points(inside, invert_rigid(camera.world_to_camera)[0])
    scene = tracks_scene(world, camera=camera)
    moved = scene.points.positions.clone()
    moved[1] += 100
    scene = dataclasses.replace(scene, points=dataclasses.replace(scene.points, positions=moved))
    assert scene_scale(scene) == pytest.approx(5.0, abs=1e-5)
    assert mean_point(scene) == pytest.approx((0.4, 1.1 / 3, 5.0), abs=1e-5)


def test_point_maps_are_measured_where_they_are_valid():
    positions = torch.tensor([[[0, 0, 2.0], [0, 0, 9.0], [0, 0, 4.0], [0, 0, 3.0]]])
    scene = Scene4D(
        points=PointMaps(
            positions=positions[None],
            colors=torch.rand(1, 1, 4, 3),
            valid=torch.tensor([[[True, False, True, True]]]),
        ),
        cameras=one_camera(dtype=torch.float32),
        fps=8.0,
    )
    assert scene_scale(scene) == 3.0


def test_a_scene_with_nothing_to_measure_is_refused_with_a_way_out():
    scene = tracks_scene([[0, 0, -1.0], [0, 0, 5.0]], [True, False])
    with pytest.raises(CameraPathError, match=r"no visible point .*pivot_distance in world units"):
        scene_path("orbit-left", scene)
    cameras = scene_path("orbit-left", scene, settings=PathSettings(pivot_distance=2.0))
    assert cameras.num_frames == 2


def test_a_scene_path_starts_at_the_input_view_at_the_scale_of_the_scene():
    camera = one_camera(random_pose(1), torch.float32)
    inside = torch.tensor([[0.2, 0.1, 4.0], [0, 0, 6.0], [1, 1, 5.0]])
    scene = tracks_scene(
        transform_points(inside, invert_rigid(camera.world_to_camera)[0]), camera=camera
    )
    cameras = scene_path("dolly-in", scene, 7)
    assert torch.equal(cameras.world_to_camera[0], scene.cameras.world_to_camera[0])
    position = transform_points(
        cameras.camera_to_world[-1, :3, 3], scene.cameras.world_to_camera[0]
    )
    assert position.tolist() == pytest.approx([0, 0, 0.4 * 5.0], abs=1e-5)
    assert scene_path("dolly-in", scene).num_frames == scene.num_frames


def test_the_reference_paths_turn_around_the_mean_of_the_points():
    scene = tracks_scene([[0, 0, 2.0], [1, 0, 4.0], [2, 3, 12.0]])
    cameras = scene_path("forward_backward", scene, 16)
    assert cameras.camera_to_world[:, 2, 3].max() == pytest.approx(0.4 * 6.0 * 0.25)


def test_a_wrong_name_is_refused_before_the_scene_is_measured():
    scene = tracks_scene([[0, 0, -1.0]])
    with pytest.raises(CameraPathError, match="Did you mean"):
        scene_path("orbit-lef", scene)
