"""Decoding of video frame by frame, with damage refused instead of painted over.

FFmpeg hides damage by inventing pixels, unless it is told otherwise at every step.
"""

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from . import decoding
from .images import MAX_PIXELS

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

_log = logging.getLogger(__name__)

LIMIT_BYTES = 16 * 2**30
"""Most memory that a loaded video may take, as float32."""

BT709, BT601 = 1, 5
"""Matrices of RGB to YUV, by the numbers of FFmpeg's swscale."""

LIMITED, FULL = 1, 2
"""AVColorRange. PyAV's own names for these numbers changed between its releases."""

_EXPECTED = "a video"
# Demuxers that read one file and nothing else: playlists could name other files and addresses.
_DEMUXERS = "mov,mp4,matroska,webm,avi,gif,mpegts"
_MATRICES = {1: BT709, 4: 4, 5: BT601, 6: BT601, 7: 7, 9: 9, 10: 9}  # by AVColorSpace


def decode_video(
    path: str | os.PathLike[str],
    max_frames: int | None,
    *,
    grey: bool = False,
) -> tuple[list[UInt8[np.ndarray, "..."]], float]:
    """Decode (frames, fps), turned upright: RGB (height width 3), or grey (height width).

    Raises:
        FileFormatError: no video, damaged, truncated, of changing size, or more than
            `LIMIT_BYTES`.
    """
    stream = VideoPictures(path, max_frames, grey=grey)
    frames: list[np.ndarray] = []
    for picture in stream:
        frames.append(picture)
        with decoding(path, _EXPECTED):
            _refuse_odd_frame(frames)
    return frames, stream.fps


class VideoPictures:
    """The pictures of a video file, decoded one by one; each loop over it starts again."""

    def __init__(
        self, path: str | os.PathLike[str], max_frames: int | None = None, *, grey: bool = False
    ) -> None:
        """Name a file; it is opened by the loop.

        Raises:
            ValueError: `max_frames` is below 1.
        """
        if max_frames is not None and max_frames < 1:
            raise ValueError(f"max_frames is {max_frames}; expected at least 1.")
        self.path, self.max_frames, self.grey = path, max_frames, grey
        self.fps = math.nan
        """Average rate; known once a loop has come to its end."""

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "..."]]:
        """Yield pictures, turned upright: RGB (height width 3), or grey. Sizes may change.

        Raises:
            FileFormatError: no video, damaged or truncated.
        """
        with (
            Path(self.path).open("rb") as file,
            decoding(self.path, _EXPECTED),
            _opened(file) as container,
        ):
            stream = next(iter(container.streams.video), None)
            if stream is None:
                raise ValueError("it has no video stream")
            colors = _Colors()
            convert = colors.to_grey if self.grey else colors.to_rgb
            clock = _Clock(container=container, stream=stream)
            for number, picture in enumerate(_pictures(clock), start=1):
                yield np.rot90(convert(picture), round(picture.rotation / 90))
                if number == self.max_frames:
                    break
            else:
                clock.refuse_early_end()
            if math.isnan(self.fps):
                clock.tell_uneven()  # once, however often the file is read
            self.fps = clock.fps()


def _opened(file: BufferedReader) -> "InputContainer":
    import av

    if not file.peek(1):
        raise ValueError("the file is empty")
    return av.open(file, "r", options={"format_whitelist": _DEMUXERS})


def _pictures(clock: "_Clock") -> Iterator["VideoFrame"]:
    context = clock.stream.codec_context
    if context.width * context.height > MAX_PIXELS:
        raise ValueError(f"it claims {context.width}x{context.height} pixels")
    context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
    context.thread_type = "AUTO"
    for packet in clock.container.demux(clock.stream):
        if packet.is_corrupt:
            raise ValueError("it is truncated inside a frame")
        clock.expect(packet)
        for picture in packet.decode():
            if picture.is_corrupt:
                raise ValueError(f"frame {len(clock.starts)} is damaged")
            clock.note(picture)
            yield picture


