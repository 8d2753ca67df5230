"""Point clouds and 3D Gaussians of any program, from PLY files."""

import io
import itertools
import logging
import math
import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..files import FileFormatError, decoding, read_limited
from ..geometry import focal_from_fov, intrinsics_from_focal
from ..scene import Cameras, PointTracks, Scene4D
from .points import SH_DEGREE_0

_log = logging.getLogger(__name__)

_EXPECTED = "a PLY point cloud"
_LIMIT_BYTES = 4 * 2**30
_LIMIT_HEADER_BYTES = 2**16
_LARGEST = 1e15
_KINDS = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2",
    "ushort": "u2", "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_RGB = ("red", "green", "blue")
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    is_text: bool
    count: int
    """Number of vertices."""

    dtype: np.dtype
    """One vertex."""

    end: int
    """Where the vertices begin."""


def load_ply(path: str | os.PathLike[str]) -> PointTracks:
    """Read the vertices of a PLY file, text or binary, as points of one frame.

    Colours are read from red, green, blue (integers, or floats in [0, 1]) or from f_dc_0..2 of
    3D Gaussians; without either, points are grey. Vertices that are NaN or beyond
    1e15, whose squares float32 cannot hold, become invisible.

    Raises:
        FileFormatError: not PLY, damaged, truncated, or without x, y, z or vertices.
    """
    data = read_limited(path, _LIMIT_BYTES, _EXPECTED)
    with decoding(path, _EXPECTED):
        header = _parse(data)
        columns = _read_rows(data, header) if header.count else {}
        if not columns:
            raise ValueError("it has no vertices")
        positions = _joined(columns, ("x", "y", "z"))
        colors = _colors(columns, header.dtype)
    if colors is None:
        _log.info("%s has no colours; its points are grey.", path)
        colors = torch.full_like(positions, 0.5)
    visible = (positions.abs() <= _LARGEST).all(-1)
    if not visible.all():
        _log.warning("%s: %d vertices are NaN or beyond %g.", path, int((~visible).sum()), _LARGEST)
    return PointTracks(positions=positions[None], colors=colors, visibility=visible[None])


def load_ply_scene(
    path: str | os.PathLike[str], cameras: Cameras | None = None, *, fps: float = 24.0
) -> Scene4D:
    """Read a PLY file as a scene of one frame.

    Without `cameras`, a camera of 1280x720 pixels and 60 degrees looks along +z (OpenCV axes) at
    the middle of the points, from where it sees all but the outermost of them.

    Raises:
        FileFormatError: as `load_ply`, or no vertex is finite.
    """
    tracks = load_ply(path)
    if not tracks.visibility.any():
        raise FileFormatError(f"{path} has no finite vertices; expected {_EXPECTED}.")
    if cameras is None:
        cameras = _facing_camera(tracks.positions[tracks.visibility])
        _log.info("%s names no camera; one that faces all points was made.", path)
    return Scene4D(points=tracks, cameras=cameras, fps=fps)


def _facing_camera(positions: Tensor) -> Cameras:
    height, width, fov_rad = 720, 1280, math.radians(60)
    middle = positions.median(0).values
    radius = (positions - middle).norm(dim=-1).float().sort().values[int(0.98 * len(positions))]
    distance = radius.clamp_min(1e-6) / math.tan(fov_rad / 2) * width / height + radius
    world_to_camera = torch.eye(4)
    world_to_camera[:3, 3] = -middle
    world_to_camera[2, 3] += distance
    focal_px = torch.tensor([focal_from_fov(fov_rad, width)])
    return Cameras(
        world_to_camera=world_to_camera[None],
        intrinsics=intrinsics_from_focal(focal_px, height, width),
        height=height,
        width=width,
    )


def _parse(data: bytes) -> _Header:
    """Read the header; the vertices must come first, as in every point cloud."""
    head = data[:_LIMIT_HEADER_BYTES]
    stop = head.find(b"end_header")
    if not head.startswith(b"ply") or stop < 0:
        raise ValueError(f"it begins with {head[:8]!r} and has no header of a PLY file")
    lines = [line.split() for line in head[:stop].decode("ascii").splitlines()]
    formats = [words[1] for words in lines if words[:1] == ["format"]]
    at = next((i for i, words in enumerate(lines) if words[:1] == ["element"]), len(lines))
    if (
        len(formats) != 1
        or formats[0] not in _BYTE_ORDERS
        or lines[at][:2] != ["element", "vertex"]
    ):
        raise ValueError("its header names no known format, or another element before the vertices")
    count, order = int(lines[at][2]), _BYTE_ORDERS[formats[0]]
    fields: list[tuple[str, str]] = []
    for words in lines[at + 1 :]:
        if words[:1] == ["element"]:
            break
        if words[:1] == ["property"]:
            if len(words) != 3 or words[1] not in _KINDS:
                raise ValueError(f"its vertices have a property {' '.join(words[1:])!r}")
            fields.append((words[2], order + _KINDS[words[1]]))
    newline = data.find(b"\n", stop)
    if newline < 0 or count < 0 or not fields:
        raise ValueError("its header ends early")
    dtype = np.dtype(fields)
    # A text vertex has at least one digit and one space for each property.
    smallest = 2 * len(fields) if formats[0] == "ascii" else dtype.itemsize
    if count * smallest > len(data) - newline:
        raise ValueError(
            f"it claims {count} vertices, and has {len(data) - newline - 1} bytes for them: "
            "it is truncated"
        )
    return _Header(is_text=formats[0] == "ascii", count=count, dtype=dtype, end=newline + 1)


def _read_rows(data: bytes, header: _Header) -> dict[str, np.ndarray]:
    """Read the vertices, one column per property."""
    names = header.dtype.names or ()
    if not header.is_text:
        rows = np.frombuffer(data, header.dtype, header.count, header.end)
        return {name: rows[name] for name in names}
    lines = itertools.islice(io.BytesIO(data[header.end :]), header.count)
    table = np.loadtxt(lines, comments=None, ndmin=2, encoding="ascii")
    if table.shape != (header.count, len(names)):
        raise ValueError(f"it has {len(table)} vertices of the {header.count} that it claims")
    return dict(zip(names, table.T, strict=True))


def _colors(columns: dict[str, np.ndarray], dtype: np.dtype) -> Tensor | None:
    if {"red", "green", "blue"} <= columns.keys():
        largest = [np.iinfo(dtype[n]).max if dtype[n].kind in "iu" else 1 for n in _RGB]
        colors = _joined(columns, _RGB) / torch.tensor(largest, dtype=torch.float32)
    elif "f_dc_0" in columns:
        colors = 0.5 + SH_DEGREE_0 * _joined(columns, ("f_dc_0", "f_dc_1", "f_dc_2"))
    else:
        return None
    return colors.nan_to_num(0.5).clamp(0, 1)


def _joined(columns: dict[str, np.ndarray], names: tuple[str, ...]) -> Tensor:
    missing = [name for name in names if name not in columns]
    if missing:
        raise ValueError(f"its vertices have no {', '.join(missing)}")
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, and checked
        return torch.from_numpy(
            np.stack([columns[name].astype(np.float32) for name in names], axis=-1)
        )
