"""Procedural training samples: endless, exact, from a seed, made where they are needed.

    python -m training.procedural write DST --num-samples 1000 --seed 0 --device cuda
    python -m training.procedural sheet OUT.png --seed 0 --count 12

A sample's seed decides everything about it. On one device, with one version of torch, equal seeds
give equal bits; on another device the scene is the same and rounding differs (colours by one
level of 255 but for pixels at edges, positions by 1e-4 of their depth).
"""

import logging
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from more4d_backend.camera_paths import make_path
from more4d_backend.devices import detect_device
from more4d_backend.files import replacing
from more4d_backend.scene import Cameras

from ..data.samples import SampleSize, TrainingSample
from ..data.shards import write_shard
from .scenes import ProceduralScene, draw_scene
from .settings import ProceduralSettings

_log = logging.getLogger(__name__)


def procedural_released() -> ProceduralSettings:
    """At the size of the released weights."""
    return ProceduralSettings(size=SampleSize(num_frames=49, height=368, width=512))


def procedural_tiny() -> ProceduralSettings:
    """What the embedded weights are trained on and the demo draws from: a still camera."""
    return ProceduralSettings(
        size=SampleSize(num_frames=49, height=128, width=176), moving_camera_share=0.0
    )


def procedural_quick() -> ProceduralSettings:
    """Half the frames and half the size of the released."""
    return ProceduralSettings(size=SampleSize(num_frames=25, height=192, width=256))


PROCEDURAL_RECIPES: dict[str, Callable[[], ProceduralSettings]] = {
    "released": procedural_released,
    "tiny": procedural_tiny,
    "quick": procedural_quick,
}
"""Settings by name."""


def procedural_sample(
    seed: int, settings: ProceduralSettings, *, device: torch.device | str = "cpu"
) -> TrainingSample:
    """Make the sample of a seed; its tensors stay on `device`.

    Raises:
        SettingsError: no scene fits the settings.
    """
    return render_sample(draw_scene(seed, settings), seed, settings, device=device)


def render_sample(
    scene: ProceduralScene,
    seed: int,
    settings: ProceduralSettings,
    *,
    device: torch.device | str = "cpu",
) -> TrainingSample:
    """Cast the rays of a drawn scene: two videos, and the tracks of frame 0."""
    world, size = scene.world, settings.size
    shape = size.num_frames, size.height, size.width
    # Cameras check themselves on the CPU, so the device waits for each: all are made first.
    cameras = world.cameras(*shape)
    on_device, novel_cameras, novel_video = cameras.to(device), None, None
    if scene.novel_path is not None:
        start, path = cameras.frames([0]), scene.path_settings
        novel_cameras = make_path(scene.novel_path, start, shape[0], settings=path).to(device)
        novel_video = _bytes(world.view(novel_cameras, samples=settings.samples).rgb)
    view = world.view(on_device, samples=settings.samples)
    tracks = world.tracks(on_device, first=view)
    motion = tracks.motion.reshape(*shape, 3)
    actor_of = torch.tensor([*scene.actor_of, -1], dtype=torch.int8).to(device)
    return TrainingSample(
        name=f"procedural-{seed:09d}",
        caption=scene.caption,
        source=f"procedural seed {seed}",
        fps=settings.fps,
        video=_bytes(view.rgb),
        depth=view.depth[0].clone(),
        motion=motion.half(),
        visibility=tracks.visibility.reshape(shape),
        cameras=on_device,
        novel_video=novel_video,
        novel_cameras=novel_cameras,
        objects=scene.actors,
        object_index=actor_of[view.object_index[0]],  # the sky is object -1, the last
    )


def _bytes(rgb: Tensor) -> Tensor:
    return (rgb * 255).round().to(torch.uint8)


class ProceduralDataset(torch.utils.data.Dataset[TrainingSample]):
    """Samples by number, made when they are asked for.

    `TrainingLoader` takes it like a folder of shards. On the CPU give the loader workers; with
    `device="cuda"` give it none: samples are then made in the trainer's process.
    """

    def __init__(
        self,
        settings: ProceduralSettings,
        *,
        num_samples: int = 1_000_000,
        first_seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare the samples of the seeds from `first_seed` on."""
        if num_samples < 1 or first_seed < 0:
            raise ValueError(
                f"num_samples is {num_samples} and first_seed is {first_seed}; expected at least "
                "1 and at least 0."
            )
        self.settings, self.first_seed = settings, first_seed
        self.num_samples, self.device = num_samples, torch.device(device)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> TrainingSample:
        if not 0 <= index < self.num_samples:
            raise IndexError(f"Sample {index} of {self.num_samples}.")
        return procedural_sample(self.first_seed + index, self.settings, device=self.device)

    @property
    def has_novel_views(self) -> bool:
        """True when every sample has a second video from a novel path."""
        return bool(self.settings.novel_paths)


RecipeName = Literal["released", "tiny", "quick"]


def write(
    destination: Path,
    /,
    *,
    num_samples: int,
    seed: int = 0,
    recipe: RecipeName = "quick",
    device: str = "cpu",
    samples_per_shard: int = 100,
) -> int:
    """Write the samples of `num_samples` seeds as shards; whole shards already there are kept.

    Args:
        destination: folder of the shards.
        num_samples: how many.
        seed: the first one's; the others follow it.
        recipe: what is drawn, and at which size.
        device: what casts the rays, such as `cuda`.
        samples_per_shard: samples in one file.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard is {samples_per_shard}; expected at least 1.")
    detect_device(device)
    dataset = ProceduralDataset(
        PROCEDURAL_RECIPES[recipe](), num_samples=num_samples, first_seed=seed, device=device
    )
    for first in range(0, num_samples, samples_per_shard):
        last = min(first + samples_per_shard, num_samples)
        path = destination / f"{recipe}-{seed + first:09d}-{seed + last - 1:09d}.tar"
        if path.exists():
            _log.info("%s is there already and is kept", path)
            continue
        write_shard(path, (on_cpu(dataset[number]) for number in range(first, last)))
        _log.info("%s: %d of %d samples", path.name, last, num_samples)
    return 0


def sheet(
    destination: Path,
    /,
    *,
    seed: int = 0,
    count: int = 12,
    recipe: RecipeName = "quick",
    device: str = "cpu",
) -> int:
    """Draw a picture of `count` samples, a row each: see `training/procedural/sheet.py`.

    Args:
        destination: picture file, such as `sheet.png`.
        seed: the first one's; the others follow it.
        count: rows.
        recipe: what is drawn, and at which size.
        device: what casts the rays, such as `cuda`.
    """
    from .sheet import procedural_sheet

    detect_device(device)
    dataset = ProceduralDataset(
        PROCEDURAL_RECIPES[recipe](), num_samples=count, first_seed=seed, device=device
    )
    picture = procedural_sheet([on_cpu(dataset[number]) for number in range(count)])
    with replacing(destination) as temporary:
        picture.save(temporary, format="PNG")
    return 0


def on_cpu(sample: TrainingSample) -> TrainingSample:
    """Return a copy in main memory, where shards are written."""
    values = {f.name: getattr(sample, f.name) for f in fields(sample)}
    moved = {k: v.to("cpu") for k, v in values.items() if isinstance(v, Tensor | Cameras)}
    return replace(sample, **moved)
