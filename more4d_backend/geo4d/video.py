"""The frames that a scene is made from: a video file, or pictures at hand."""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from ..files import FileFormatError
from ..files.video_decoding import VideoPictures
from ..files.videos import check_fps
from ..shapes import check_kinds, check_shapes
from .framing import Framing

_log = logging.getLogger(__name__)

_PICTURES_AT_ONCE = 16
_FRAMES_BETWEEN_CHECKS = 256


@runtime_checkable
class Video(Protocol):
    """Pictures that can be gone through more than once, so that no more are held than needed."""

    def pictures(self) -> Iterator[UInt8[Tensor, "height width 3"]]:
        """Yield them in order; sRGB. Sizes may change."""
        ...

    @property
    def fps(self) -> float:
        """Frames per second; known once `pictures` has come to its end."""
        ...


class VideoFile:
    """Frames of a video file."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_frames: int | None = None,
        frame_step: int = 1,
    ) -> None:
        """Take every `frame_step`-th frame, at most `max_frames` of them.

        Raises:
            ValueError: one of the numbers is below 1.
        """
        for name, value in (("max_frames", max_frames), ("frame_step", frame_step)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1.")
        self.path, self.frame_step = path, frame_step
        span = None if max_frames is None else (max_frames - 1) * frame_step + 1
        self._stream = VideoPictures(path, span)

    def pictures(self) -> Iterator[UInt8[Tensor, "height width 3"]]:
        """Decode.

        Raises:
            FileFormatError: no video, no frames, damaged or truncated.
        """
        count = 0
        for picture in islice(self._stream, 0, None, self.frame_step):
            count += 1
            yield torch.from_numpy(np.ascontiguousarray(picture))
        if count == 0:
            raise FileFormatError(f"{self.path} has no frames; expected a video of at least one.")

    @property
    def fps(self) -> float:
        """Frames that are taken per second."""
        return self._stream.fps / self.frame_step


class PictureVideo:
    """Frames that are at hand, such as an IMAGE batch."""

    def __init__(self, frames: Float[Tensor, "frame height width 3"], fps: float) -> None:
        """Take sRGB in [0, 1]; what lies outside is clamped.

        Raises:
            ShapeError: frames has another shape.
            ValueError: there are no frames, a colour is NaN, or fps is not one.
        """
        check_kinds(frames=(frames, "float"))
        check_shapes(frames=(frames, "frame height width 3"))
        if frames.numel() == 0:
            raise ValueError(
                f"frames has shape {tuple(frames.shape)}: there is no picture. Expected a video of "
                "at least one frame."
            )
        check_fps(fps)
        self._frames, self.fps = frames, fps

    def pictures(self) -> Iterator[UInt8[Tensor, "height width 3"]]:
        """Round to 8 bits, one by one."""
        for number, frame in enumerate(self._frames):
            if not frame.isfinite().all():
                raise ValueError(f"Frame {number} has a colour that is NaN or infinite.")
            yield (frame.clamp(0, 1) * 255).round().to("cpu", torch.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class FramedVideo:
    """A video at the network's size."""

    frames: UInt8[Tensor, "frame height width 3"]
    """sRGB, on the CPU."""

    framing: Framing
    """How they came from the source."""

    fps: float
    """Frames per second."""

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.frames)

    def colors(self, index: slice | list[int]) -> Float[Tensor, "frame height width 3"]:
        """Return some frames as sRGB in [0, 1]."""
        return self.frames[index].float() / 255


def frame_video(
    video: Video,
    plan: Callable[[tuple[int, int]], Framing],
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    check: Callable[[int, Framing], None] | None = None,
) -> FramedVideo:
    """Go through a video once and keep its frames at the network's size.

    `plan` gets the first picture's height and width. Pictures of another size than the first are
    brought to its size, and the log says so. Only 16 pictures of the source are held at a time.
    `check` is told now and then how many frames there are so far; raising from it interrupts.

    Raises:
        What reading raises.
    """
    framing: Framing | None = None
    framed, done = [], 0
    for batch in _batches(same_size(video.pictures())):
        framing = framing or plan((batch.shape[1], batch.shape[2]))
        framed.append((framing.frame(batch.to(device)) * 255).round().to("cpu", torch.uint8))
        done += len(batch)
        if check is not None and done % _FRAMES_BETWEEN_CHECKS == 0:
            check(done, framing)
        if progress is not None:
            progress(done, done)
    assert framing is not None  # a Video has at least one picture
    return FramedVideo(frames=torch.cat(framed), framing=framing, fps=video.fps)


def same_size(
    pictures: Iterator[UInt8[Tensor, "height width 3"]], *, told: bool = False
) -> Iterator[UInt8[Tensor, "height width 3"]]:
    """Fill the first picture's size with each later one that is of another size.

    The log says so, unless it was `told` before.
    """
    size_hw: tuple[int, int] | None = None
    for number, picture in enumerate(pictures):
        own_hw = (picture.shape[0], picture.shape[1])
        size_hw = size_hw or own_hw
        if own_hw == size_hw:
            yield picture
            continue
        if not told:
            told = True
            _log.warning(
                "The video's pictures change size, from %dx%d to %dx%d at frame %d; all are "
                "brought to the first size, cropped where the shape differs.",
                *size_hw,
                *own_hw,
                number,
            )
        yield _filling(picture, size_hw)


def _filling(picture: Tensor, size_hw: tuple[int, int]) -> Tensor:
    scale = max(size / own for size, own in zip(size_hw, picture.shape[:2], strict=True))
    scaled = (round(picture.shape[0] * scale), round(picture.shape[1] * scale))
    framing = Framing(
        source_hw=(picture.shape[0], picture.shape[1]), network_hw=size_hw, scaled_hw=scaled
    )
    return (framing.frame(picture[None])[0] * 255).round().to(torch.uint8)


def _batches(pictures: Iterator[Tensor]) -> Iterator[UInt8[Tensor, "frame height width 3"]]:
    while batch := list(islice(pictures, _PICTURES_AT_ONCE)):
        yield rearrange(batch, "frame height width channel -> frame height width channel")
