"""Camera JSON: nerfstudio and Blender `transforms.json`, ComfyUI LOAD3D_CAMERA. Both ways."""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..camera_paths.keyframes import FORMAT as KEYFRAMES_FORMAT
from ..files import FileFormatError, replacing
from ..files.strict_json import (
    as_choice,
    as_list,
    as_number,
    as_numbers,
    as_object,
    parse_json,
    read_text,
)
from ..geometry import (
    GeometryError,
    focal_from_fov,
    fov_from_focal,
    invert_rigid,
    look_at,
    matrix_from_quaternion_wxyz,
    quaternion_wxyz_from_matrix,
    rigid,
)
from ..scene import Cameras
from .parts import (
    LIMIT_BYTES,
    MAX_FRAMES,
    OPENGL_TO_OPENCV,
    CameraHints,
    checked_cameras,
    checked_inverse,
    exact_camera_to_world,
    pinhole,
    warn_if_lost,
    whole_size,
)

_log = logging.getLogger(__name__)

_PINHOLE_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
_SMALLEST_FOV_RAD = 1e-4


def read_transforms(path: Path, hints: CameraHints) -> Cameras:
    """Read a `transforms.json` of nerfstudio, Instant-NGP or Blender.

    Camera-to-world with OpenGL axes (+x right, +y up, looking along -z); the world is left as it
    is. Focal lengths are `fl_x` and `fl_y` in pixels or the field of view `camera_angle_x` in
    radians; a frame's own values go before those of the file. Frames keep the file's order.
    """
    document = as_object(_load(path), path.name)
    if "camera_model" in document:
        as_choice(document["camera_model"], _PINHOLE_MODELS, f"{path.name}: camera_model")
    items = as_list(document.get("frames"), f"{path.name}: frames", max_items=MAX_FRAMES)
    frames = [as_object(item, f"{path.name}: frames[{i}]") for i, item in enumerate(items)]
    if not frames:
        raise FileFormatError(f"{path.name} has no cameras.")
    sizes = {_stated_size(document | frame, f"{path.name}: frames[{i}]")
             for i, frame in enumerate(frames)}  # fmt: skip
    if len(sizes) > 1:
        raise FileFormatError(f"{path.name} has images of several sizes; a camera path has one.")
    size_hw = hints.needed_size(path, next(iter(sizes), None))
    poses, intrinsics = [], []
    for i, frame in enumerate(frames):
        where = f"{path.name}: frames[{i}]"
        poses.append(_matrix(frame.get("transform_matrix"), f"{where}.transform_matrix"))
        intrinsics.append(_transforms_intrinsics(document | frame, where, size_hw, path, hints))
    if any(document.get(name) or any(f.get(name) for f in frames) for name in _DISTORTION):
        _log.warning("%s has lens distortion, which a camera path leaves out.", path.name)
    world_to_camera = checked_inverse(path, torch.stack(poses) @ OPENGL_TO_OPENCV)
    return checked_cameras(path, world_to_camera, torch.stack(intrinsics), size_hw)


def write_transforms(path: Path, cameras: Cameras, fps: float | None) -> None:
    """Write a `transforms.json` that nerfstudio and Blender-NeRF loaders read.

    The world stays ours (+y down), so that it fits point clouds that are written beside it.
    """
    warn_if_lost(cameras, "transforms.json")
    poses = (exact_camera_to_world(cameras) @ OPENGL_TO_OPENCV).tolist()
    lenses = [
        {"fl_x": k[0][0], "fl_y": k[1][1], "cx": k[0][2], "cy": k[1][2],
         "camera_angle_x": fov_from_focal(k[0][0], cameras.width)}
        for k in cameras.intrinsics.cpu().double().tolist()
    ]  # fmt: skip
    common = all(lens == lenses[0] for lens in lenses)
    document = {
        "camera_model": "OPENCV",
        "w": cameras.width,
        "h": cameras.height,
        **({} if fps is None else {"fps": fps}),
        **(lenses[0] if common else {}),
        "frames": [
            {
                "file_path": f"images/frame_{i:05d}.png",
                "transform_matrix": pose,
                **({} if common else lens),
            }
            for i, (pose, lens) in enumerate(zip(poses, lenses, strict=True))
        ],
    }
    _save(path, document)


