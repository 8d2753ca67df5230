"""Tracks from and to npz files with the keys of TAPVid-3D (Koppula et al. 2024).

TAPVid-3D keeps positions in the camera space of each frame; here they become world coordinates.
Its keys: tracks_XYZ [frame point 3], visibility [frame point], queries_xyt [point 3] (pixels and
frame), fx_fy_cx_cy [4], extrinsics_w2c [frame 4 4] (missing for static cameras),
images_jpeg_bytes [frame]. We add what it has no place for, and others ignore: colors [point 3]
uint8, fps, size_hw [2].
"""

import io
import logging
import math
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..files import FileFormatError, OutputError, decoding, replacing
from ..files.images import open_picture_bytes, to_bytes
from ..geometry import project, transform_points
from ..scene import Cameras, PointTracks, Scene4D
from ..shapes import check_shapes

_log = logging.getLogger(__name__)

DEFAULT_FPS = 30.0
"""TAPVid-3D stores no frame rate; its ADT and Panoptic Studio videos have this one."""

_EXPECTED = "a TAPVid-3D npz"
_NAMES = {
    "tracks": ("tracks_XYZ", "tracks_xyz"),
    "visibility": ("visibility",),
    "queries": ("queries_xyt",),
    "intrinsics": ("fx_fy_cx_cy", "intrinsics"),
    "extrinsics": ("extrinsics_w2c",),
    "images": ("images_jpeg_bytes",),
    "colors": ("colors",),
    "fps": ("fps",),
    "size_hw": ("size_hw",),
}  # the first name of each is what the released files have; the second is their README's
_LIMIT_BYTES = 8 * 2**30
_LIMIT_EXPANSION = 100  # of tracks that stand still; a zip bomb reaches 1000
_MAX_SIZE = 2**16


def save_tapvid3d(
    path: str | os.PathLike[str],
    scene: Scene4D,
    *,
    frames: Float[Tensor, "frame height width 3"] | None = None,
) -> None:
    """Write tracks, with the video that they belong to when `frames` (sRGB in [0, 1]) are given.

    A point's query is the first frame that sees it; a point that none sees has its frame 0.

    Raises:
        ValueError: the scene has no tracks, or the focal length changes over frames.
        OutputError: the name does not end in .npz, or the place cannot be written.
    """
    tracks, cameras = scene.points, scene.cameras
    if not isinstance(tracks, PointTracks):
        raise ValueError(
            "The scene holds point maps, whose points have no identity over frames; TAPVid-3D "
            "holds tracks. Save it as .safetensors, PLY or USD."
        )
    if (cameras.intrinsics != cameras.intrinsics[:1]).any():
        raise ValueError("The intrinsics change over frames; TAPVid-3D holds one camera matrix.")
    if Path(path).suffix.lower() != ".npz":
        raise OutputError(f"{path} ends in {Path(path).suffix!r}; expected .npz.")
    in_camera = transform_points(tracks.positions, cameras.world_to_camera[:, None])
    K = cameras.intrinsics[0]
    arrays: dict[str, np.ndarray] = {
        "tracks_XYZ": _numpy(in_camera),
        "visibility": tracks.visibility.cpu().numpy(),
        "queries_xyt": _numpy(_queries(in_camera, tracks.visibility, K)),
        "fx_fy_cx_cy": _numpy(torch.stack([K[0, 0], K[1, 1], K[0, 2], K[1, 2]])),
        "extrinsics_w2c": _numpy(cameras.world_to_camera),
        "colors": to_bytes(tracks.colors).numpy(),
        "fps": np.array(scene.fps),
        "size_hw": np.array([cameras.height, cameras.width]),
    }
    if frames is not None:
        arrays["images_jpeg_bytes"] = _to_jpegs(frames, scene)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def load_tapvid3d(path: str | os.PathLike[str], *, fps: float | None = None) -> Scene4D:
    """Read tracks as a scene, in world coordinates.

    Colours are those of the file, or of the video at each query, or grey. Without extrinsics the
    camera stands still at the origin. What had to be assumed is logged.

    Raises:
        FileFormatError: not such a file, damaged, or expanding to more memory than any would.
    """
    arrays = _read_arrays(Path(path))
    try:
        return _scene(arrays, fps, str(path))
    except FileFormatError:
        raise
    except ValueError as e:
        raise FileFormatError(f"{path} is a damaged TAPVid-3D npz: {e}") from e


def _scene(arrays: dict[str, np.ndarray], fps: float | None, path: str) -> Scene4D:
    in_camera = _floats(arrays, "tracks", "frame point 3")
    num_frames, num_points = in_camera.shape[:2]
    visibility = torch.from_numpy(arrays["visibility"].astype(bool))
    check_shapes(tracks_XYZ=(in_camera, "frame point 3"), visibility=(visibility, "frame point"))
    intrinsics = _floats(arrays, "intrinsics", "4").double()
    fx, fy, cx, cy = intrinsics.tolist()
    height, width = _size_hw(arrays, (cx, cy), path)
    K = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    if "extrinsics" in arrays:
        world_to_camera = _floats(arrays, "extrinsics", "frame 4 4")
    else:
        _log.info("%s has no extrinsics: the camera is taken to stand still.", path)
        world_to_camera = torch.eye(4).expand(num_frames, 4, 4)
    cameras = Cameras(
        world_to_camera=world_to_camera,
        intrinsics=K.expand(num_frames, 3, 3),
        height=height,
        width=width,
    )
    return Scene4D(
        points=PointTracks(
            positions=transform_points(in_camera, cameras.camera_to_world[:, None]),
            colors=_colors(arrays, num_points, path),
            visibility=visibility & in_camera.isfinite().all(-1),
        ),
        cameras=cameras,
        fps=fps if fps is not None else _fps(arrays),
    )


