"""Camera files of other programs, both ways: `load_cameras`, `save_cameras`, `CAMERA_FORMATS`.

Every reader converts to our axes (OpenCV: +x right, +y down, +z forward), once, and raises
`FileFormatError`, and nothing else, for what a file may hold. The text formats are in
`camera_files/text_formats.py`, the JSON formats in `camera_files/json_formats.py`.
"""

import difflib
import io
import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..files import FileFormatError, OutputError, decoding, read_limited, replacing
from ..scene import Cameras
from .json_formats import (
    guess_json_format,
    read_load3d,
    read_transforms,
    write_load3d,
    write_transforms,
)
from .parts import MAX_FRAMES, CameraHints, checked_cameras, whole_size
from .text_formats import (
    guess_text_format,
    is_colmap_folder,
    read_colmap,
    read_realestate10k,
    read_tum,
    write_colmap,
    write_realestate10k,
    write_tum,
)

_LIMIT_NPZ_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraFormat:
    """One entry of `CAMERA_FORMATS`."""

    description: str
    """One line: who uses it, and what it cannot carry."""

    suffixes: tuple[str, ...]
    """File endings that choose this format when writing."""

    read: Callable[[Path, CameraHints], Cameras]
    """Reader; raises FileFormatError."""

    write: Callable[[Path, Cameras, float | None], None]
    """Writer; the last argument is the frame rate, None where unknown."""

    lacks: tuple[str, ...] = ()
    """What the caller must add when reading: `size_hw`, `intrinsics`."""


def load_cameras(
    path: str | os.PathLike[str],
    *,
    file_format: str | None = None,
    size_hw: tuple[int, int] | None = None,
    intrinsics: Float[Tensor, "3 3"] | None = None,
    like: Cameras | None = None,
) -> Cameras:
    """Read the cameras of another program, one per frame, as float32.

    The format is told from the name and the contents unless it is given. `size_hw` (height,
    width) and `intrinsics` (pixels) are for formats that do not carry them, and only for those;
    `like` is a camera, such as the input view, that fills in whatever a file does not carry.
    The world is the file's: `rebase_path` brings the path to an input view.

    Raises:
        FileFormatError: damaged, foreign, or in need of `size_hw` or `intrinsics`.
        FileNotFoundError: there is nothing at `path`.
        ValueError: the format is unknown, or the arguments are no size or no intrinsics.
    """
    path = Path(path)
    hints = CameraHints(size_hw=size_hw, intrinsics=intrinsics, like=like)
    if file_format is None:
        file_format = guess_camera_format(path)
    check_camera_format(file_format)
    return CAMERA_FORMATS[file_format].read(path, hints)


def save_cameras(
    path: str | os.PathLike[str],
    cameras: Cameras,
    *,
    file_format: str | None = None,
    fps: float | None = None,
) -> None:
    """Write cameras for another program. What the format cannot carry is logged.

    The format is told from the ending (.npz, .json for transforms, .tum; a name without ending is
    a COLMAP folder) unless it is given. `fps` is for formats with time stamps; without it they
    count frames.

    Raises:
        ValueError: the format is unknown, the ending does not tell it, or `fps` is not positive.
        OutputError: the place cannot be written.
    """
    path = Path(path)
    if fps is not None and not 0 < fps < math.inf:
        raise ValueError(f"fps is {fps}; expected a positive number.")
    if file_format is None:
        by_suffix = {s: name for name, f in CAMERA_FORMATS.items() for s in f.suffixes}
        file_format = by_suffix.get(path.suffix.lower())
        if file_format is None:
            raise OutputError(
                f"The ending of {path.name} does not tell the camera format. Pass file_format= "
                f"(--to on the command line), one of {', '.join(CAMERA_FORMATS)}."
            )
    check_camera_format(file_format)
    CAMERA_FORMATS[file_format].write(path, cameras, fps)


def check_camera_format(file_format: str) -> None:
    """Refuse a name that is no camera format.

    Raises:
        ValueError: suggests the nearest name.
    """
    if file_format not in CAMERA_FORMATS:
        near = difflib.get_close_matches(file_format.lower(), CAMERA_FORMATS, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"There is no camera format {file_format!r}; expected one of "
            f"{', '.join(CAMERA_FORMATS)}.{hint}"
        )


