"""Pictures with depth and field of view, and how everything in them moves, drawn on CPU cores.

Of a procedural scene this is frame 0 and a few matrices: 30 ms on one core and 130 kB, where a
whole sample takes a hundred times as much of both. So no accelerator is held for it. What it leaves
out is every later frame of the video, and which points are hidden when.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from more4d_backend.files import FileFormatError, replacing
from more4d_backend.geometry import intrinsics_from_focal, pixel_centers, unproject
from more4d_backend.scene import Cameras
from more4d_backend.weights.files import first_five

from ..data.samples import SampleError, TrainingSample
from ..run.settings import SettingsError
from .scenes import draw_scene
from .settings import ProceduralSettings

_MOST_PARTS = 32
"""Parts of one scene that move, each in its own way; there are 4 actors of at most 6 parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """A pool of pictures of one size."""

    images: UInt8[Tensor, "picture 3 height width"]
    """sRGB, 0 to 255."""

    depth: Float[Tensor, "picture height width"]
    """Camera z in metres, float16."""

    log_focal: Float[Tensor, "picture"]
    """Logarithm of the focal length as a share of the picture's longer side."""

    part: UInt8[Tensor, "picture height width"]
    """Which row of `movements` a pixel follows; 0 rests."""

    movements: Float[Tensor, "picture frame part 3 4"]
    """Where each part takes its points: world of frame 0 to world, rotation (or more) and shift."""

    captions: tuple[str, ...]
    """One for each picture."""

    fps: float
    """Frames per second of `movements`."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def kind(self) -> tuple[object, ...]:
        """What pools must have in common to be joined: height and width, frames, parts, fps."""
        frames, parts = self.movements.shape[1:3]
        return (*self.depth.shape[1:], frames, parts, self.fps)

    def to(self, device: torch.device | str) -> "Pictures":
        """Return the pool on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(
            self, **{n: v.to(device) for n, v in values.items() if isinstance(v, Tensor)}
        )

    def sample(self, number: int) -> TrainingSample:
        """Return a picture as a sample to train on, where the pool is.

        Its video stands still, and every point counts as seen: what is not known is not taught.
        """
        _, height, width = self.images[number].shape
        frames = self.movements.shape[1]
        focal_px = self.log_focal[number].exp() * max(height, width)
        intrinsics = intrinsics_from_focal(focal_px.cpu(), height, width)
        depth = self.depth[number].float()
        pixels = pixel_centers(height, width, device=depth.device, dtype=torch.float32)
        start = unproject(pixels, depth, intrinsics.to(depth))
        change = self.movements[number].clone()  # frame part 3 4
        change[..., :3] -= torch.eye(3, device=change.device)
        change = change[:, self.part[number].long()]  # frame height width 3 4
        motion = torch.einsum("fhwij,hwj->fhwi", change[..., :3], start) + change[..., 3]
        shape = frames, height, width
        return TrainingSample(
            name=f"picture-{number:07d}",
            caption=self.captions[number],
            source=f"picture {number}",
            fps=self.fps,
            video=self.images[number].permute(1, 2, 0).expand(frames, -1, -1, -1),
            depth=depth,
            motion=motion.half(),
            visibility=torch.ones(shape, dtype=torch.bool, device=depth.device),
            cameras=Cameras(
                world_to_camera=torch.eye(4).expand(frames, 4, 4),
                intrinsics=intrinsics.expand(frames, 3, 3),
                height=height,
                width=width,
            ).to(depth.device),
        )

    def save(self, path: Path) -> None:
        """Write the pool to one file.

        Raises:
            OutputError: the place cannot be written.
        """
        from safetensors.torch import save_file

        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {n: v.cpu().contiguous() for n, v in values.items() if isinstance(v, Tensor)}
        about = {"captions": json.dumps(self.captions), "fps": str(self.fps)}
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=about)

    @classmethod
    def load(cls, paths: Sequence[Path]) -> "Pictures":
        """Read pools into one, in their order.

        Raises:
            SampleError: there is no file.
            FileFormatError: names a file that is damaged, holds something else, or does not go
                with the first.
        """
        if not paths:
            raise SampleError("There is no file of pictures; draw some: training.train_tiny draw")
        pools = [_read(path) for path in paths]
        first = pools[0]
        for path, pool in zip(paths, pools, strict=True):
            if pool.kind != first.kind:
                raise FileFormatError(
                    f"{path} holds pictures of (size, frames, parts, fps) {pool.kind}; expected "
                    f"{first.kind}, as {paths[0]} has. Draw them with the same settings."
                )
        joined = {name: torch.cat([getattr(p, name) for p in pools]) for name in _TENSORS}
        captions = tuple(caption for pool in pools for caption in pool.captions)
        return cls(**joined, captions=captions, fps=first.fps)


