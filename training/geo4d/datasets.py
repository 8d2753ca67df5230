"""Clips from data sets on disk, in the layouts that their makers give them, and their mixture.

| data set | a sequence is a folder with |
|---|---|
| PointOdyssey | rgbs/rgb_00000.jpg, depths/depth_00000.png (16 bit, 65535 = 1000 m), anno.npz |
| TartanAir | image_left/000000_left.png, depth_left/000000_left_depth.npy (metres), pose_left.txt |

Sequences are found at any depth below the data set's folder. A clip takes every first, second or
third frame, as published; which, follows from its number alone.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import Dataset

from more4d_backend.files import decoding
from more4d_backend.geometry import invert_rigid, matrix_from_quaternion_wxyz, rigid
from more4d_backend.scene import Cameras

from ..data.samples import SampleError
from .clips import FARTHEST_M, GeometryClip, check_clip

_log = logging.getLogger(__name__)

PUBLISHED_SHARES = {
    "spring": 1 / 6,
    "bedlam": 1 / 3,
    "point_odyssey": 1 / 6,
    "tartanair": 1 / 6,
    "virtual_kitti": 1 / 6,
}
"""How often each data set was trained on (Geo4D, arXiv 2504.07961). There are readers here for
PointOdyssey and TartanAir; what is given is mixed in these proportions."""

_ODYSSEY_METRES = 1000 / 65535
_INPAINT_ROUNDS = 16
_TARTAN_FOCAL_SHARE = 0.5
"""Of the width: 320 for 640 pixels, a field of view of 90 degrees."""
_NED_TO_CAMERA = ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0))
"""TartanAir's axes are front, right, down; ours right, down, front."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipChoice:
    """Which frames make a clip."""

    num_frames: int = 16
    """Of a clip."""

    strides: tuple[int, ...] = (1, 2, 3)
    """Frames of the sequence from one frame of the clip to the next."""


class Recording(ABC):
    """One sequence on disk."""

    def __init__(self, folder: Path, num_frames: int) -> None:
        """Remember where it is, and how long."""
        self.folder, self.num_frames = folder, num_frames

    @abstractmethod
    def clip(self, frames: Sequence[int]) -> GeometryClip:
        """Read some frames."""


class RecordedClips(Dataset[GeometryClip]):
    """Clips of many recordings: one for every place where a clip can begin."""

    def __init__(self, recordings: Sequence[Recording], choice: ClipChoice) -> None:
        """Take the recordings that are long enough.

        Raises:
            SampleError: none is.
        """
        self.choice = choice
        self._recordings = [r for r in recordings if r.num_frames >= choice.num_frames]
        if not self._recordings:
            raise SampleError(
                f"None of {len(recordings)} sequences has {choice.num_frames} frames or more."
            )
        places = [r.num_frames - choice.num_frames + 1 for r in self._recordings]
        self._ends = np.cumsum(places)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> GeometryClip:
        if not 0 <= index < len(self):
            raise IndexError(f"Clip {index} of {len(self)}.")
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = index - (int(self._ends[number - 1]) if number else 0)
        recording, count = self._recordings[number], self.choice.num_frames
        reach = (recording.num_frames - 1 - start) // max(count - 1, 1)
        fitting = [stride for stride in self.choice.strides if stride <= reach] or [1]
        stride = fitting[np.random.SeedSequence(index).generate_state(1)[0] % len(fitting)]
        clip = recording.clip([start + stride * i for i in range(count)])
        check_clip(clip)
        return clip


