"""Clips and their latents on the device, for the trainer of the embedded Geo4D."""

import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader

from more4d_backend.geo4d.layers import to_channels_last
from more4d_backend.geo4d.vae import Geo4DVAE

from ..procedural.clips import ProceduralClips
from .clips import GeometryBatch, GeometryClip, exact, stack_clips
from .objectives import geometry_latents, video_latents
from .tiny_settings import HELD_OUT, SEEDS_APART, TinyGeo4DTraining

CLIPS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipPool:
    """Clips on the device, as small as they are exact enough."""

    batch: GeometryBatch
    """Depth in half precision."""

    window: int
    """Frames that are seen at one time: clips are as long or longer."""

    @classmethod
    def drawn(
        cls, training: TinyGeo4DTraining, window: int, *, seconds: float = math.inf
    ) -> "ClipPool":
        """Draw as many clips as the settings say, or as many as there is time for."""
        start, parts = time.perf_counter(), []
        for batch in drawn_clips(training):
            parts.append(_halved(batch))
            if time.perf_counter() - start > seconds:
                break

        def joined(read: Callable[[GeometryBatch], Tensor]) -> Tensor:
            return torch.cat([read(part) for part in parts])

        return cls(
            batch=GeometryBatch(
                names=tuple(name for part in parts for name in part.names),
                video=joined(lambda part: part.video),
                depth=joined(lambda part: part.depth),
                valid=joined(lambda part: part.valid),
                intrinsics=joined(lambda part: part.intrinsics),
                world_to_camera=joined(lambda part: part.world_to_camera),
            ),
            window=window,
        )

    def __len__(self) -> int:
        return self.batch.num_samples

    def windows(self, chosen: Tensor, first: Tensor) -> GeometryBatch:
        """Return one window of each of some clips, from its frame `first` on; depth in float32."""
        batch = self.batch
        clip = chosen[:, None]
        frames = first[:, None] + torch.arange(self.window, device=first.device)
        return GeometryBatch(
            names=tuple(batch.names[i] for i in chosen.tolist()),
            video=batch.video[clip, frames],
            depth=batch.depth[clip, frames].float(),
            valid=batch.valid[clip, frames],
            intrinsics=batch.intrinsics[clip, frames],
            world_to_camera=batch.world_to_camera[clip, frames],
        )

    def somewhere(self, chosen: Tensor, generator: torch.Generator) -> GeometryBatch:
        """Return windows that begin anywhere in their clips."""
        beginnings = self.batch.depth.shape[1] - self.window + 1
        first = torch.randint(
            beginnings, (len(chosen),), generator=generator, device=generator.device
        )
        return self.windows(chosen, first)

    def in_parts(self, count: int | None = None) -> Iterator[Tensor]:
        """Yield the numbers of all clips, or of the first so many, a few at a time."""
        device = self.batch.depth.device
        yield from torch.arange(min(len(self), count or len(self)), device=device).split(
            CLIPS_AT_ONCE
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentPool:
    """What the UNet is trained on, in half precision."""

    video: Float[Tensor, "window 4 frame height width"]
    """What it is shown."""

    geometry: Float[Tensor, "window 16 frame height width"]
    """What it is to predict."""

    @classmethod
    def encoded(
        cls,
        vae: Geo4DVAE,
        pool: ClipPool,
        training: TinyGeo4DTraining,
        generator: torch.Generator,
        *,
        seconds: float = math.inf,
    ) -> "LatentPool":
        """Encode a window of each clip as it is, then as many variants as there is time for."""
        start, done, video, geometry = time.perf_counter(), 0, Tensor(), Tensor()
        if training.precision == "bf16":
            # Not under autocast, which would take the slow group norms, and cast weights anew.
            vae = deepcopy(vae).to(torch.bfloat16)
            to_channels_last(vae)
        for variant in range(training.variants):
            for chosen in pool.in_parts():
                if variant > 0 and time.perf_counter() - start > seconds:
                    break
                batch = pool.somewhere(chosen, generator)
                if variant > 0:
                    batch = varied(batch, generator, mirrored=variant % 2 == 1)
                seen = video_latents(vae, batch.pictures()), geometry_latents(vae, batch.images())
                if not done:
                    # All at once: parts that are joined at the end would take twice the memory.
                    count = training.variants * len(pool)
                    video, geometry = (
                        torch.empty(count, *part.shape[1:], dtype=torch.half, device=part.device)
                        for part in seen
                    )
                here = slice(done, done + len(chosen))
                video[here], geometry[here] = seen
                done = here.stop
        return cls(video=video[:done], geometry=geometry[:done])

    def __len__(self) -> int:
        return len(self.video)

    def variance(self) -> Float[Tensor, " channel"]:
        """Return how much each channel of geometry differs between windows, frame and place alike.

        What all windows have in common needs no video to be told.
        """
        return self._some().var(0, unbiased=False).mean((1, 2, 3))

    def mean(self) -> Float[Tensor, "16 frame height width"]:
        """Return what all windows have in common."""
        return self._some().mean(0)

    def _some(self) -> Tensor:
        return self.geometry[: min(len(self), 1024)].float()


def varied(batch: GeometryBatch, generator: torch.Generator, *, mirrored: bool) -> GeometryBatch:
    """Another clip of the same world: perhaps mirrored, backwards, in other colours."""
    if mirrored:
        # x turns round: in the picture, and in the coordinates of every camera and the world.
        turn = batch.depth.new_tensor([-1.0, 1.0, 1.0, 1.0]).diag()
        with exact(turn):
            mirrored_poses = turn @ batch.world_to_camera @ turn
        intrinsics = batch.intrinsics.clone()
        intrinsics[..., 0, 2] = batch.depth.shape[-1] - intrinsics[..., 0, 2]
        batch = replace(
            batch,
            video=batch.video.flip(3),
            depth=batch.depth.flip(3),
            valid=batch.valid.flip(3),
            intrinsics=intrinsics,
            world_to_camera=mirrored_poses,
        )
    device = batch.depth.device
    if torch.rand(1, generator=generator, device=device) < 0.5:
        batch = replace(
            batch,
            video=batch.video.flip(1),
            depth=batch.depth.flip(1),
            valid=batch.valid.flip(1),
            intrinsics=batch.intrinsics.flip(1),
            world_to_camera=batch.world_to_camera.flip(1),
        )
    order = torch.randperm(3, generator=generator, device=device)
    gain = 0.75 + 0.5 * torch.rand(
        batch.num_samples, 1, 1, 1, 3, generator=generator, device=device
    )
    colors = (batch.video[..., order].float() * gain).round().clamp(0, 255).to(torch.uint8)
    return replace(batch, video=colors)


def drawn_clips(training: TinyGeo4DTraining) -> Iterator[GeometryBatch]:
    """Draw the clips of the training's seed; yield them in batches on its device."""
    yield from _drawn(training, training.seed * SEEDS_APART, training.pool_size)


def held_out_clips(training: TinyGeo4DTraining, window: int, count: int) -> list[GeometryBatch]:
    """Draw clips of one window that no trainer uses."""
    clips = replace(training.clips, num_frames=window)
    return list(_drawn(replace(training, clips=clips), HELD_OUT, count))


def _drawn(training: TinyGeo4DTraining, first_seed: int, num_clips: int) -> Iterator[GeometryBatch]:
    device = torch.device(training.device)
    workers = min(training.workers, -(-num_clips // CLIPS_AT_ONCE))
    loader = DataLoader(
        ProceduralClips(training.clips, num_clips=num_clips, first_seed=first_seed, device=device),
        batch_size=min(CLIPS_AT_ONCE, num_clips),
        num_workers=workers,
        collate_fn=_as_arrays,
        # A forked process could not use the GPU.
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=2 if workers else None,
        generator=torch.Generator().manual_seed(0),
    )
    for arrays in loader:
        yield _as_batch(arrays).to(device)


def _halved(batch: GeometryBatch) -> GeometryBatch:
    # Beyond what half precision holds there is only sky, which is not valid.
    return replace(batch, depth=batch.depth.where(batch.valid, 1.0).half())


def _as_arrays(clips: list[GeometryClip]) -> dict[str, Any]:
    # Arrays go through a pipe; tensors would need more shared memory than containers give.
    batch = _halved(stack_clips(clips))
    named = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return {n: v.cpu().numpy() if isinstance(v, Tensor) else v for n, v in named.items()}


def _as_batch(arrays: dict[str, Any]) -> GeometryBatch:
    tensors: dict[str, Any] = {
        n: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for n, v in arrays.items()
    }
    return GeometryBatch(**tensors)