_TENSORS = frozenset(f.name for f in fields(Pictures)) - {"captions", "fps"}
"""What a file of pictures holds, besides what stands in its header."""


def _read(path: Path) -> Pictures:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about, held = file.metadata() or {}, set(file.keys())
            if held != _TENSORS or not {"captions", "fps"} <= about.keys():
                raise ValueError(f"it holds {first_five(sorted({*held, *about}))}")
            tensors = {name: file.get_tensor(name) for name in held}
        captions = tuple(json.loads(about["captions"]))
        if any(len(tensor) != len(captions) for tensor in tensors.values()):
            raise ValueError(f"it has {len(captions)} captions for {len(tensors['images'])} images")
        return Pictures(**tensors, captions=captions, fps=float(about["fps"]))
    except (SafetensorError, ValueError, TypeError) as e:
        raise FileFormatError(
            f"{path} is damaged or no file of pictures: {e}. Expected a folder with nothing but "
            "files drawn by `python -m training.train_tiny draw`, or one of shards (*.tar)."
        ) from e


class PictureSamples(Dataset[TrainingSample]):
    """The samples of a pool by number, made where the pool is."""

    has_novel_views = False

    def __init__(self, pictures: Pictures) -> None:
        self.pictures, self.device = pictures, pictures.images.device

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> TrainingSample:
        if not 0 <= number < len(self):
            raise IndexError(f"Picture {number} of {len(self)}.")
        return self.pictures.sample(number)


def draw_pictures(
    settings: ProceduralSettings, *, first_seed: int, count: int, num_workers: int = 0
) -> Pictures:
    """Draw frame 0 of the scenes of `count` seeds, in their order, by `num_workers` processes."""
    loader = DataLoader(
        _FirstFrames(settings, first_seed, count),
        batch_size=64,
        num_workers=num_workers,
        collate_fn=_stacked,
        # A forked process could not use a GPU that this one uses.
        multiprocessing_context="spawn" if num_workers else None,
        generator=torch.Generator().manual_seed(0),
    )
    drawn = list(loader)
    arrays = {name: np.concatenate([d.arrays[name] for d in drawn]) for name in drawn[0].arrays}
    return Pictures(
        **{name: torch.from_numpy(values) for name, values in arrays.items()},
        captions=tuple(caption for d in drawn for caption in d.captions),
        fps=settings.fps,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    # Arrays go through a pipe; tensors would need more shared memory than containers give.
    arrays: dict[str, np.ndarray]
    captions: list[str]


class _FirstFrames(Dataset[_Drawn]):
    def __init__(self, settings: ProceduralSettings, first_seed: int, count: int) -> None:
        self.settings, self.first_seed, self.count = settings, first_seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> _Drawn:
        size = self.settings.size
        scene = draw_scene(self.first_seed + index, self.settings)
        world = scene.world
        cameras = world.cameras(1, size.height, size.width)
        view = world.view(cameras, samples=self.settings.samples)
        focal_share = cameras.intrinsics[0, 0, 0] / max(size.height, size.width)
        part_of, movements = _movements(world.poses(world.times(size.num_frames)))
        values = {
            "images": (view.rgb[0] * 255).round().to(torch.uint8).permute(2, 0, 1),
            "depth": view.depth[0].half(),
            "log_focal": focal_share.log(),
            "part": part_of[view.object_index[0]],  # the sky is object -1, the last
            "movements": movements,
        }
        return _Drawn(
            arrays={name: value.numpy() for name, value in values.items()},
            captions=[scene.caption],
        )


def _movements(
    poses: Float[Tensor, "frame object 4 4"],
) -> tuple[UInt8[Tensor, "object_and_sky"], Float[Tensor, "frame part 3 4"]]:
    """Which part each object (and the sky) is, and how the parts move."""
    change = poses @ torch.linalg.inv(poses[:1])
    moves = (change - torch.eye(4).to(change)).abs().amax((0, 2, 3)) > 1e-9
    count = int(moves.sum())
    if count >= _MOST_PARTS:
        raise SettingsError(
            f"{count} parts of a scene move; expected fewer than {_MOST_PARTS}. Ask for fewer "
            "actors."
        )
    part_of = torch.zeros(len(moves) + 1, dtype=torch.uint8)
    part_of[:-1][moves] = torch.arange(1, count + 1, dtype=torch.uint8)
    movements = torch.eye(3, 4).repeat(len(poses), _MOST_PARTS, 1, 1)
    movements[:, 1 : count + 1] = change[:, moves, :3].float()
    return part_of, movements


def _stacked(drawn: list[_Drawn]) -> _Drawn:
    names = drawn[0].arrays
    return _Drawn(
        arrays={name: np.stack([d.arrays[name] for d in drawn]) for name in names},
        captions=[caption for d in drawn for caption in d.captions],
    )