class PointOdysseyRecording(Recording):
    """A sequence of PointOdyssey."""

    def __init__(self, folder: Path) -> None:
        """Read its cameras.

        Raises:
            FileFormatError: anno.npz lacks them, or is something else.
        """
        path = folder / "anno.npz"
        with decoding(path, "annotations of PointOdyssey"):
            with np.load(path, allow_pickle=False) as annotations:
                intrinsics, extrinsics = annotations["intrinsics"], annotations["extrinsics"]
            self._intrinsics = torch.from_numpy(intrinsics).float()
            self._world_to_camera = torch.from_numpy(extrinsics).float()
        pictures = len(list((folder / "rgbs").glob("rgb_*.jpg")))
        super().__init__(folder, min(pictures, len(intrinsics), len(extrinsics)))

    def clip(self, frames: Sequence[int]) -> GeometryClip:
        """Read some frames. Missing depth is filled from its surroundings, as published.

        Raises:
            FileFormatError: a file is missing or damaged.
        """
        video = _pictures([self.folder / "rgbs" / f"rgb_{f:05d}.jpg" for f in frames])
        stored = [_png16(self.folder / "depths" / f"depth_{f:05d}.png") for f in frames]
        depth, known = inpainted(torch.stack(stored).float() * _ODYSSEY_METRES)
        chosen = list(frames)
        return GeometryClip(
            name=f"{self.folder.name} {frames[0]}-{frames[-1]}",
            video=video,
            depth=depth,
            valid=known & (depth <= FARTHEST_M),
            cameras=Cameras(
                world_to_camera=self._world_to_camera[chosen],
                intrinsics=self._intrinsics[chosen],
                height=video.shape[1],
                width=video.shape[2],
            ),
        )


class TartanAirRecording(Recording):
    """A sequence of TartanAir, as its left camera saw it."""

    def __init__(self, folder: Path) -> None:
        """Read its cameras.

        Raises:
            FileFormatError: pose_left.txt does not hold seven numbers a line.
        """
        path = folder / "pose_left.txt"
        with decoding(path, "poses of TartanAir"):
            poses = np.loadtxt(path, dtype=np.float64, ndmin=2)
            if poses.shape[1] != 7:
                raise ValueError(f"it has {poses.shape[1]} numbers a line, not 7")
        self._world_to_camera = world_to_camera_from_ned(torch.from_numpy(poses)).float()
        pictures = len(list((folder / "image_left").glob("*_left.png")))
        super().__init__(folder, min(pictures, len(poses)))

    def clip(self, frames: Sequence[int]) -> GeometryClip:
        """Read some frames. What is farther than 80 m, such as the sky at 10000, is not valid.

        Raises:
            FileFormatError: a file is missing or damaged.
        """
        video = _pictures([self.folder / "image_left" / f"{f:06d}_left.png" for f in frames])
        height, width = video.shape[1:3]
        depth = torch.stack(
            [_npy(self.folder / "depth_left" / f"{f:06d}_left_depth.npy") for f in frames]
        )
        focal = _TARTAN_FOCAL_SHARE * width
        intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
        return GeometryClip(
            name=f"{'/'.join(self.folder.parts[-3:])} {frames[0]}-{frames[-1]}",
            video=video,
            depth=depth,
            valid=depth.isfinite() & (depth > 0) & (depth <= FARTHEST_M),
            cameras=Cameras(
                world_to_camera=self._world_to_camera[list(frames)],
                intrinsics=intrinsics.expand(len(frames), 3, 3),
                height=height,
                width=width,
            ),
        )


def world_to_camera_from_ned(
    poses: Float[Tensor, "frame 7"],
) -> Float[Tensor, "frame 4 4"]:
    """Turn TartanAir's lines, x y z and quaternion xyzw of front-right-down cameras, into ours."""
    axes = poses.new_tensor(_NED_TO_CAMERA)
    rotation = matrix_from_quaternion_wxyz(poses[:, [6, 3, 4, 5]])
    camera_to_world = rigid(axes @ rotation @ axes.T, poses[:, :3] @ axes.T)
    return invert_rigid(camera_to_world)


