"""Scene4D <-> one .safetensors file. docs/scene-files.md lists its keys, shapes and units."""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import FileFormatError, OutputError, decoding, replacing
from ..scene import Cameras, PointMaps, PointTracks, Scene4D
from ..shapes import check_shapes
from .encoding import (
    Encoded,
    decode_point_maps,
    decode_tracks,
    encode_point_maps,
    encode_tracks,
)

FORMAT = "more4d-scene"
VERSION = 1

_EXPECTED = "a More4D scene (.safetensors)"
_LIMIT_HEADER_BYTES = 16 * 2**20
_LIMIT_IMAGE_SIZE = 2**16

# Tensor name -> (dtypes it may have, its axes). Which of these tables apply: `_layout`.
_Layout = dict[str, tuple[str, str]]
_CAMERAS: _Layout = {
    "cameras.world_to_camera": ("F32", "frame 4 4"),
    "cameras.intrinsics": ("F32", "frame 3 3"),
}
_TRACKS: _Layout = {
    "tracks.first_positions": ("F32", "point 3"),
    "tracks.motion": ("F16 F32", "frame point 3"),
    "tracks.visibility": ("U8", "frame packed"),
    "tracks.colors": ("U8 F16", "point 3"),
}
_POINT_MAPS: _Layout = {
    "point_maps.valid": ("U8", "frame packed"),
    "point_maps.colors": ("U8 F16", "frame height width 3"),
}
_LOG_DEPTH: _Layout = {"point_maps.log_depth": ("F16", "frame height width")}
_POSITIONS: _Layout = {"point_maps.positions": ("F32", "frame height width 3")}
_CONFIDENCE: _Layout = {"point_maps.confidence": ("F16", "frame height width")}


def check_scene_name(path: str | os.PathLike[str]) -> None:
    """Refuse a name that `save_scene` would not write to.

    Raises:
        OutputError: the name does not end in .safetensors.
    """
    if Path(path).suffix.lower() != ".safetensors":
        raise OutputError(f"{path} does not end in .safetensors, as scene files do.")


def save_scene(path: str | os.PathLike[str], scene: Scene4D) -> None:
    """Write a scene; `scene_encoding` states how near the file is to it.

    Raises:
        OutputError: the name does not end in .safetensors, or the place cannot be written.
        ValueError: the scene is empty, or a visible or valid point is not finite.
    """
    check_scene_name(path)
    if scene.points.positions.numel() == 0:
        raise ValueError(
            f"The scene is empty: positions has shape {tuple(scene.points.positions.shape)}."
        )
    numbers: dict[str, float] = {
        "fps": scene.fps,
        "height": scene.cameras.height,
        "width": scene.cameras.width,
    }
    if isinstance(scene.points, PointTracks):
        encoded = encode_tracks(scene.points)
        if scene.points.grid_hw is not None:
            numbers["grid_height"], numbers["grid_width"] = scene.points.grid_hw
    else:
        encoded = encode_point_maps(scene.points, scene.cameras)
    tensors = encoded.tensors | {
        "cameras.world_to_camera": scene.cameras.world_to_camera.float(),
        "cameras.intrinsics": scene.cameras.intrinsics.float(),
    }
    metadata = {"format": FORMAT, "version": str(VERSION)}
    metadata |= {name: repr(value) for name, value in (numbers | encoded.numbers).items()}
    with replacing(path) as temporary:
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, temporary, metadata)


