"""Videos whose depth or cameras are known: data sets on disk, in the layouts of their makers.

| data set | layout |
|---|---|
| Sintel | training/final/SEQUENCE/frame_0001.png, training/depth/SEQUENCE/frame_0001.dpt, |
| | training/camdata_left/SEQUENCE/frame_0001.cam |
| TUM-dynamics | SEQUENCE/rgb.txt, SEQUENCE/rgb/TIME.png, SEQUENCE/groundtruth.txt |
| procedural | NAME.mkv (or .mp4) beside NAME.safetensors, as `training.procedural.clips` writes |

Nothing is read before it is asked for, and only one sequence is held at a time.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..files import FileFormatError, decoding, read_limited
from ..files.images import open_picture
from ..geo4d.video import Video, VideoFile
from ..geometry import matrix_from_quaternion_wxyz, rigid
from ..scene import PointMaps
from .tables import EvaluationError
from .video_depth import VideoDepth

_SINTEL_TAG = 202021.25
"""First float of a .dpt and of a .cam file."""
_SINTEL_FPS, _TUM_FPS = 24.0, 30.0
_TUM_FRAME_STEP, _TUM_MAX_FRAMES = 3, 90
_TUM_MAX_DIFFERENCE_S = 0.02
"""Between a picture and the pose that it is paired with, as in the data set's own tools."""
_LIMIT_BYTES = 2**28


class PictureFiles:
    """A video (`geo4d.video.Video`) whose frames are pictures on disk."""

    def __init__(self, paths: Sequence[Path], fps: float) -> None:
        self.paths, self.fps = paths, fps

    def pictures(self) -> Iterator[UInt8[Tensor, "height width 3"]]:
        """Decode them one by one.

        Raises:
            FileFormatError: a file is damaged or no picture.
        """
        for path in self.paths:
            picture = open_picture(path)
            with decoding(path, "a picture"):
                yield torch.from_numpy(np.array(picture.convert("RGB")))


