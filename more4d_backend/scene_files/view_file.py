"""Scene4D -> the compact file that the browser draws, and back. docs/view-files.md describes it.

Coordinates have 16 bits. They are bent towards the input view, so that near points, on which
errors would show, have the finest steps, and no far point spoils the rest.
"""

import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..camera_paths import scene_scale
from ..camera_paths.edits import CameraPathError
from ..files import FileFormatError, decoding, read_limited, replacing
from ..scene import Cameras, PointMaps, PointTracks, Scene4D
from .encoding import pack_bits, unpack_bits

log = logging.getLogger(__name__)

MAGIC = b"M4DVIEW\0"
VERSION = 1
SUFFIX = ".m4dview"

_MISSING = 65535
_MIDDLE, _STEPS = 32767, 32768
_ALIGNMENT = 8
_EXPECTED = "a More4D view file (.m4dview)"
_LIMIT_BYTES = 2**32
_SAMPLE = 2**16

Progress = Callable[[int, int], None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSettings:
    """How much of a scene goes into a view file."""

    stride: int = 1
    """Every how many pixels each way a point is kept; 1 keeps all."""

    limit_bytes: int = 2**29
    """The stride grows until the file is no larger than this."""

    def __post_init__(self) -> None:
        if self.stride < 1 or self.limit_bytes < 1:
            raise ValueError(
                f"stride is {self.stride} and limit_bytes {self.limit_bytes}; expected at least 1."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewFile:
    """What a view file holds."""

    scene: Scene4D
    """Tracks without a grid. Positions of points that were missing are NaN."""

    camera_path: Cameras | None
    """The path that is shown with the scene."""

    stride: int
    """Every how many pixels each way a point was kept."""

    num_points_of_scene: int
    """Points of a frame before that."""


def step_of_view(scale: float, distance: float) -> float:
    """Return the largest error of a coordinate so far, on its axis, from the input camera.

    Half a step of u = d / (1 + |d|), d = distance / scale, brought back to world units; infinite
    beyond 65 535 times the scale.
    """
    away = 1 + distance / scale
    half_step = away / _STEPS / 2
    return scale * away * half_step / (1 - half_step) if half_step < 1 else math.inf


def write_view(
    path: str | os.PathLike[str],
    scene: Scene4D,
    camera_path: Cameras | None = None,
    settings: ViewSettings | None = None,
    progress: Progress = None,
) -> int:
    """Write what the viewer needs of a scene; return the stride that was taken.

    Empty scenes are allowed, and points that are not finite: they are marked as missing.

    Args:
        path: is replaced.
        scene: any.
        camera_path: what is drawn with it.
        settings: how much of it.
        progress: called with (frames done, all frames); raising from it interrupts.

    Raises:
        OutputError: the place cannot be written.
    """
    stride = _stride(scene, settings or ViewSettings())
    points = _thinned(scene.points, stride)
    center = scene.cameras.camera_to_world[0, :3, 3].double().cpu()
    scale = _typical_distance(points, center)
    num_frames, num_points = points.positions.shape[:2]
    header = {
        "fps": scene.fps,
        "is_tracks": isinstance(scene.points, PointTracks),
        "num_frames": num_frames,
        "num_points": num_points,
        "num_points_of_scene": math.prod(scene.points.positions.shape[1:-1]),
        "stride": stride,
        "center": center.tolist(),
        "scale": scale,
        "scene_scale": _scene_scale(scene),
        "cameras": _camera_table(scene.cameras),
        "camera_path": None if camera_path is None else _camera_table(camera_path),
    }
    header["blocks"] = _blocks(num_frames, num_points, len(points.colors))
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(_head(header))
        for done, positions in enumerate(points.positions, 1):
            file.write(_quantized(positions, center, scale).numpy().tobytes())
            if progress is not None:
                progress(done, num_frames)
        _align(file)
        for colors in points.colors:
            file.write(_bytes(colors).numpy().tobytes())
        _align(file)
        file.write(pack_bits(points.shown).numpy().tobytes())
    return stride


def read_view(path: str | os.PathLike[str]) -> ViewFile:
    """Read a view file, as the browser does. For tests and other programs.

    Raises:
        FileFormatError: the file is damaged, truncated, or something else; says what.
    """
    path = Path(path)
    data = read_limited(path, _LIMIT_BYTES, _EXPECTED)
    if data[:8] != MAGIC:
        raise FileFormatError(f"{path} begins with {data[:8]!r}; expected {_EXPECTED}.")
    version, length = np.frombuffer(data[8:16].ljust(8, b"\0"), "<u4").tolist()
    if version != VERSION:
        raise FileFormatError(f"{path} is of version {version}; this program reads {VERSION}.")
    with decoding(path, _EXPECTED):
        return _decoded(json.loads(data[16 : 16 + length]), data, 16 + length)


def forget_oldest_views(folder: Path, kept_bytes: int) -> None:
    """Remove view files of a folder, the oldest first, until the rest is small enough.

    Pages and tabs may still show scenes of earlier runs; a host empties its temporary folder only
    when it starts.
    """
    files = [(file.stat(), file) for file in folder.glob(f"*{SUFFIX}")]
    size = sum(stat.st_size for stat, _ in files)
    for stat, file in sorted(files, key=lambda entry: entry[0].st_mtime):
        if size <= kept_bytes:
            return
        try:
            file.unlink(missing_ok=True)
        except PermissionError:  # Windows, while somebody reads it
            log.info("%s is in use and stays.", file)
            continue
        size -= stat.st_size


@dataclass(frozen=True, slots=True, kw_only=True)
class _Points:
    positions: Float[Tensor, "frame point 3"]
    colors: Float[Tensor, "colored point 3"]
    shown: Tensor


def _thinned(points: PointTracks | PointMaps, stride: int) -> _Points:
    """Keep every so many pixels each way; of points without a grid, as large a share."""
    if isinstance(points, PointMaps):
        kept = (slice(None), slice(None, None, stride), slice(None, None, stride))
        return _Points(
            positions=points.positions[kept].flatten(1, 2),
            colors=points.colors[kept].flatten(1, 2),
            shown=points.valid[kept].flatten(1, 2),
        )
    index = _kept_tracks(points, stride)
    return _Points(
        positions=points.positions[:, index],
        colors=points.colors[None, index],
        shown=points.visibility[:, index],
    )


def _kept_tracks(points: PointTracks, stride: int) -> Tensor | slice:
    if stride == 1:
        return slice(None)
    if points.grid_hw is None:
        return slice(None, None, stride**2)
    height, width = points.grid_hw
    numbers = torch.arange(height * width, device=points.positions.device)
    return numbers.view(height, width)[::stride, ::stride].flatten()


def _stride(scene: Scene4D, settings: ViewSettings) -> int:
    points = scene.points
    num_points = math.prod(points.positions.shape[1:-1])
    each = points.num_frames * (6 + 1 / 8) + 3
    if isinstance(points, PointMaps):
        each += 3 * (points.num_frames - 1)
    needed = math.ceil(math.sqrt(num_points * each / settings.limit_bytes))
    return max(settings.stride, needed)


def _typical_distance(points: _Points, center: Float[Tensor, "3"]) -> float:
    """Median of a sample of all points, each on its longest axis; 1 where there is none.

    Steps of that scale are the finest for a point there as the camera sees it: what
    `step_of_view` gives, divided by the distance, is smallest where both are equal.
    """
    flat = points.positions.reshape(-1, 3)
    flat = flat[:: max(1, len(flat) // _SAMPLE)].cpu().double()
    distances = (flat - center).abs().amax(-1)
    distances = distances[distances.isfinite()]
    median = float(distances.median()) if len(distances) else 0.0
    return median if 0 < median < math.inf else 1.0


def _quantized(
    positions: Float[Tensor, "point 3"], center: Float[Tensor, "3"], scale: float
) -> Tensor:
    """Return numbers of 16 bits, little-endian; 65535 on all axes where a point is missing."""
    distance = (positions.float().cpu() - center.float()) / scale
    bent = distance / (1 + distance.abs())
    steps = (bent * _STEPS).round_().add_(_MIDDLE).clamp_(0, _MISSING - 1)
    missing = ~positions.isfinite().all(-1).cpu()
    steps[missing] = _MISSING
    return steps.to(torch.int32).to(torch.uint16)


def _scene_scale(scene: Scene4D) -> float | None:
    """None where the input view sees nothing."""
    try:
        scale = scene_scale(scene)
    except CameraPathError:
        return None
    return scale if math.isfinite(scale) else None


def _camera_table(cameras: Cameras) -> dict[str, Any]:
    K = cameras.intrinsics.double().cpu()
    return {
        "width": cameras.width,
        "height": cameras.height,
        "world_to_camera": cameras.world_to_camera.double().cpu().flatten(1).tolist(),
        "focal_px": K[:, [0, 1], [0, 1]].tolist(),
        "center_px": K[:, :2, 2].tolist(),
    }


def _blocks(num_frames: int, num_points: int, colored: int) -> dict[str, dict[str, Any]]:
    sizes = {
        "positions": ([num_frames, num_points, 3], 2),
        "colors": ([colored, num_points, 3], 1),
        "shown": ([num_frames, -(-num_points // 8)], 1),
    }
    blocks, offset = {}, 0
    for name, (shape, width) in sizes.items():
        blocks[name] = {"offset": offset, "shape": shape}
        offset += _rounded_up(math.prod(shape) * width)
    return blocks


def _head(header: dict[str, Any]) -> bytes:
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode("ascii")
    text = text.ljust(_rounded_up(len(text)))
    return MAGIC + np.array([VERSION, len(text)], "<u4").tobytes() + text


def _rounded_up(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _align(file: BinaryIO) -> None:
    file.write(b"\0" * (_rounded_up(file.tell()) - file.tell()))


def _bytes(colors: Float[Tensor, "point 3"]) -> UInt8[Tensor, "point 3"]:
    return (colors.float().cpu().nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)


def _decoded(header: dict[str, Any], data: bytes, start: int) -> ViewFile:
    raw = {
        name: np.frombuffer(
            data,
            "<u2" if name == "positions" else "u1",
            math.prod(block["shape"]),
            start + block["offset"],
        ).reshape(block["shape"])
        for name, block in header["blocks"].items()
    }
    num_frames, num_points = header["num_frames"], header["num_points"]
    steps = torch.from_numpy(raw["positions"].astype(np.float64))
    bent = (steps - _MIDDLE) / _STEPS
    positions = bent / (1 - bent.abs()) * header["scale"] + torch.tensor(header["center"])
    positions[steps == _MISSING] = torch.nan
    colors = torch.from_numpy(raw["colors"].astype(np.float32)) / 255
    shown = unpack_bits(torch.from_numpy(raw["shown"].copy()), (num_frames, num_points))
    points: PointTracks | PointMaps
    if header["is_tracks"]:
        points = PointTracks(positions=positions.float(), colors=colors[0], visibility=shown)
    else:
        points = PointMaps(
            positions=positions.float()[:, None], colors=colors[:, None], valid=shown[:, None]
        )
    path = header["camera_path"]
    return ViewFile(
        scene=Scene4D(points=points, cameras=_cameras(header["cameras"]), fps=header["fps"]),
        camera_path=None if path is None else _cameras(path),
        stride=header["stride"],
        num_points_of_scene=header["num_points_of_scene"],
    )


def _cameras(table: dict[str, Any]) -> Cameras:
    world_to_camera = torch.tensor(table["world_to_camera"], dtype=torch.float32)
    intrinsics = torch.zeros(len(world_to_camera), 3, 3)
    intrinsics[:, [0, 1], [0, 1]] = torch.tensor(table["focal_px"], dtype=torch.float32)
    intrinsics[:, :2, 2] = torch.tensor(table["center_px"], dtype=torch.float32)
    intrinsics[:, 2, 2] = 1.0
    return Cameras(
        world_to_camera=world_to_camera.view(-1, 4, 4),
        intrinsics=intrinsics,
        height=table["height"],
        width=table["width"],
    )