def cameras_from_load3d(
    camera_infos: Mapping[str, object] | Sequence[Mapping[str, object]],
    size_hw: tuple[int, int],
    *,
    intrinsics: Float[Tensor, "3 3"] | None = None,
    source: str = "LOAD3D_CAMERA",
) -> Cameras:
    """Convert ComfyUI LOAD3D_CAMERA dictionaries, one or one per frame.

    Their world is right-handed with +y up and their camera looks along -z; ours are both turned
    by half a turn about x, so a camera at the origin with the identity quaternion is ours at the
    origin. `fov` is vertical, in degrees; `zoom` multiplies the focal length. Where there is no
    quaternion, the camera looks from `position` to `target`. Only where there is no `fov`,
    `intrinsics` (pixels of an image of `size_hw`) are used.

    Raises:
        FileFormatError: names the field that is missing, of a wrong type or out of range.
    """
    items = camera_infos if isinstance(camera_infos, Sequence) else [camera_infos]
    path, hints = Path(source), CameraHints(size_hw=size_hw, intrinsics=intrinsics)
    if len(items) > MAX_FRAMES:
        raise FileFormatError(f"{source} has {len(items)} cameras; expected at most {MAX_FRAMES}.")
    poses, lenses = [], []
    for i, item in enumerate(items):
        where = f"{source}[{i}]"
        info = as_object(dict(item) if isinstance(item, Mapping) else item, where)
        if "cameraType" in info:
            as_choice(info["cameraType"], ("perspective",), f"{where}.cameraType")
        poses.append(_load3d_pose(info, where))
        lenses.append(_load3d_intrinsics(info, where, path, hints))
    if not poses:
        raise FileFormatError(f"{source} has no cameras.")
    camera_to_world = OPENGL_TO_OPENCV @ torch.stack(poses) @ OPENGL_TO_OPENCV
    world_to_camera = checked_inverse(path, camera_to_world)
    return checked_cameras(path, world_to_camera, torch.stack(lenses), size_hw)


def load3d_from_cameras(
    cameras: Cameras, *, target_distance: float = 1.0
) -> list[dict[str, object]]:
    """Convert to ComfyUI LOAD3D_CAMERA dictionaries, one per frame.

    `target`, the point that the host's viewer turns around, is put on the optical axis at
    `target_distance`, in world units. Inverse of `cameras_from_load3d` for square pixels and a
    centred principal point; anything else is logged and left out.
    """
    warn_if_lost(cameras, "LOAD3D_CAMERA", square=True)
    poses = OPENGL_TO_OPENCV @ exact_camera_to_world(cameras) @ OPENGL_TO_OPENCV
    positions, forward = poses[:, :3, 3], -poses[:, :3, 2]
    targets = positions + target_distance * forward
    quaternions_wxyz = quaternion_wxyz_from_matrix(poses[:, :3, :3])
    focal_px = cameras.intrinsics[:, 1, 1].cpu().double()
    return [
        {
            "position": dict(zip("xyz", position, strict=True)),
            "target": dict(zip("xyz", target, strict=True)),
            "quaternion": dict(zip("wxyz", quaternion, strict=True)),
            "zoom": 1.0,
            "fov": math.degrees(fov_from_focal(focal, cameras.height)),
            "aspect": cameras.width / cameras.height,
            "cameraType": "perspective",
        }
        for position, target, quaternion, focal in zip(
            positions.tolist(),
            targets.tolist(),
            quaternions_wxyz.tolist(),
            focal_px.tolist(),
            strict=True,
        )
    ]


def read_load3d(path: Path, hints: CameraHints) -> Cameras:
    """Read a file with one LOAD3D_CAMERA dictionary or an array of them."""
    document = _load(path)
    items = [document] if isinstance(document, dict) else document
    items = as_list(items, path.name, max_items=MAX_FRAMES)
    infos = [as_object(item, f"{path.name}[{i}]") for i, item in enumerate(items)]
    size_hw = hints.needed_size(path)
    intrinsics = hints.known_intrinsics(size_hw)
    return cameras_from_load3d(infos, size_hw, intrinsics=intrinsics, source=path.name)


def write_load3d(path: Path, cameras: Cameras, fps: float | None) -> None:
    """Write an array of LOAD3D_CAMERA dictionaries."""
    del fps  # the dictionaries have no time
    _save(path, load3d_from_cameras(cameras))


