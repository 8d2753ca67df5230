from dataclasses import replace

import pytest
import torch

from more4d_backend.geo4d.alignment.rotations import rotation_from_vector
from more4d_backend.geo4d.predictions import RayMaps, WindowError, WindowPrediction
from more4d_backend.geo4d.ray_maps import rays_from_cameras
from more4d_backend.geometry import rigid
from more4d_backend.scene import Cameras
from more4d_backend.shapes import ShapeError


@pytest.fixture
def window():
    return WindowPrediction(
        first_frame=3,
        points=torch.rand(4, 6, 8, 3) + 1,
        valid=torch.ones(4, 6, 8, dtype=torch.bool),
        sigma=torch.full((4, 6, 8), 0.1),
        disparity=torch.rand(4, 3, 4),
        rays=RayMaps(directions=torch.rand(4, 3, 4, 3), moments=torch.rand(4, 3, 4, 3)),
    )


def test_padding_is_cut_off_from_all_parts(window):
    cut = window.frames(slice(0, 2))
    assert (cut.first_frame, cut.num_frames, cut.last_frame) == (3, 2, 4)
    assert len(cut.sigma) == len(cut.disparity) == len(cut.rays.moments) == 2
    assert window.frames(slice(1, None)).first_frame == 4


def test_a_mirror_of_a_mirror_is_the_window_itself(window):
    twice = window.mirrored().mirrored()
    for part in ("points", "valid", "sigma", "disparity"):
        assert torch.equal(getattr(twice, part), getattr(window, part)), part
    assert torch.equal(twice.rays.directions, window.rays.directions)
    assert torch.equal(twice.rays.moments, window.rays.moments)
    assert not torch.equal(window.mirrored().points, window.points)


def test_rays_of_cameras_in_a_mirror_become_the_true_ones(window):
    turns = rotation_from_vector(0.2 * torch.randn(4, 3, dtype=torch.float64))
    poses = rigid(turns, torch.randn(4, 3, dtype=torch.float64))
    mirror = torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64).diag()
    focal = torch.tensor([[7.0, 0, 4], [0, 7, 3], [0, 0, 1]], dtype=torch.float64)

    def cameras(world_to_camera):
        return Cameras(
            world_to_camera=world_to_camera.float(),
            intrinsics=focal.float().expand(4, 3, 3),
            height=6,
            width=8,
        )

    seen = rays_from_cameras(cameras(mirror @ poses @ mirror))
    found = replace(window, rays=seen).mirrored().rays
    true = rays_from_cameras(cameras(poses))
    torch.testing.assert_close(found.directions, true.directions, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.moments, true.moments, atol=1e-6, rtol=0)


def test_frames_that_do_not_follow_each_other_are_refused(window, as_users_run_it):
    for index in (slice(0, 4, 2), slice(2, 2)):
        with pytest.raises(WindowError, match="consecutive frames"):
            window.frames(index)


def test_parts_of_other_lengths_are_refused(window, as_users_run_it):
    with pytest.raises(ShapeError, match=r"disparity.*frame=4"):
        replace(window, disparity=torch.rand(3, 3, 4))


@pytest.mark.parametrize("part", ["points", "sigma", "disparity", "ray moments"])
def test_nan_is_refused_and_the_window_part_and_frame_are_named(window, part, as_users_run_it):
    if part == "ray moments":
        window.rays.moments[2, 0, 0, 0] = torch.inf
    else:
        getattr(window, part)[2].view(-1)[0] = torch.nan
    message = rf"Window 5 has NaN or infinite {part}, first in its frame 2 \(frame 5 of the video\)"
    with pytest.raises(WindowError, match=message):
        window.check_finite("Window 5")


def test_nan_where_nothing_is_valid_is_no_error(window):
    window.points[1, 2, 3] = torch.nan
    window.sigma[1, 2, 3] = torch.nan
    window.valid[1, 2, 3] = False
    window.check_finite("Window 0")


def test_sigma_of_0_is_refused(window, as_users_run_it):
    window.sigma[0, 0, 0] = 0
    with pytest.raises(WindowError, match="sigma of 0"):
        window.check_finite("Window 0")