def _refuse_odd_frame(frames: list[np.ndarray]) -> None:
    if frames[-1].shape != frames[0].shape:
        raise ValueError(
            f"its frames change size, from {frames[0].shape[:2]} to {frames[-1].shape[:2]}"
        )
    if frames[0].size * 4 * len(frames) > LIMIT_BYTES:
        raise ValueError(
            f"its first {len(frames)} frames take {LIMIT_BYTES / 2**30:g} GiB of memory as "
            "float32, which is the limit; pass max_frames, or make the video smaller"
        )


@dataclass(slots=True, kw_only=True)
class _Clock:
    """When frames are shown, in the stream's time base."""

    container: "InputContainer"
    stream: "VideoStream"
    starts: list[int | None] = field(default_factory=list)
    durations: dict[int | None, int] = field(default_factory=dict)

    def expect(self, packet: "Packet") -> None:
        self.durations[packet.pts] = packet.duration or 0

    def note(self, picture: "VideoFrame") -> None:
        self.starts.append(picture.pts)

    def refuse_early_end(self) -> None:
        """Refuse a file whose frames end before the time that its header promises."""
        stream, container = self.stream, self.container
        known = [start for start in self.starts if start is not None]
        if len(known) < len(self.starts) or stream.time_base is None:
            return
        if not known:
            raise ValueError("it has no frames")
        end_s = float(stream.time_base * max(t + self.durations.get(t, 0) for t in known))
        if stream.duration is not None:
            promised_s = float(stream.time_base * ((stream.start_time or 0) + stream.duration))
        elif container.duration is not None and len(container.streams) == 1:
            promised_s = ((container.start_time or 0) + container.duration) / 1e6
        else:
            return
        interval_s = (end_s - float(stream.time_base * min(known))) / len(known)
        if end_s < promised_s - 0.75 * interval_s:
            raise ValueError(
                f"it is truncated: it promises {promised_s:.3f} s and its {len(known)} frames end "
                f"at {end_s:.3f} s; pass max_frames={len(known)} to read what is there"
            )

    def tell_uneven(self) -> None:
        """Log when frames are not evenly spaced."""
        known = sorted(start for start in self.starts if start is not None)
        gaps = np.diff(known)
        if len(gaps) and np.abs(gaps - np.median(gaps)).max() > 0.5 * np.median(gaps):
            _log.warning("The video's frames are not evenly spaced in time; all are kept in order.")

    def fps(self) -> float:
        """Average rate."""
        rate = self.stream.average_rate or self.stream.guessed_rate
        if not rate:
            raise ValueError(f"its {len(self.starts)} frames have no rate")
        return float(rate)


class _Colors:
    """Converts pictures, and keeps FFmpeg's scalers, which take longer to make than to use."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._upsampler, self._converter = VideoReformatter(), VideoReformatter()

    def to_rgb(self, picture: "VideoFrame") -> UInt8[np.ndarray, "height width 3"]:
        name = picture.format.name
        if picture.format.is_rgb or name.startswith(("gray", "pal")):
            return picture.to_ndarray(format="rgb24")
        # What is not said: BT.709 for high definition and BT.601 below it, as players assume.
        unsaid = BT709 if picture.height > 576 else BT601
        matrix = _MATRICES.get(int(picture.colorspace), unsaid)
        is_full = picture.color_range == FULL or name.startswith("yuvj")
        color_range = FULL if is_full else LIMITED
        # Full-size chroma first: the direct way repeats chroma pixels and rounds down, which
        # costs 6 to 10 dB and darkens by 1.4 of 255 (measured with FFmpeg 7 and 8).
        full_size = self._upsampler.reformat(
            picture,
            format="yuv444p",
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=color_range,
            dst_color_range=color_range,
        )
        return self._converter.reformat(
            full_size,
            format="rgb24",
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=color_range,
            dst_color_range=FULL,
        ).to_ndarray()

    def to_grey(self, picture: "VideoFrame") -> UInt8[np.ndarray, "height width"]:
        if picture.format.name.startswith("gray"):
            return picture.to_ndarray(format="gray")
        return self.to_rgb(picture).mean(-1).round().astype(np.uint8)