def is_keyframe_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is JSON that says it holds camera keyframes, well-formed or not.

    Raises:
        FileFormatError: the name ends in .json, and the contents are not JSON.
    """
    path = Path(path)
    return path.suffix.lower() == ".json" and path.is_file() and _has_keyframes(_load(path))


def guess_json_format(path: Path) -> str | None:
    """Tell the JSON format from its fields.

    Raises:
        FileFormatError: the file is not JSON, or holds keyframes, which `load_keyframes` reads.
    """
    document = _load(path)
    if _has_keyframes(document):
        raise FileFormatError(
            f"{path.name} holds camera keyframes, which need an input view: use load_keyframes "
            "and cameras_from_keyframes."
        )
    if isinstance(document, dict) and "frames" in document:
        return "transforms"
    first = document[0] if isinstance(document, list) and document else document
    return "load3d" if isinstance(first, dict) and {"position", "target"} & first.keys() else None


def _has_keyframes(document: object) -> bool:
    return isinstance(document, dict) and document.get("format") == KEYFRAMES_FORMAT


def _load(path: Path) -> object:
    return parse_json(read_text(path, LIMIT_BYTES, "a camera file in JSON"), path.name)


def _save(path: Path, document: object) -> None:
    text = json.dumps(document, indent=1, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", newline="\n")


def _stated_size(values: dict[str, object], where: str) -> tuple[int, int] | None:
    if "w" not in values and "h" not in values:
        return None
    height, width = (as_number(values.get(name), f"{where}.{name}") for name in ("h", "w"))
    return whole_size(height, f"{where}.h"), whole_size(width, f"{where}.w")


def _matrix(value: object, where: str) -> Float[Tensor, "4 4"]:
    rows = as_list(value, where, max_items=4)
    if len(rows) == 3:
        rows = [*rows, [0, 0, 0, 1]]
    if len(rows) != 4:
        raise FileFormatError(f"{where} has {len(rows)} rows; expected 4 rows of 4 numbers.")
    matrix = [as_numbers(row, 4, f"{where}[{i}]") for i, row in enumerate(rows)]
    return torch.tensor(matrix, dtype=torch.float64)


def _transforms_intrinsics(
    values: dict[str, object],
    where: str,
    size_hw: tuple[int, int],
    path: Path,
    hints: CameraHints,
) -> Float[Tensor, "3 3"]:
    """Intrinsics of one frame. `values` are the file's, overwritten by the frame's own."""
    height, width = size_hw

    def focal(length: str, angle: str, size: int) -> float | None:
        if length in values:
            return as_number(values[length], f"{where}.{length}", low=1e-6)
        if angle in values:
            low, high = _SMALLEST_FOV_RAD, math.pi - _SMALLEST_FOV_RAD
            fov_rad = as_number(values[angle], f"{where}.{angle}", low=low, high=high)
            return focal_from_fov(fov_rad, size)
        return None

    fx = focal("fl_x", "camera_angle_x", width)
    fy = focal("fl_y", "camera_angle_y", height)
    if fx is None and fy is None:
        return hints.needed_intrinsics(path, size_hw)
    centers = {"cx": width / 2, "cy": height / 2} | {
        n: values[n] for n in ("cx", "cy") if n in values
    }
    cx, cy = (as_number(center, f"{where}.{name}") for name, center in centers.items())
    return pinhole([fx or fy or 0.0, fy or fx or 0.0], [cx, cy])


def _load3d_pose(info: dict[str, object], where: str) -> Float[Tensor, "4 4"]:
    """Camera-to-world in the host's axes."""
    position = _components(info.get("position"), "xyz", f"{where}.position")
    if info.get("quaternion") is not None:
        quaternion_wxyz = _components(info["quaternion"], "wxyz", f"{where}.quaternion")
        if abs(float(quaternion_wxyz.norm()) - 1) > 0.02:
            raise FileFormatError(
                f"{where}.quaternion has length {float(quaternion_wxyz.norm()):.4g}; expected 1."
            )
        return rigid(matrix_from_quaternion_wxyz(quaternion_wxyz), position)
    target = _components(info.get("target"), "xyz", f"{where}.target")
    try:
        world_to_camera = look_at(position, target, position.new_tensor([0.0, 1.0, 0.0]))
    except GeometryError as e:
        raise FileFormatError(f"{where} has no quaternion, and its target does not do: {e}") from e
    return invert_rigid(world_to_camera) @ OPENGL_TO_OPENCV


def _load3d_intrinsics(
    info: dict[str, object], where: str, path: Path, hints: CameraHints
) -> Float[Tensor, "3 3"]:
    zoom = as_number(info.get("zoom", 1.0), f"{where}.zoom", low=1e-3, high=1e3)
    if info.get("fov") is None:
        intrinsics = hints.needed_intrinsics(path, hints.needed_size(path)).clone()
        intrinsics[:2, :2] *= zoom
        return intrinsics
    height, width = hints.needed_size(path)
    low, high = math.degrees(_SMALLEST_FOV_RAD), 180 - math.degrees(_SMALLEST_FOV_RAD)
    fov_deg = as_number(info["fov"], f"{where}.fov", low=low, high=high)
    focal_px = zoom * focal_from_fov(math.radians(fov_deg), height)
    return pinhole([focal_px, focal_px], [width / 2, height / 2])


def _components(value: object, names: str, where: str) -> Float[Tensor, "component"]:
    item = as_object(value, where)
    numbers = [as_number(item.get(name), f"{where}.{name}") for name in names]
    return torch.tensor(numbers, dtype=torch.float64)
