"""Camera text files: COLMAP, RealEstate10K (also CameraCtrl) and TUM. Both ways."""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..files import FileFormatError, replacing, replacing_folder
from ..files.strict_json import read_text
from ..geometry import matrix_from_quaternion_wxyz, quaternion_wxyz_from_matrix, rigid
from ..scene import Cameras
from .parts import (
    LIMIT_BYTES,
    MAX_FRAMES,
    CameraHints,
    checked_cameras,
    checked_inverse,
    exact_camera_to_world,
    number,
    pinhole,
    warn_if_lost,
    whole_size,
)

_log = logging.getLogger(__name__)

_MAX_TIMESTAMP = 1e20  # nanoseconds since 1970 have 19 digits


@dataclass(frozen=True, slots=True, kw_only=True)
class _ColmapModel:
    """Layout of the parameters of a COLMAP camera model: focal lengths, cx, cy, distortion."""

    num_focals: int
    num_parameters: int


_COLMAP_MODELS = {
    "SIMPLE_PINHOLE": _ColmapModel(num_focals=1, num_parameters=3),
    "PINHOLE": _ColmapModel(num_focals=2, num_parameters=4),
    "SIMPLE_RADIAL": _ColmapModel(num_focals=1, num_parameters=4),
    "RADIAL": _ColmapModel(num_focals=1, num_parameters=5),
    "OPENCV": _ColmapModel(num_focals=2, num_parameters=8),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _ColmapCamera:
    size_hw: tuple[int, int]
    intrinsics: Float[Tensor, "3 3"]
    is_distorted: bool


def read_colmap(path: Path, hints: CameraHints) -> Cameras:
    """Read a COLMAP text model: a folder with cameras.txt and images.txt, or one of the two.

    World-to-camera, OpenCV axes, quaternions wxyz, the pixel convention is ours. Frames are in
    the order of the image names, where frame_2 comes before frame_10.
    """
    folder = path if path.is_dir() else path.parent
    if not is_colmap_folder(folder):
        raise FileFormatError(
            f"{folder} is no COLMAP text model, which has cameras.txt and images.txt. A binary "
            "model is converted by colmap model_converter."
        )
    known = dict(_colmap_cameras(folder / "cameras.txt"))
    if any(camera.is_distorted for camera in known.values()):
        _log.warning("%s has lens distortion, which a camera path leaves out.", folder)
    images = sorted(_colmap_images(folder / "images.txt", known), key=lambda image: image[0])
    path = folder / "images.txt"
    sizes = {camera.size_hw for _, _, camera in images}
    if len(sizes) > 1:
        raise FileFormatError(
            f"{folder} has images of several sizes (height, width): {sorted(sizes)[:4]}; "
            "a camera path has one."
        )
    if not images:
        raise FileFormatError(f"{path} has no cameras.")
    poses = torch.tensor([numbers for _, numbers, _ in images], dtype=torch.float64)
    rotation = matrix_from_quaternion_wxyz(_unit(poses[:, :4], path))
    intrinsics = torch.stack([camera.intrinsics for _, _, camera in images])
    size_hw = hints.needed_size(path, sizes.pop())
    return checked_cameras(path, rigid(rotation, poses[:, 4:]), intrinsics, size_hw)


def write_colmap(path: Path, cameras: Cameras, fps: float | None) -> None:
    """Write a folder with cameras.txt, images.txt and an empty points3D.txt, which COLMAP needs."""
    del fps  # COLMAP has no time
    warn_if_lost(cameras, "COLMAP")
    K = cameras.intrinsics.cpu().double().tolist()
    quaternion_wxyz = quaternion_wxyz_from_matrix(cameras.world_to_camera[:, :3, :3].cpu().double())
    translation = cameras.world_to_camera[:, :3, 3].cpu().double()
    same = all(k == K[0] for k in K)
    camera_lines = ["# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"]
    for i, k in enumerate(K[:1] if same else K, start=1):
        parameters = _joined([k[0][0], k[1][1], k[0][2], k[1][2]])
        camera_lines.append(f"{i} PINHOLE {cameras.width} {cameras.height} {parameters}")
    image_lines = [
        "# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME",
        "# POINTS2D[] as (X, Y, POINT3D_ID)",
    ]
    poses = torch.cat([quaternion_wxyz, translation], dim=-1).tolist()
    for i, pose in enumerate(poses, start=1):
        image_lines += [f"{i} {_joined(pose)} {1 if same else i} frame_{i - 1:05d}.png", ""]
    # The pattern matches cameras.txt, images.txt and points3D.txt, and hardly anything else.
    with replacing_folder(path, "[cip][amo][mai][egn][ert]*.txt") as folder:
        for name, lines in (
            ("cameras.txt", camera_lines),
            ("images.txt", image_lines),
            ("points3D.txt", ["# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[]"]),
        ):
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def read_realestate10k(path: Path, hints: CameraHints) -> Cameras:
    """Read a RealEstate10K file, the format of CameraCtrl too.

    The first line is the video's address. Each other line: time stamp, fx, fy, cx, cy as
    fractions of width and height, two numbers that are not used, world-to-camera as 3 rows of 4.
    """
    height, width = hints.needed_size(path)
    lines = list(_content_lines(path))
    if lines and len(lines[0][1]) != 19:
        lines = lines[1:]
    rows = torch.tensor([_numbers(path, *line, 19) for line in lines], dtype=torch.float64)
    rows = rows.reshape(-1, 19)
    poses = rigid(torch.eye(3).double(), torch.zeros(len(rows), 3).double())
    poses[:, :3] = rows[:, 7:].reshape(-1, 3, 4)
    intrinsics = torch.eye(3).double().repeat(len(rows), 1, 1)
    for axis, size in ((0, width), (1, height)):
        intrinsics[:, axis, axis] = rows[:, 1 + axis] * size
        intrinsics[:, axis, 2] = rows[:, 3 + axis] * size
    return checked_cameras(path, poses, intrinsics, (height, width))


def write_realestate10k(path: Path, cameras: Cameras, fps: float | None) -> None:
    """Write a RealEstate10K file. Time stamps are microseconds, or frame numbers without fps."""
    warn_if_lost(cameras, "RealEstate10K")
    K = cameras.intrinsics.cpu().double()
    size = K.new_tensor([cameras.width, cameras.height])
    focal, center = K[:, [0, 1], [0, 1]] / size, K[:, :2, 2] / size
    pose = cameras.world_to_camera[:, :3].cpu().double().flatten(1)
    rows = torch.cat([focal, center, torch.zeros_like(center), pose], dim=-1).tolist()
    lines = ["more4d camera path"]
    for i, row in enumerate(rows):
        timestamp = i if fps is None else round(i * 1e6 / fps)
        lines.append(f"{timestamp} {_joined(row)}")
    _write_lines(path, lines)


def read_tum(path: Path, hints: CameraHints) -> Cameras:
    """Read a TUM trajectory: time stamp, tx ty tz, qx qy qz qw; camera-to-world.

    The quaternion is xyzw here, and nowhere else in this project.
    """
    lines = _content_lines(path)
    rows = torch.tensor([_numbers(path, *line, 8) for line in lines], dtype=torch.float64)
    rows = rows.reshape(-1, 8)
    quaternion_wxyz = _unit(rows[:, [7, 4, 5, 6]], path)
    poses = rigid(matrix_from_quaternion_wxyz(quaternion_wxyz), rows[:, 1:4])
    size_hw = hints.needed_size(path)
    intrinsics = hints.needed_intrinsics(path, size_hw).expand(len(rows), 3, 3)
    return checked_cameras(path, checked_inverse(path, poses), intrinsics, size_hw)


def write_tum(path: Path, cameras: Cameras, fps: float | None) -> None:
    """Write a TUM trajectory. Time stamps are seconds, or frame numbers without fps."""
    poses = exact_camera_to_world(cameras)
    quaternion_wxyz = quaternion_wxyz_from_matrix(poses[:, :3, :3])
    rows = torch.cat([poses[:, :3, 3], quaternion_wxyz[:, [1, 2, 3, 0]]], dim=-1).tolist()
    lines = ["# timestamp tx ty tz qx qy qz qw"]
    lines += [f"{i if fps is None else i / fps:g} {_joined(row)}" for i, row in enumerate(rows)]
    _write_lines(path, lines)


def is_colmap_folder(folder: Path) -> bool:
    """Whether both files of a COLMAP text model are there."""
    return all((folder / name).is_file() for name in ("cameras.txt", "images.txt"))


def guess_text_format(path: Path) -> str | None:
    """Tell the text format from the file's name and its first full line."""
    if path.name in ("cameras.txt", "images.txt") and is_colmap_folder(path.parent):
        return "colmap"
    lengths = [len(tokens) for _, (_, tokens) in zip(range(2), _content_lines(path), strict=False)]
    if 19 in lengths:
        return "realestate10k"
    return "tum" if lengths[:1] == [8] else None


def _content_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and words of each line that is neither empty nor a comment."""
    text = read_text(path, LIMIT_BYTES, "a camera file")
    count = 0
    for line_number, line in enumerate(text.split("\n"), start=1):
        tokens = line.split()
        if tokens and not tokens[0].startswith("#"):
            count += 1
            if count > MAX_FRAMES + 1:
                raise FileFormatError(f"{path.name} has more than {MAX_FRAMES} cameras.")
            yield line_number, tokens


def _numbers(path: Path, line_number: int, tokens: list[str], count: int) -> list[float]:
    where = f"{path.name}, line {line_number}"
    if len(tokens) != count:
        raise FileFormatError(f"{where} has {len(tokens)} numbers; expected {count}.")
    timestamp, *rest = tokens
    return [number(timestamp, where, limit=_MAX_TIMESTAMP), *(number(t, where) for t in rest)]


def _colmap_cameras(path: Path) -> Iterator[tuple[str, _ColmapCamera]]:
    for line_number, tokens in _content_lines(path):
        where = f"{path.name}, line {line_number}"
        if len(tokens) < 4:
            raise FileFormatError(f"{where} has {len(tokens)} words; expected id, model, size, ...")
        model = _COLMAP_MODELS.get(tokens[1])
        if model is None:
            raise FileFormatError(
                f"{where}: the camera model is {tokens[1][:40]!r}; expected one of "
                f"{', '.join(_COLMAP_MODELS)}. colmap image_undistorter makes PINHOLE of any."
            )
        width, height, *parameters = (number(token, where) for token in tokens[2:])
        if len(parameters) != model.num_parameters:
            raise FileFormatError(
                f"{where}: {tokens[1]} has {len(parameters)} parameters; "
                f"expected {model.num_parameters}."
            )
        focals, rest = parameters[: model.num_focals], parameters[model.num_focals :]
        yield (
            tokens[0],
            _ColmapCamera(
                size_hw=(
                    whole_size(height, f"{where}: height"),
                    whole_size(width, f"{where}: width"),
                ),
                intrinsics=pinhole([focals[0], focals[-1]], rest[:2]),
                is_distorted=any(rest[2:]),
            ),
        )


_NaturalKey = tuple[tuple[int, str], ...]
_ColmapImage = tuple[_NaturalKey, list[float], _ColmapCamera]


def _colmap_images(path: Path, cameras: dict[str, _ColmapCamera]) -> Iterator[_ColmapImage]:
    """Sorting key, quaternion and translation, camera of each image.

    An image has two lines; the second, its 2D points, may be empty and is checked, because a
    file without it would otherwise lose every other camera.
    """
    text = read_text(path, LIMIT_BYTES, "the images of a COLMAP model")
    count, points_follow = 0, False
    for line_number, line in enumerate(text.split("\n"), start=1):
        tokens = line.split()
        where = f"{path.name}, line {line_number}"
        if points_follow:
            points_follow = False
            if len(tokens) % 3 or not all(re.fullmatch(r"-?\d+", t) for t in tokens[2::3]):
                raise FileFormatError(
                    f"{where} should hold the 2D points of the image above (x, y, point id) or be "
                    "empty; each image has two lines."
                )
        elif tokens and not tokens[0].startswith("#"):
            count, points_follow = count + 1, True
            if count > MAX_FRAMES:
                raise FileFormatError(f"{path.name} has more than {MAX_FRAMES} cameras.")
            if len(tokens) < 10:
                raise FileFormatError(
                    f"{where} has {len(tokens)} words; expected id, 4 of the quaternion, 3 of the "
                    "translation, camera id, name."
                )
            if tokens[8] not in cameras:
                raise FileFormatError(
                    f"{where}: the camera {tokens[8][:40]!r} is not in cameras.txt."
                )
            pose = [number(token, where) for token in tokens[1:8]]
            yield _natural_key(" ".join(tokens[9:])), pose, cameras[tokens[8]]


def _natural_key(name: str) -> _NaturalKey:
    """Sorting key for which frame_2 < frame_10: digits compare by length, then by value."""
    parts = re.split(r"(\d+)", name)
    return tuple(
        (len(part.lstrip("0")), part.lstrip("0")) if i % 2 else (0, part)
        for i, part in enumerate(parts)
    )


def _unit(quaternions: Float[Tensor, "frame 4"], path: Path) -> Float[Tensor, "frame 4"]:
    """Refuse quaternions that are not of length 1 to two digits, as files print them."""
    length = quaternions.norm(dim=-1)
    bad = ((length - 1).abs() > 0.02).nonzero()
    if len(bad):
        i = int(bad[0, 0])
        raise FileFormatError(
            f"{path.name}: the quaternion of camera {i} has length {length[i]:.4g}; expected 1."
        )
    return quaternions


def _joined(values: list[float]) -> str:
    return " ".join(repr(value) for value in values)


def _write_lines(path: Path, lines: list[str]) -> None:
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
