import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from more4d_backend.wan.latents import VideoSizeError
from more4d_backend.wan.windows import WindowError, cross_fade, plan_windows


@given(num_frames=st.integers(1, 300), groups=st.integers(0, 14), overlap_frames=st.integers(0, 56))
def test_windows_cover_every_frame_with_one_length_and_the_overlap(
    num_frames, groups, overlap_frames
):
    window_frames = 4 * groups + 1
    if num_frames <= window_frames:
        num_frames += window_frames
    overlap_frames %= window_frames
    windows = plan_windows(num_frames, window_frames, overlap_frames)
    assert windows[0].start == windows[0].num_shared == 0
    assert windows[-1].stop == num_frames
    assert all(window.stop - window.start == window_frames for window in windows)
    for before, after in itertools.pairwise(windows):
        assert after.start > before.start
        assert after.num_shared == before.stop - after.start >= overlap_frames


def test_windows_are_spread_evenly():
    starts = [w.start for w in plan_windows(97, window_frames=49, overlap_frames=9)]
    assert starts == [0, 24, 48]


def test_a_video_of_one_window_must_be_4k_plus_1_and_a_longer_one_may_be_anything():
    assert len(plan_windows(45, 49, 9)) == 1
    with pytest.raises(VideoSizeError, match=r"num_frames is 48.*Use 45 or 49"):
        plan_windows(48, 49, 9)
    assert plan_windows(50, 49, 9)[-1].stop == 50


def test_windows_that_never_move_on_and_windows_of_a_wrong_length_are_refused():
    with pytest.raises(WindowError, match=r"overlap_frames is 9.*less than window_frames"):
        plan_windows(20, 9, 9)
    with pytest.raises(VideoSizeError, match="window_frames is 48"):
        plan_windows(100, 48, 9)


def test_a_cross_fade_is_linear_and_uses_both_in_every_frame():
    faded = cross_fade(torch.zeros(3, 1, 1, 3), torch.ones(3, 1, 1, 3))
    torch.testing.assert_close(faded[:, 0, 0, 0], torch.tensor([0.25, 0.5, 0.75]))
    assert cross_fade(torch.zeros(0, 2, 2, 3), torch.zeros(0, 2, 2, 3)).shape == (0, 2, 2, 3)
