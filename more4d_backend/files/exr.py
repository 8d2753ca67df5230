"""One float channel from and to OpenEXR, through the FFmpeg codec inside PyAV.

FFmpeg knows only channels named Y or R, G, B. Depth passes come as Z, V or `ViewLayer.Depth.Z`,
so the header is parsed here (which also bounds what the codec may allocate) and the depth channel
is renamed to Y before the codec sees it. File layout: openexr.com, "OpenEXR File Layout".
"""

import struct
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Float32

MAGIC = b"\x76\x2f\x31\x01"

_DEPTH_NAMES = ("z", "v", "depth", "y")
_LINES_PER_CHUNK = {0: 1, 1: 1, 2: 1, 3: 16, 4: 32, 5: 16, 6: 32, 7: 32}
_PIZ = 4
_DWA = (8, 9)
_NOT_SCANLINES = 0x200 | 0x800 | 0x1000
_UINT32, _FLOAT16, _FLOAT32 = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """What the header of a single-part scanline file says."""

    channels: dict[str, int]
    """Pixel type (0 uint32, 1 float16, 2 float32) by channel name."""

    channels_at: slice
    """Where the bytes of the channel list are, without the size field before it."""

    compression: int
    width: int
    height: int

    end: int
    """Where the table of chunk offsets begins."""


def encode_exr(values: Float32[np.ndarray, "height width"]) -> bytes:
    """Encode one float32 channel Y, without loss (ZIP)."""
    import av

    codec = av.CodecContext.create("exr", "w")
    codec.height, codec.width = values.shape
    codec.pix_fmt = "grayf32le"
    codec.time_base = Fraction(1)
    codec.options = {"compression": "zip16", "format": "float"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), format="grayf32le")
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


def decode_exr(data: bytes, max_pixels: int) -> Float32[np.ndarray, "height width"]:
    """Decode the depth channel (Z, V, depth or Y, in any layer), or three equal R, G, B.

    Raises:
        ValueError: the header is damaged, or there is no such channel.
        Exception: whatever the codec raises for damaged pixels.
    """
    import av

    header = _parse(data)
    if min(header.width, header.height) < 1 or header.width * header.height > max_pixels:
        raise ValueError(
            f"the header claims {header.width}x{header.height} pixels; expected 1 to "
            f"{max_pixels} in all"
        )
    channel = _depth_channel(header)
    if channel is not None:
        data = _with_channel_named_y(data, header, channel)
    codec = av.CodecContext.create("exr", "r")
    codec.thread_count = 1
    codec.options = {"err_detect": "explode"}
    frames = [*codec.decode(av.Packet(data)), *codec.decode(None)]
    if len(frames) != 1 or (frames[0].height, frames[0].width) != (header.height, header.width):
        raise ValueError("the codec found no picture of the size that the header claims")
    return _one_channel(frames[0])


def _one_channel(frame) -> Float32[np.ndarray, "height width"]:
    # Planes are read as they are: FFmpeg's format conversion would clip at 1.
    name = frame.format.name
    kinds = {"grayf32le": "<f4", "gbrpf32le": "<f4", "grayf16le": "<f2", "gbrpf16le": "<f2"}
    if name not in kinds:
        raise ValueError(f"it holds {name} pixels; expected one float channel")
    planes = [
        np.frombuffer(plane, kinds[name]).reshape(frame.height, -1)[:, : frame.width]
        for plane in frame.planes
    ]
    if any(not np.array_equal(planes[0], other, equal_nan=True) for other in planes[1:]):
        raise ValueError("its red, green and blue differ; it is a picture, not a depth map")
    return planes[0].astype(np.float32)