class TrueVideo(ABC):
    """One video of a benchmark, with what is known of it."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def video(self) -> Video:
        """Return the frames."""

    def depth(self) -> VideoDepth | None:
        """Read the true depth; None: not known."""
        return None

    def camera_to_world(self) -> Float[Tensor, "frame 4 4"] | None:
        """Read the true cameras; None: not known."""
        return None


class SintelVideo(TrueVideo):
    """A training sequence of MPI Sintel (Butler et al. 2012), pass `final`."""

    def __init__(self, folder: Path, name: str) -> None:
        """Find its frames in the folder that holds `training`.

        Raises:
            EvaluationError: there are none.
        """
        super().__init__(name)
        self._folder = folder / "training"
        self._frames = sorted((self._folder / "final" / name).glob("frame_*.png"))
        if not self._frames:
            raise EvaluationError(f"{self._folder / 'final' / name} holds no frame_0001.png.")

    def video(self) -> Video:
        """Return the frames."""
        return PictureFiles(self._frames, _SINTEL_FPS)

    def depth(self) -> VideoDepth:
        """Read the depth of every frame.

        Raises:
            FileFormatError: a file is missing or damaged.
        """
        paths = [self._beside("depth", frame, ".dpt") for frame in self._frames]
        depth = torch.stack([read_dpt(path) for path in paths])
        return VideoDepth(depth=depth, valid=depth.isfinite() & (depth > 0))

    def camera_to_world(self) -> Float[Tensor, "frame 4 4"]:
        """Read the camera of every frame.

        Raises:
            FileFormatError: a file is missing or damaged.
        """
        paths = [self._beside("camdata_left", frame, ".cam") for frame in self._frames]
        return torch.linalg.inv(torch.stack([read_cam(path) for path in paths]))

    def _beside(self, kind: str, frame: Path, suffix: str) -> Path:
        return self._folder / kind / self.name / (frame.stem + suffix)


class TumVideo(TrueVideo):
    """A sequence of TUM RGB-D (Sturm et al. 2012): every third frame, 90 of them at most."""

    def __init__(self, folder: Path, name: str) -> None:
        """Pair pictures with poses by their times.

        Raises:
            EvaluationError: the folder is not there, or nothing can be paired.
            FileFormatError: a list is damaged.
        """
        super().__init__(name)
        places = _tum_folders(folder, name)
        found = next((place for place in places if (place / "rgb.txt").is_file()), None)
        if found is None:
            raise EvaluationError(f"There is no rgb.txt in {' or '.join(map(str, places))}.")
        folder = found
        times, files = _tum_pictures(folder / "rgb.txt")
        poses = _numbers(folder / "groundtruth.txt", 8)
        pairs = paired_times(times, poses[:, 0])
        chosen = pairs[: _TUM_FRAME_STEP * _TUM_MAX_FRAMES : _TUM_FRAME_STEP]
        if not chosen:
            raise EvaluationError(f"{folder}: no picture has a pose within 0.02 s.")
        self._files = [folder / files[picture] for picture, _ in chosen]
        self._poses = poses[[pose for _, pose in chosen], 1:]

    def video(self) -> Video:
        """Return the frames."""
        return PictureFiles(self._files, _TUM_FPS / _TUM_FRAME_STEP)

    def camera_to_world(self) -> Float[Tensor, "frame 4 4"]:
        """Return the poses."""
        poses = torch.from_numpy(self._poses)
        return rigid(matrix_from_quaternion_wxyz(poses[:, [6, 3, 4, 5]]), poses[:, :3])


class ProceduralVideo(TrueVideo):
    """A video that `training.procedural.clips` wrote, and its true scene."""

    def __init__(self, path: Path) -> None:
        """Take the path of the scene."""
        super().__init__(path.stem)
        self._path = path

    def video(self) -> Video:
        """Return the frames.

        Raises:
            EvaluationError: there is no video beside the scene.
        """
        for suffix in (".mkv", ".mp4"):
            path = self._path.with_suffix(suffix)
            if path.is_file():
                return VideoFile(path)
        raise EvaluationError(f"There is no {self._path.with_suffix('.mp4')} beside its scene.")

    def depth(self) -> VideoDepth:
        """Read the depth of every frame.

        Raises:
            FileFormatError: no scene file of point maps.
        """
        return depth_of_scene(self._path)

    def camera_to_world(self) -> Float[Tensor, "frame 4 4"]:
        """Read the camera of every frame.

        Raises:
            FileFormatError: no scene file.
        """
        from ..scene_files import load_scene

        return load_scene(self._path).cameras.camera_to_world


def depth_of_scene(path: Path) -> VideoDepth:
    """Read the depth of a scene file of point maps.

    Raises:
        FileFormatError: no scene file, or one of tracks.
    """
    from ..geometry import transform_points
    from ..scene_files import load_scene

    scene = load_scene(path)
    if not isinstance(scene.points, PointMaps):
        raise FileFormatError(f"{path} holds tracks; expected point maps, as `reconstruct` writes.")
    to_camera = scene.cameras.world_to_camera[:, None, None]
    return VideoDepth(
        depth=transform_points(scene.points.positions, to_camera)[..., 2],
        valid=scene.points.valid,
        confidence=scene.points.confidence,
    )


def read_dpt(path: Path) -> Float[Tensor, "height width"]:
    """Read a depth map of Sintel: tag, width, height, float32 rows.

    Raises:
        FileFormatError: missing, damaged, or something else.
    """
    data = read_limited(path, _LIMIT_BYTES, "a depth map of Sintel (.dpt)")
    with decoding(path, "a depth map of Sintel (.dpt)"):
        tag, width, height = struct.unpack_from("<fii", data)
        if tag != _SINTEL_TAG or min(width, height) < 1 or len(data) != 12 + 4 * width * height:
            raise ValueError(f"it begins with {tag}, {width}, {height} and has {len(data)} bytes")
        values = np.frombuffer(data, "<f4", offset=12).reshape(height, width)
        return torch.from_numpy(values.copy())


def read_cam(path: Path) -> Float[Tensor, "4 4"]:
    """Read world-to-camera of a camera file of Sintel: tag, 9 and 12 float64.

    Raises:
        FileFormatError: missing, damaged, or something else.
    """
    data = read_limited(path, _LIMIT_BYTES, "a camera of Sintel (.cam)")
    with decoding(path, "a camera of Sintel (.cam)"):
        tag, *numbers = struct.unpack("<f9d12d", data)
        if tag != _SINTEL_TAG:
            raise ValueError(f"it begins with {tag}")
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3] = torch.tensor(numbers[9:], dtype=torch.float64).view(3, 4)
    return pose


def paired_times(
    picture_s: Float[np.ndarray, " picture"], pose_s: Float[np.ndarray, " pose"]
) -> list[tuple[int, int]]:
    """Pair pictures and poses of TUM (their numbers) by their times, in the order of time.

    As the data set's own tools do it: what is nearest first, nothing twice. Where poses are missing
    for a while, pictures are left out.
    """
    order = pose_s.argsort(kind="stable")
    first = np.searchsorted(pose_s[order], picture_s - _TUM_MAX_DIFFERENCE_S)
    last = np.searchsorted(pose_s[order], picture_s + _TUM_MAX_DIFFERENCE_S, side="right")
    near = sorted(
        (float(abs(picture_s[picture] - pose_s[pose])), picture, int(pose))
        for picture in range(len(picture_s))
        for pose in order[first[picture] : last[picture]]
    )
    of_picture: dict[int, int] = {}
    taken: set[int] = set()
    for difference_s, picture, pose in near:
        if difference_s < _TUM_MAX_DIFFERENCE_S and not (picture in of_picture or pose in taken):
            of_picture[picture] = pose
            taken.add(pose)
    return sorted(of_picture.items(), key=lambda pair: picture_s[pair[0]])


def _tum_folders(folder: Path, name: str) -> tuple[Path, ...]:
    # As unpacked, and with the short name alone.
    return folder / name, folder / f"rgbd_dataset_freiburg3_{name}"


def _tum_pictures(path: Path) -> tuple[np.ndarray, list[str]]:
    with decoding(path, "a list of pictures of TUM"):
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        pairs = [line for line in lines if line and not line[0].startswith("#")]
        return np.array([float(time) for time, _ in pairs]), [name for _, name in pairs]


def _numbers(path: Path, columns: int) -> np.ndarray:
    with decoding(path, "a list of poses of TUM"):
        values = np.loadtxt(path, dtype=np.float64, ndmin=2)
        if values.shape[1] != columns:
            raise ValueError(f"it has {values.shape[1]} numbers a line, not {columns}")
        return values
