from dataclasses import replace

import pytest
import torch

from more4d_backend.geo4d.predictions import RayMaps, WindowError, WindowPrediction
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
