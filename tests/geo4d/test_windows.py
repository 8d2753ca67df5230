"""Windows over videos of any length."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from more4d_backend.geo4d.windows import MAX_FRAMES, WindowPlanError, plan_windows


@given(st.integers(1, 400), st.integers(1, 16), st.integers(2, 16))
def test_every_frame_is_in_a_window_and_no_window_comes_twice(num_frames, stride, length):
    stride = min(stride, length)
    windows = plan_windows(num_frames, stride, length)
    starts = [window.start for window in windows]
    assert starts == sorted(set(starts))
    covered = {frame for window in windows for frame in range(window.start, window.stop)}
    assert covered == set(range(num_frames))
    for window in windows:
        assert len(window.frames) == window.length == length
        assert all(0 <= frame < num_frames for frame in window.frames)
        assert window.frames[: window.num_frames] == list(range(window.start, window.stop))
    assert windows[-1].stop == num_frames


@given(st.integers(17, 400), st.integers(1, 15))
def test_neighbouring_windows_share_frames(num_frames, stride):
    windows = plan_windows(num_frames, stride)
    for before, after in pairwise(windows):
        assert 1 <= after.start - before.start <= stride
        assert before.stop - after.start >= 16 - stride > 0


def test_the_tail_window_comes_once():
    # The reference runs the last window twice whenever (frames - 16) % 4 is 0.
    assert [w.start for w in plan_windows(16, 4)] == [0]
    assert [w.start for w in plan_windows(20, 4)] == [0, 4]
    assert [w.start for w in plan_windows(50, 4)] == [0, 4, 8, 12, 16, 20, 24, 28, 32, 34]
    assert len(plan_windows(328, 4)) == 79
    both = plan_windows(20, 4, mirrored=True)
    assert [(w.start, w.mirrored) for w in both] == [(0, False), (0, True), (4, False), (4, True)]
    assert [replace(w, mirrored=False) for w in both[1::2]] == plan_windows(20, 4)


@pytest.mark.parametrize("num_frames", [1, 15])
def test_a_short_video_is_one_window_continued_by_its_last_frame(num_frames):
    (window,) = plan_windows(num_frames, 4)
    assert window.num_frames == num_frames
    assert window.frames == [min(frame, num_frames - 1) for frame in range(16)]


@pytest.mark.parametrize(
    ("num_frames", "stride", "message"),
    [
        (0, 4, "has 0 frames"),
        (MAX_FRAMES + 1, 4, "expected 1 to 100000"),
        (50, 0, "stride is 0"),
        (50, 17, "stride is 17; expected 1 to 16"),
        (50, -1, "stride is -1"),
    ],
)
def test_what_windows_cannot_cover_is_refused(num_frames, stride, message):
    with pytest.raises(WindowPlanError, match=message):
        plan_windows(num_frames, stride)
