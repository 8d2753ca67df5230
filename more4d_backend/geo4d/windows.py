"""A video of any length as overlapping windows of the one length that the network takes."""

from dataclasses import dataclass

MAX_FRAMES = 100_000
"""Frames beyond which a video is surely a mistake: more than an hour at 24 frames per second."""


class WindowPlanError(ValueError):
    """A video or a stride that windows cannot cover."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A run of frames that the network sees at one time."""

    start: int
    """First frame of the video."""

    num_frames: int
    """Frames of the video in it; fewer than the network's only where the video has no more."""

    length: int
    """Frames that the network sees: those of the video, then repeats of the last one."""

    mirrored: bool = False
    """Whether the network sees them with left and right exchanged."""

    @property
    def stop(self) -> int:
        """One past its last frame of the video."""
        return self.start + self.num_frames

    @property
    def frames(self) -> list[int]:
        """Which frame of the video stands at each place of the window."""
        return [min(self.start + place, self.stop - 1) for place in range(self.length)]


def plan_windows(
    num_frames: int, stride: int, length: int = 16, *, mirrored: bool = False
) -> list[Window]:
    """Cover a video with windows that start every `stride` frames; the last one ends with it.

    A video shorter than a window is one window, continued by its last frame. With `mirrored` each
    window is followed by its mirror image.

    Raises:
        WindowPlanError: there are no frames or too many, or the stride would leave frames out.
    """
    if not 1 <= num_frames <= MAX_FRAMES:
        raise WindowPlanError(
            f"The video has {num_frames} frames; expected 1 to {MAX_FRAMES}. Take fewer of them "
            "(max_frames, frame_step)."
        )
    check_stride(stride, length)
    last = max(num_frames - length, 0)
    starts = sorted({*range(0, last + 1, stride), last})
    covered = min(num_frames, length)
    return [
        Window(start=start, num_frames=covered, length=length, mirrored=side)
        for start in starts
        for side in ((False, True) if mirrored else (False,))
    ]


def check_stride(stride: int, length: int) -> None:
    """Refuse a stride that windows of `length` frames cannot have.

    Raises:
        WindowPlanError: it would leave frames out.
    """
    if not 1 <= stride <= length:
        raise WindowPlanError(
            f"stride is {stride}; expected 1 to {length}, the frames of a window. A quarter of it "
            "gave the best published cameras; half of it needs half the time."
        )