def _fps(arrays: dict[str, np.ndarray]) -> float:
    return _floats(arrays, "fps", "").item() if "fps" in arrays else DEFAULT_FPS


def _queries(
    in_camera: Float[Tensor, "frame point 3"], visibility: Tensor, K: Float[Tensor, "3 3"]
) -> Float[Tensor, "point 3"]:
    frame = visibility.int().argmax(0)
    pixels, _ = project(in_camera[frame, torch.arange(len(frame), device=frame.device)], K)
    return torch.cat([pixels, frame[:, None].to(pixels)], dim=-1)


def _to_jpegs(frames: Float[Tensor, "frame height width 3"], scene: Scene4D) -> np.ndarray:
    from PIL import Image

    expected = (scene.num_frames, scene.cameras.height, scene.cameras.width, 3)
    if tuple(frames.shape) != expected:
        raise ValueError(f"frames has shape {tuple(frames.shape)}; expected {expected}.")
    pictures = []
    for frame in frames:
        stream = io.BytesIO()
        Image.fromarray(to_bytes(frame).numpy()).save(stream, "JPEG", quality=95, subsampling=0)
        pictures.append(stream.getvalue())
    return np.array(pictures)  # fixed-width bytes, as the released files have; no pickle


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays that we use, each checked against its header before it is allocated."""
    size = path.stat().st_size
    budget = min(_LIMIT_BYTES, max(2**28, _LIMIT_EXPANSION * size))
    arrays: dict[str, np.ndarray] = {}
    with decoding(path, _EXPECTED), zipfile.ZipFile(path) as archive:
        members = set(archive.namelist())
        for name, spellings in _NAMES.items():
            member = next((f"{s}.npy" for s in spellings if f"{s}.npy" in members), None)
            if member is None:
                continue
            array = _read_array(archive, member, budget)
            if array is not None:
                arrays[name] = array
                budget -= array.nbytes
    missing = [_NAMES[n][0] for n in ("tracks", "visibility", "intrinsics") if n not in arrays]
    if missing:
        found = ", ".join(sorted(members)[:5])
        raise FileFormatError(
            f"{path} holds {found}, and not {', '.join(missing)} as arrays of numbers; expected "
            f"{_EXPECTED}."
        )
    return arrays


def _read_array(archive: zipfile.ZipFile, member: str, budget: int) -> np.ndarray | None:
    """Read one array; None when it holds Python objects, which would need pickle."""
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with archive.open(member) as stream:
        shape, is_fortran, dtype = read_header[np.lib.format.read_magic(stream)](stream)
        if dtype.hasobject:
            _log.warning("%s holds Python objects, which are not read.", member)
            return None
        if dtype.kind not in "biufS":
            raise ValueError(f"{member} holds {dtype}; expected numbers")
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes > budget:
            raise ValueError(f"{member} expands to {num_bytes} bytes; expected at most {budget}")
        data = stream.read(num_bytes + 1)
    if len(data) != num_bytes:
        raise ValueError(f"{member} has not the {num_bytes} bytes that its shape {shape} needs")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


def _floats(arrays: dict[str, np.ndarray], name: str, axes: str) -> Tensor:
    array = arrays[name]
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{_NAMES[name][0]} holds {array.dtype}; expected numbers.")
    with np.errstate(over="ignore", invalid="ignore"):  # infinite numbers are refused later
        tensor = torch.from_numpy(array.astype(np.float32))
    check_shapes(**{_NAMES[name][0]: (tensor, axes)})
    return tensor


def _picture(arrays: dict[str, np.ndarray], frame: int, path: str) -> Tensor:
    """Decode one frame of the video, uint8 (height, width, 3)."""
    images = arrays["images"]
    if images.ndim != 1 or images.dtype.kind != "S" or not 0 <= frame < len(images):
        raise ValueError(f"images_jpeg_bytes has no JPEG of frame {frame}.")
    source = f"Frame {frame} of {path}"
    with decoding(source, "a JPEG picture"):
        return torch.from_numpy(np.array(open_picture_bytes(images[frame], source).convert("RGB")))


def _size_hw(
    arrays: dict[str, np.ndarray], principal_xy: tuple[float, float], path: str
) -> tuple[int, int]:
    if "size_hw" in arrays:
        height, width = _floats(arrays, "size_hw", "2").tolist()
    elif "images" in arrays:
        height, width = _picture(arrays, 0, path).shape[:2]
    else:
        width, height = (2 * value for value in principal_xy)
        _log.info("%s names no image size: the principal point is taken as its middle.", path)
    if not (1 <= height <= _MAX_SIZE and 1 <= width <= _MAX_SIZE):
        raise ValueError(f"The image size is {height}x{width}; expected 1 to {_MAX_SIZE} pixels.")
    return round(height), round(width)


def _colors(arrays: dict[str, np.ndarray], num_points: int, path: str) -> Tensor:
    if "colors" in arrays:
        return _floats(arrays, "colors", "point 3") / 255
    colors = torch.full((num_points, 3), 0.5)
    if "images" not in arrays or "queries" not in arrays:
        _log.info("%s holds no video with queries: its points are grey.", path)
        return colors
    queries = _floats(arrays, "queries", "point 3")
    if len(queries) != num_points or not queries.isfinite().all():
        raise ValueError(f"queries_xyt has {len(queries)} finite rows; expected {num_points}.")
    for frame in queries[:, 2].unique().tolist():
        picture = _picture(arrays, int(frame), path)
        asked = queries[:, 2] == frame
        x, y = queries[asked, :2].long().unbind(-1)
        row, column = y.clamp(0, picture.shape[0] - 1), x.clamp(0, picture.shape[1] - 1)
        colors[asked] = picture[row, column].float() / 255
    return colors


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()
