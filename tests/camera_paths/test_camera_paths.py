"""Settings and names of camera paths."""

import logging
import math

import pytest
import torch

from more4d_backend.camera_paths import (
    EASES,
    CameraPathError,
    PathSettings,
    make_path,
    path_descriptions,
)
from more4d_backend.camera_paths.presets import CAMERA_PRESETS
from more4d_backend.camera_paths.reference_paths import REFERENCE_PATHS

TURNING = [name for name, preset in CAMERA_PRESETS.items() if preset.angle_deg is not None]


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
def test_a_negative_amplitude_goes_the_other_way(path, name, mirror):
    torch.testing.assert_close(
        path(name, amplitude=-0.7).world_to_camera,
        path(mirror, amplitude=0.7).world_to_camera,
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("name", CAMERA_PRESETS)
def test_amplitude_0_stands_still(path, name):
    cameras = path(name, amplitude=0.0)
    still = torch.eye(4).double().expand(9, 4, 4)
    torch.testing.assert_close(cameras.world_to_camera, still, rtol=0, atol=1e-12)


def test_the_angle_is_before_the_amplitude(path):
    half = path("orbit-left", amplitude=0.5)
    for how in ({"angle_deg": 45.0}, {"angle_deg": 90.0, "amplitude": 0.5}):
        other = path("orbit-left", **how)
        torch.testing.assert_close(half.world_to_camera, other.world_to_camera)


@pytest.mark.parametrize("name", sorted(set(CAMERA_PRESETS) - set(TURNING)))
def test_an_angle_for_a_path_without_one_is_said_to_have_no_effect(path, name, caplog):
    with caplog.at_level(logging.WARNING):
        path(name, angle_deg=30.0)
    assert f"angle_deg has no effect on the camera path {name}" in caplog.text


@pytest.mark.parametrize("ease", EASES)
def test_eases_start_at_0_end_at_1_and_never_go_back(ease):
    time = torch.linspace(0, 1, 101, dtype=torch.float64)
    eased = EASES[ease](time)
    assert (eased[0], eased[-1]) == (0, 1)
    assert (eased.diff() > 0).all()


def test_ease_in_starts_slowly_and_ease_out_ends_slowly(path):
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
def test_a_looped_path_joins_its_start_without_a_jump(path, name, num_frames):
    poses = path(name, num_frames, loop=True).camera_to_world
    steps = torch.cat([poses, poses[:1]]).diff(dim=0).flatten(1).norm(dim=-1)
    assert steps[-1] <= 1.6 * steps[:-1].max()
    assert steps[-1] > 0  # the first frame is not shown twice


def test_a_full_turn_loops_onwards_and_a_half_turn_comes_back(path):
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


def test_every_name_has_one_line_of_description():
    assert set(path_descriptions()) == set(CAMERA_PRESETS) | set(REFERENCE_PATHS)
    for name, line in path_descriptions().items():
        assert line.endswith("."), name
        assert len(line) <= 90, name
        assert "\n" not in line, name


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
def test_an_unknown_name_suggests_the_nearest(path, name, suggestion):
    with pytest.raises(
        CameraPathError, match=f"no camera path '{name}'. Did you mean .*{suggestion}"
    ):
        path(name)


def test_a_name_like_no_other_lists_them_all(path):
    with pytest.raises(CameraPathError, match=r"'qqqq'\. Known: orbit-left, .*camera_rotate\."):
        path("qqqq")


def test_a_path_needs_one_start_and_at_least_one_frame(one_camera):
    with pytest.raises(CameraPathError, match="start has 3 cameras; expected one"):
        make_path("up", one_camera().repeated(3), 9)
    with pytest.raises(CameraPathError, match="num_frames is 0; expected at least 1"):
        make_path("up", one_camera(), 0)