def guess_camera_format(path: str | os.PathLike[str]) -> str:
    """Tell the format of a file from its name and its contents.

    Raises:
        FileFormatError: it is none of ours.
        FileNotFoundError: there is nothing at `path`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no camera file at {path}.")
    suffix, guess = path.suffix.lower(), None
    if path.is_dir():
        guess = "colmap" if is_colmap_folder(path) else None
    elif suffix == ".npz":
        guess = "npz"
    elif suffix == ".json":
        guess = guess_json_format(path)
    else:
        guess = guess_text_format(path)
    if guess is None:
        raise FileFormatError(
            f"{path} is not a camera file of a known format. Known: "
            + "; ".join(f"{name} ({f.description})" for name, f in CAMERA_FORMATS.items())
            + "."
        )
    return guess


def read_npz(path: Path, hints: CameraHints) -> Cameras:
    """Read world_to_camera (frame, 4, 4), intrinsics (frame, 3, 3) in pixels, height, width."""
    expected = "an npz file with world_to_camera, intrinsics, height and width"
    data = read_limited(path, _LIMIT_NPZ_BYTES, expected)
    with decoding(path, expected), zipfile.ZipFile(io.BytesIO(data)) as archive:
        poses = _npz_member(archive, "world_to_camera", (4, 4))
        intrinsics = _npz_member(archive, "intrinsics", (3, 3))
        height, width = (float(_npz_member(archive, name, ())) for name in ("height", "width"))
    if len(poses) != len(intrinsics):
        raise FileFormatError(
            f"{path.name} has {len(poses)} poses and {len(intrinsics)} intrinsics; "
            "expected one of each per frame."
        )
    stated = (whole_size(height, f"{path.name}: height"), whole_size(width, f"{path.name}: width"))
    size_hw = hints.needed_size(path, stated)
    return checked_cameras(path, torch.from_numpy(poses), torch.from_numpy(intrinsics), size_hw)


def write_npz(path: Path, cameras: Cameras, fps: float | None) -> None:
    """Write every field of the cameras, in their precision; and fps where it is known."""
    values = {
        "world_to_camera": cameras.world_to_camera.cpu().numpy(),
        "intrinsics": cameras.intrinsics.cpu().numpy(),
        "height": np.int64(cameras.height),
        "width": np.int64(cameras.width),
        **({} if fps is None else {"fps": np.float64(fps)}),
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **values)


def _npz_member(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read one array, whose header is checked before anything of its size is allocated.

    Raises:
        FileFormatError: the array is missing, too large or of another shape.
        Exception: whatever the decoders raise for damaged data.
    """
    if f"{name}.npy" not in archive.namelist():
        raise FileFormatError(f"The npz file has no array {name}.")
    limit = 4096 + 8 * math.prod(shape) * MAX_FRAMES
    with archive.open(f"{name}.npy") as member:
        data = member.read(limit + 1)  # a zip bomb ends here
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise FileFormatError(f"{name} has a header that arrays of numbers do not need.")
    found, _, dtype = np.lib.format.read_array_header_1_0(stream)
    fits = found[1:] == shape and found[0] <= MAX_FRAMES if shape else math.prod(found) == 1
    if not fits or dtype.kind not in "fiu" or dtype.itemsize > 8:
        wanted = ("frame", *shape) if shape else "one number"
        raise FileFormatError(f"{name} has shape {found} and type {dtype}; expected {wanted}.")
    values = np.load(io.BytesIO(data), allow_pickle=False).astype(np.float64)
    if np.abs(values).max(initial=0) > 1e9:
        raise FileFormatError(f"{name} holds numbers above 1e9.")
    return values if shape else values.reshape(())


CAMERA_FORMATS: dict[str, CameraFormat] = {
    "transforms": CameraFormat(
        description="transforms.json of nerfstudio, Instant-NGP and Blender",
        suffixes=(".json",),
        read=read_transforms,
        write=write_transforms,
    ),
    "colmap": CameraFormat(
        description="folder with COLMAP's cameras.txt and images.txt",
        suffixes=("",),
        read=read_colmap,
        write=write_colmap,
    ),
    "realestate10k": CameraFormat(
        description="RealEstate10K and CameraCtrl text; no image size",
        suffixes=(),
        read=read_realestate10k,
        write=write_realestate10k,
        lacks=("size_hw",),
    ),
    "tum": CameraFormat(
        description="TUM trajectory text; no intrinsics, no image size",
        suffixes=(".tum",),
        read=read_tum,
        write=write_tum,
        lacks=("size_hw", "intrinsics"),
    ),
    "load3d": CameraFormat(
        description="ComfyUI LOAD3D_CAMERA dictionaries in JSON; no image size",
        suffixes=(),
        read=read_load3d,
        write=write_load3d,
        lacks=("size_hw",),
    ),
    "npz": CameraFormat(
        description="NumPy arrays world_to_camera, intrinsics, height, width",
        suffixes=(".npz",),
        read=read_npz,
        write=write_npz,
    ),
}
"""Name -> reader and writer."""
