"""RGB and mask video from and to files, through PyAV. Colours are sRGB in [0, 1]."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ..shapes import check_shapes
from . import OutputError, replacing
from .images import to_bytes
from .video_decoding import BT709, FULL, LIMITED, decode_video

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.reformatter import VideoReformatter

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Encoding:
    codec: str
    pixels: str
    options: dict[str, str]
    suffixes: tuple[str, ...]


_LOSSY = _Encoding(
    codec="libx264", pixels="yuv420p", options={"crf": "16"}, suffixes=(".mp4", ".mov", ".mkv")
)
_LOSSLESS = _Encoding(
    codec="ffv1", pixels="bgr0", options={"level": "3", "slicecrc": "1"}, suffixes=(".mkv",)
)
_MASK = _Encoding(codec="ffv1", pixels="gray", options=_LOSSLESS.options, suffixes=(".mkv",))


def check_fps(fps: float) -> None:
    """Refuse a frame rate that no video has.

    Raises:
        ValueError: it is not in 0.01 to 1000.
    """
    if not 0.01 <= fps <= 1000:
        raise ValueError(f"fps is {fps}; expected 0.01 to 1000.")


def save_video(
    path: str | os.PathLike[str],
    frames: Float[Tensor, "frame height width 3"],
    fps: float,
    *,
    lossless: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write 8-bit video: H.264 (.mp4, .mov, .mkv; BT.709, plays anywhere), or FFV1 (.mkv).

    FFV1 keeps every bit of the 8-bit frames. H.264 halves the resolution of colour, for which
    the size must be even: frames of an odd size keep full colour (4:4:4), which is logged,
    because browsers and phones do not play it.

    Raises:
        OutputError: the ending does not fit, the place cannot be written, or PyAV has no encoder.
        ValueError: there are no frames, or fps is not in 0.01 to 1000.
    """
    check_shapes(frames=(frames, "frame height width 3"))
    encoding = _LOSSLESS if lossless else _LOSSY
    if not lossless and (frames.shape[1] % 2 or frames.shape[2] % 2):
        _log.warning(
            "%s is %dx%d; its size is odd, so it is written as H.264 4:4:4, which browsers and "
            "phones do not play.", path, frames.shape[2], frames.shape[1]
        )  # fmt: skip
        encoding = _Encoding(
            codec="libx264", pixels="yuv444p", options=_LOSSY.options, suffixes=_LOSSY.suffixes
        )
    _encode(path, frames, fps, encoding, progress)


def save_mask_video(
    path: str | os.PathLike[str],
    mask: Bool[Tensor, "frame height width"] | Float[Tensor, "frame height width"],
    fps: float,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a mask (bool, or soft in [0, 1]) as 8-bit grey FFV1 (.mkv): True is 255, exactly.

    Raises:
        As `save_video`.
    """
    check_shapes(mask=(mask, "frame height width"))
    _encode(path, mask, fps, _MASK, progress)


def load_video(
    path: str | os.PathLike[str], *, max_frames: int | None = None
) -> tuple[Float[Tensor, "frame height width 3"], float]:
    """Read (frames, fps), turned upright; at most the first `max_frames`.

    All pictures are kept in order. Where they are not evenly spaced in time, fps is their average
    rate, and a warning is logged.

    Raises:
        FileFormatError: no video, damaged, truncated, or more memory than
            `video_decoding.LIMIT_BYTES`.
    """
    frames, fps = decode_video(path, max_frames)
    return _as_float(frames), fps


def load_mask_video(
    path: str | os.PathLike[str], *, max_frames: int | None = None
) -> tuple[Float[Tensor, "frame height width"], float]:
    """Read (mask, fps): grey video as it is, coloured video by the mean of red, green, blue.

    Raises:
        As `load_video`.
    """
    frames, fps = decode_video(path, max_frames, grey=True)
    return _as_float(frames), fps


def _encode(
    path: str | os.PathLike[str],
    frames: Tensor,
    fps: float,
    encoding: _Encoding,
    progress: Callable[[int, int], None] | None,
) -> None:
    import av
    from av.video.reformatter import VideoReformatter

    suffix = Path(path).suffix.lower()
    if suffix not in encoding.suffixes:
        raise OutputError(
            f"{path} ends in {suffix!r}; {encoding.codec} video needs "
            f"{' or '.join(encoding.suffixes)}."
        )
    if frames.numel() == 0:
        raise ValueError(f"There is nothing to write: frames has shape {tuple(frames.shape)}.")
    check_fps(fps)
    if encoding.codec not in av.codecs_available:
        raise OutputError(
            f"This build of PyAV has no encoder {encoding.codec}. Install the one from PyPI "
            "(pip install --force-reinstall av), or write lossless video."
        )
    options = {} if suffix == ".mkv" else {"movflags": "+faststart"}
    with replacing(path) as temporary, av.open(str(temporary), "w", options=options) as container:
        stream: Any = container.add_stream(  # a VideoStream, for these codecs
            encoding.codec, rate=Fraction(fps).limit_denominator(1001), options=encoding.options
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = encoding.pixels
        if encoding.pixels.startswith("yuv"):
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED
        reformatter = VideoReformatter()
        for number, frame in enumerate(frames):
            picture = _to_picture(to_bytes(frame.float()), encoding.pixels, reformatter)
            container.mux(stream.encode(picture))
            if progress is not None:
                progress(number + 1, len(frames))
        container.mux(stream.encode(None))


def _to_picture(
    values: UInt8[Tensor, "..."], pixels: str, reformatter: "VideoReformatter"
) -> "VideoFrame":
    from av import VideoFrame

    if values.ndim == 2:
        return VideoFrame.from_ndarray(values.numpy(), format="gray")
    picture = VideoFrame.from_ndarray(values.contiguous().numpy(), format="rgb24")
    if not pixels.startswith("yuv"):
        return reformatter.reformat(picture, format=pixels)
    return reformatter.reformat(
        picture,
        format=pixels,
        src_colorspace=BT709,
        dst_colorspace=BT709,
        src_color_range=FULL,
        dst_color_range=LIMITED,
    )


def _as_float(frames: list[UInt8[np.ndarray, "..."]]) -> Float[Tensor, "..."]:
    values = torch.empty(len(frames), *frames[0].shape)
    for number, frame in enumerate(frames):
        torch.div(torch.from_numpy(frame.copy()), 255, out=values[number])
    return values