def _depth_channel(header: _Header) -> str | None:
    """Name the channel to read; None when the codec can read R, G, B as they are."""
    if header.compression not in _LINES_PER_CHUNK:
        kind = "DWA (lossy)" if header.compression in _DWA else f"number {header.compression}"
        raise ValueError(f"its compression is {kind}; expected ZIP, PIZ, RLE or none")
    if header.compression == _PIZ and list(header.channels.values()).count(_FLOAT32) > 1:
        # Seen with FFmpeg 8 on noisy channels: other numbers than were written, and no error.
        raise ValueError(
            "it has several float32 channels under PIZ, which FFmpeg misreads; use ZIP"
        )
    for wanted in _DEPTH_NAMES:
        found = [name for name in header.channels if name.split(".")[-1].lower() == wanted]
        if len(found) == 1:
            if header.channels[found[0]] == _UINT32:
                raise ValueError(f"channel {found[0]} holds integers; expected float")
            return found[0]
    if {"R", "G", "B"} <= header.channels.keys():
        return None
    names = ", ".join(list(header.channels)[:8])
    raise ValueError(f"its channels are {names}; expected one named Z, V, depth or Y")


def _with_channel_named_y(data: bytes, header: _Header, channel: str) -> bytes:
    """Rename `channel` to Y, and every other channel to a name that the codec skips."""
    old = data[header.channels_at]
    new, at = b"", 0
    for number, name in enumerate(header.channels):
        at += len(name.encode("latin-1")) + 1
        new += (b"Y" if name == channel else b"skip.%d" % number) + b"\0" + old[at : at + 16]
        at += 16
    new += b"\0"
    grown = len(new) - len(old)
    chunks = -(-header.height // _LINES_PER_CHUNK[header.compression])
    table_end = header.end + 8 * chunks
    if table_end > len(data):
        raise ValueError("it ends inside its table of offsets; it is truncated")
    offsets = np.frombuffer(data[header.end : table_end], "<u8") + np.uint64(grown % 2**64)
    start, stop = header.channels_at.start, header.channels_at.stop
    return b"".join(
        [data[: start - 4], struct.pack("<I", len(new)), new, data[stop : header.end],
         offsets.astype("<u8").tobytes(), data[table_end:]]
    )  # fmt: skip


def _parse(data: bytes) -> _Header:
    if not data.startswith(MAGIC):
        raise ValueError("it does not begin as OpenEXR files do")
    try:
        (version,) = struct.unpack_from("<I", data, 4)
        if version & _NOT_SCANLINES:
            raise ValueError("it is tiled, deep or multi-part; expected plain scanlines")
        attributes, end = _attributes(data)
        left, top, right, bottom = struct.unpack_from("<4i", data, attributes["dataWindow"].start)
        return _Header(
            channels=_channels(data[attributes["channels"]]),
            channels_at=attributes["channels"],
            compression=data[attributes["compression"].start],
            width=right - left + 1,
            height=bottom - top + 1,
            end=end,
        )
    except (struct.error, IndexError, KeyError) as e:
        raise ValueError(f"its header is damaged or truncated ({e!r})") from e


def _attributes(data: bytes) -> tuple[dict[str, slice], int]:
    """Where each attribute's value is, by name; and where the header ends."""
    found: dict[str, slice] = {}
    at = 8
    while data[at] != 0:
        name_end = data.index(b"\0", at)
        type_end = data.index(b"\0", name_end + 1)
        (size,) = struct.unpack_from("<I", data, type_end + 1)
        value = slice(type_end + 5, type_end + 5 + size)
        if value.stop >= len(data):
            raise ValueError("its header claims more bytes than the file has")
        found[data[at:name_end].decode("latin-1")] = value
        at = value.stop
    return found, at + 1


def _channels(value: bytes) -> dict[str, int]:
    found: dict[str, int] = {}
    at = 0
    while value[at] != 0:
        name_end = value.index(b"\0", at)
        kind, _, x_sampling, y_sampling = struct.unpack_from("<iIii", value, name_end + 1)
        name = value[at:name_end].decode("latin-1")
        if (
            kind not in (_UINT32, _FLOAT16, _FLOAT32)
            or (x_sampling, y_sampling) != (1, 1)
            or name in found
        ):
            raise ValueError(f"its channel {name!r} is damaged or subsampled")
        found[name] = kind
        at = name_end + 17
    return found