def load_scene(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Scene4D:
    """Read a scene that `save_scene` wrote. All its tensors are float32 or bool.

    Raises:
        FileFormatError: the file is damaged, truncated, or something else; says what.
    """
    header, metadata = _read_header(Path(path))
    layout = _layout(path, header, metadata)
    tensors = _read_tensors(path, layout, device)
    try:
        _check_axes(tensors, layout)
        numbers = _numbers(metadata)
        return _decode(Encoded(tensors=tensors, numbers=numbers))
    except ValueError as e:
        raise FileFormatError(f"{path} is a damaged More4D scene: {e}") from e


def _decode(encoded: Encoded) -> Scene4D:
    tensors, numbers = encoded.tensors, encoded.numbers
    cameras = Cameras(
        world_to_camera=tensors["cameras.world_to_camera"],
        intrinsics=tensors["cameras.intrinsics"],
        height=_image_size(numbers, "height"),
        width=_image_size(numbers, "width"),
    )
    points: PointTracks | PointMaps
    if "tracks.motion" in tensors:
        grid_hw = None
        if "grid_height" in numbers:
            grid_hw = (_image_size(numbers, "grid_height"), _image_size(numbers, "grid_width"))
        points = decode_tracks(encoded, grid_hw)
    else:
        points = decode_point_maps(encoded, cameras)
    return Scene4D(points=points, cameras=cameras, fps=numbers["fps"])


def _read_header(path: Path) -> tuple[dict[str, dict], dict[str, str]]:
    """Return tensor entries and metadata, with sizes checked before anything is allocated."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(size - 8, _LIMIT_HEADER_BYTES):
            raise FileFormatError(
                f"{path} ({size} bytes) begins with {start!r}, which no .safetensors file of that "
                f"size does: it is truncated or of another format. Expected {_EXPECTED}."
            )
        with decoding(path, _EXPECTED):
            header = json.loads(file.read(length))
    if not isinstance(header, dict) or not all(isinstance(item, dict) for item in header.values()):
        raise FileFormatError(f"{path} has a header of another kind; expected {_EXPECTED}.")
    metadata = header.pop("__metadata__", {})
    return header, metadata


def _layout(
    path: str | os.PathLike[str], header: dict[str, dict], metadata: dict[str, str]
) -> _Layout:
    """Choose the tables that the file follows.

    Raises:
        FileFormatError: it is no scene, of a newer version, or its tensors are not the expected.
    """
    if metadata.get("format") != FORMAT:
        names = ", ".join(list(header)[:3]) or "none"
        raise FileFormatError(
            f"{path} holds {len(header)} tensors such as {names}; it is not a More4D scene "
            f"(its metadata has no format={FORMAT!r}). If these are model weights, load them "
            "with the model that they belong to."
        )
    if metadata.get("version") != str(VERSION):
        raise FileFormatError(
            f"{path} is a More4D scene of version {metadata.get('version')!r}; this is version "
            f"{VERSION}. Update More4D to read it."
        )
    if "tracks.motion" in header:
        layout = _CAMERAS | _TRACKS
    else:
        layout = _CAMERAS | _POINT_MAPS
        layout |= _LOG_DEPTH if "point_maps.log_depth" in header else _POSITIONS
        layout |= _CONFIDENCE if "point_maps.confidence" in header else {}
    missing, unexpected = layout.keys() - header.keys(), header.keys() - layout.keys()
    if missing or unexpected:
        raise FileFormatError(
            f"{path} is a damaged More4D scene: missing tensors {sorted(missing)[:5]}, "
            f"unexpected tensors {sorted(unexpected)[:5]}."
        )
    for name, (dtypes, axes) in layout.items():
        if header[name].get("dtype") not in dtypes.split():
            raise FileFormatError(
                f"{path} is a damaged More4D scene: {name} ({axes}) has dtype "
                f"{header[name].get('dtype')!r}; expected {' or '.join(dtypes.split())}."
            )
    return layout


def _read_tensors(
    path: str | os.PathLike[str], layout: _Layout, device: torch.device | str
) -> dict[str, Tensor]:
    with decoding(path, _EXPECTED), safe_open(path, framework="pt", device="cpu") as file:
        tensors = {name: file.get_tensor(name) for name in layout}
    # float32 tensors end up in the scene, and may not stay tied to a file that can change.
    return {
        name: (tensor.clone() if tensor.dtype == torch.float32 else tensor).to(device)
        for name, tensor in tensors.items()
    }


def _check_axes(tensors: dict[str, Tensor], layout: _Layout) -> None:
    """Refuse shapes that disagree, before anything is decoded."""
    check_shapes(**{name: (tensors[name], axes) for name, (_, axes) in layout.items()})
    empty = next((name for name, tensor in tensors.items() if tensor.numel() == 0), None)
    if empty:
        raise ValueError(f"{empty} is empty, with shape {tuple(tensors[empty].shape)}.")


def _numbers(metadata: dict[str, str]) -> dict[str, float]:
    numbers = {}
    for name, text in metadata.items():
        if name == "format":
            continue
        try:
            numbers[name] = float(text)
        except (TypeError, ValueError):
            raise ValueError(f"its metadata has {name}={text!r}; expected a number.") from None
        if not abs(numbers[name]) <= 1e30:
            raise ValueError(f"its metadata has {name}={text!r}; expected a finite number.")
    return _Numbers(numbers)


class _Numbers(dict[str, float]):
    """Numbers by name, whose absence is a fault of the file."""

    def __missing__(self, name: str) -> float:
        raise ValueError(f"its metadata lacks {name}.")


def _image_size(numbers: dict[str, float], name: str) -> int:
    value = numbers[name]
    if not value.is_integer() or not 1 <= value <= _LIMIT_IMAGE_SIZE:
        raise ValueError(f"its {name} is {value}; expected 1 to {_LIMIT_IMAGE_SIZE} pixels.")
    return int(value)
