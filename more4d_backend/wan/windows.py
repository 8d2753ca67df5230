"""Long videos in windows of a length that a network can take."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .latents import check_num_frames


class WindowError(ValueError):
    """Windows that cannot cover a video."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A run of frames, and how many at its start the window before it also has."""

    start: int
    """First frame."""

    stop: int
    """One past the last frame."""

    num_shared: int
    """Frames in common with the window before; 0 for the first."""

    @property
    def frames(self) -> slice:
        """The window's frames in the whole video."""
        return slice(self.start, self.stop)

    @property
    def shared(self) -> slice:
        """Frames in common with the window before, in the whole video."""
        return slice(self.start, self.start + self.num_shared)


def plan_windows(num_frames: int, window_frames: int, overlap_frames: int) -> list[Window]:
    """Cover a video with windows of one length 4k + 1 that overlap by at least `overlap_frames`.

    A video of at most one window is one window, and must itself be 4k + 1 frames long. Windows
    are spread evenly, so that the last one ends with the video and all overlap about alike.

    Raises:
        VideoSizeError: a window is not 4k + 1 frames long.
        WindowError: windows that overlap by their whole length never move on.
    """
    if num_frames <= window_frames:
        check_num_frames(num_frames)
        return [Window(start=0, stop=num_frames, num_shared=0)]
    check_num_frames(window_frames, "window_frames")
    if not 0 <= overlap_frames < window_frames:
        raise WindowError(
            f"overlap_frames is {overlap_frames}; expected 0 or more and less than "
            f"window_frames, which is {window_frames}."
        )
    last_start = num_frames - window_frames
    num_steps = math.ceil(last_start / (window_frames - overlap_frames))
    starts = [last_start * step // num_steps for step in range(num_steps + 1)]
    ends = [0] + [start + window_frames for start in starts]
    return [
        Window(start=start, stop=start + window_frames, num_shared=end - start)
        for start, end in zip(starts, ends, strict=False)
    ]


def cross_fade(
    before: Float[Tensor, "frame height width 3"], after: Float[Tensor, "frame height width 3"]
) -> Float[Tensor, "frame height width 3"]:
    """Fade from one version of the shared frames to the other, linearly over the frames."""
    num_frames = len(before)
    share = torch.arange(1, num_frames + 1, device=after.device, dtype=after.dtype)
    return torch.lerp(before, after, (share / (num_frames + 1))[:, None, None, None])