def inpainted(
    depth: Float[Tensor, "frame height width"],
) -> tuple[Float[Tensor, "frame height width"], Bool[Tensor, "frame height width"]]:
    """Fill depth of 0 with the largest around it, round by round; what is too far in stays 0.

    Returns (depth, where it is known).
    """
    for _ in range(_INPAINT_ROUNDS):
        missing = depth <= 0
        if not missing.any():
            break
        around = torch.nn.functional.max_pool2d(depth[:, None], 3, stride=1, padding=1)[:, 0]
        depth = torch.where(missing, around, depth)
    return depth, depth > 0


def point_odyssey(folder: Path, choice: ClipChoice) -> RecordedClips:
    """Find the sequences of PointOdyssey below a folder.

    Raises:
        SampleError: there are none.
    """
    found = sorted(path.parent for path in folder.rglob("anno.npz"))
    return RecordedClips([PointOdysseyRecording(path) for path in _some(found, folder)], choice)


def tartanair(folder: Path, choice: ClipChoice) -> RecordedClips:
    """Find the sequences of TartanAir below a folder.

    Raises:
        SampleError: there are none.
    """
    found = sorted(path.parent for path in folder.rglob("pose_left.txt"))
    return RecordedClips([TartanAirRecording(path) for path in _some(found, folder)], choice)


class MixedClips(Dataset[GeometryClip]):
    """Clips of several data sets, each as often as its share says."""

    def __init__(
        self, parts: Sequence[tuple[Dataset[GeometryClip], float]], num_clips: int, seed: int
    ) -> None:
        """Mix data sets (sized, by number); shares are relative to each other.

        Raises:
            SampleError: no data set, or a share that is not positive.
        """
        if not parts or not all(share > 0 for _, share in parts):
            raise SampleError(
                f"{len(parts)} data sets with shares {[share for _, share in parts]} cannot be "
                "mixed; expected at least one, and positive shares."
            )
        self._parts, self._num_clips, self._seed = list(parts), num_clips, seed
        shares = np.array([share for _, share in parts])
        self._bounds = np.cumsum(shares / shares.sum())

    def __len__(self) -> int:
        return self._num_clips

    def __getitem__(self, index: int) -> GeometryClip:
        if not 0 <= index < self._num_clips:
            raise IndexError(f"Clip {index} of {self._num_clips}.")
        dataset, number = self.chosen(index)
        return self._parts[dataset][0][number]

    def chosen(self, index: int) -> tuple[int, int]:
        """Return (number of the data set, number of the clip in it); of seed and index alone."""
        state = np.random.SeedSequence([self._seed, index]).generate_state(2, np.uint64)
        share = float(state[0] >> np.uint64(11)) / 2**53
        dataset = min(int(np.searchsorted(self._bounds, share, side="right")), len(self._parts) - 1)
        return dataset, int(state[1] % len(self._parts[dataset][0]))  # pyright: ignore[reportArgumentType]


def _some(found: list[Path], folder: Path) -> list[Path]:
    if not found:
        raise SampleError(f"{folder} holds no sequence; see training/geo4d/datasets.py.")
    _log.info("%s: %d sequences", folder, len(found))
    return found


def _pictures(paths: Sequence[Path]) -> Tensor:
    from PIL import Image

    pictures = []
    for path in paths:
        with decoding(path, "a picture"), Image.open(path) as image:
            pictures.append(torch.from_numpy(np.array(image.convert("RGB"))))
    return torch.stack(pictures)


def _png16(path: Path) -> Tensor:
    from PIL import Image

    with decoding(path, "a depth map of 16 bits"), Image.open(path) as image:
        if image.mode not in ("I;16", "I;16B", "I"):
            raise ValueError(f"its pixels are {image.mode}")
        return torch.from_numpy(np.asarray(image).astype(np.int32))


def _npy(path: Path) -> Tensor:
    with decoding(path, "a depth map"):
        values = np.load(path, allow_pickle=False)
        if values.ndim != 2:
            raise ValueError(f"it has shape {values.shape}")
        return torch.from_numpy(values.astype(np.float32))
