"""Train the embedded Geo4D: a small VAE and UNet on procedural clips, in minutes on one GPU.

    python -m training.train_tiny_geo4d --output runs/tiny-geo4d
    python -m training.train_tiny_geo4d --pool-size 8 --vae-steps 2 --unet-steps 2 \
        --device cpu --precision fp32 --workers 0 --output /tmp/g

The stages of `train_geo4d_points` and `train_geo4d`, with their objectives, over a pool of clips
that stays on the device. The VAE is trained whole, because no stock one is this small. Latents are
computed once for each clip and each of its variants, then the UNet is trained on them. Writes
`more4d_tiny_geo4d.safetensors` and prints what it measures on clips that were not trained on.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader

from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.sampling import NUM_TRAIN_TIMESTEPS, trailing_timesteps
from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.geo4d.vae import LATENT_SCALE, Geo4DVAE
from more4d_backend.weights.geo4d import save_geo4d

from .averaging import ParameterAverage
from .geo4d_objectives import (
    CHANNELS,
    DenoiserObjective,
    ModalityWeights,
    VaeObjective,
    geometry_latents,
    video_latents,
)
from .geo4d_quality import measured_quality
from .geometry_clips import GeometryBatch, GeometryClip, exact, stack_clips
from .procedural_clips import ClipSettings, ProceduralClips
from .run_errors import NotFiniteError

_log = logging.getLogger(__name__)

FILE_NAME = "more4d_tiny_geo4d.safetensors"
SEEDS_APART = 1_000_000
"""The clips of training seed s begin at s times this."""
HELD_OUT = 900_000_000
"""No trainer uses seeds from here on."""

_PICTURES_AT_ONCE = 1024
_CLIPS_AT_ONCE = 16
_START_LOG_VARIANCE = -6.0
"""Of the latents. From 0, as layers start, noise would hide everything for a long time."""
_BRANCH_START = 0.1
_INFERENCE_STEPS = 5
_WARMUP_STEPS = 100

Losses = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyGeo4DTraining:
    """How the embedded network is trained."""

    output: Path = Path("runs/tiny-geo4d")
    """Folder for the weights."""

    clips: ClipSettings = field(default_factory=ClipSettings)
    """What is drawn."""

    pool_size: int = 6000
    """Clips that are drawn, before training."""

    variants: int = 2
    """Latents of each clip: as it is, mirrored, backwards, in other colours."""

    vae_steps: int = 3000
    """Updates of the VAE."""

    vae_clips: int = 10
    """Clips of one update of the VAE; three frames of each."""

    unet_steps: int = 4000
    """Updates of the UNet."""

    unet_windows: int = 64
    """Windows of one update of the UNet."""

    learning_rate: float = 1.2e-3
    """At its highest; it rises in a line and falls to nothing along half a cosine."""

    points_share: float = 0.1
    """Of the UNet's updates: the first ones, on point maps alone."""

    noise_share: float = 0.5
    """Of the windows that are pure noise; of the rest, half are at the timesteps that sampling
    goes through, and half at any."""

    weights: ModalityWeights = field(
        default_factory=lambda: ModalityWeights(ray_directions=2.0, ray_moments=2.0)
    )
    """Of the modalities, after the first updates."""

    seed: int = 1
    """Of parameters and data."""

    device: str = "cuda"
    """Where."""

    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the computation; parameters are float32."""

    workers: int = 12
    """Processes that draw clips; 0: this one."""

    ema_decay: float = 0.998
    """Of the running mean of the parameters, which is what is written."""

    evaluated_clips: int = 64
    """Clips that were not trained on, to measure on."""

    compile: bool = False
    """Compile the UNet: a minute or two slower to start, faster per update."""

    def autocast(self) -> torch.autocast:
        """Compute in bfloat16 inside, where the settings say so."""
        device = torch.device(self.device).type
        return torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16")

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Return the learning rate of the update after `step` of `steps` updates."""
        rise = min(1.0, (step + 1) / min(_WARMUP_STEPS, max(1, steps // 4)))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def train(training: TinyGeo4DTraining) -> Path:
    """Train, and return the path of the weights."""
    torch.manual_seed(training.seed)
    networks = Geo4DNetworks(GEO4D_SIZES["tiny"]).to(training.device)
    networks.vae.pictures_per_call = _PICTURES_AT_ONCE
    generator = torch.Generator(training.device).manual_seed(training.seed)
    start = time.perf_counter()

    # 1. Clips.
    pool = ClipPool.drawn(training)
    _log.info("Drew %d clips, %.0f s", len(pool), time.perf_counter() - start)

    # 2. The VAE, and its latents brought to mean 0 and deviation 1.
    _train_vae(networks.vae, pool, training, generator)
    _standardize(networks.vae, pool)
    _log.info("VAE is trained, %.0f s", time.perf_counter() - start)

    # 3. Latents, once for all.
    latents = LatentPool.encoded(networks.vae, pool, training, generator)
    _log.info("Encoded %d windows, %.0f s", len(latents.video), time.perf_counter() - start)

    # 4. The UNet.
    del pool
    _train_unet(networks, latents, training, generator)

    # 5. The file, and what it can do.
    path = training.output / FILE_NAME
    told = f"training.train_tiny_geo4d --seed {training.seed} --vae-steps {training.vae_steps} "
    told += f"--unet-steps {training.unet_steps} --pool-size {training.pool_size}"
    save_geo4d(networks, path, metadata={"more4d_recipe": told})
    _log.info("Wrote %s: %.2f MB", path, path.stat().st_size / 1e6)
    held_out = replace(training, pool_size=training.evaluated_clips, seed=HELD_OUT // SEEDS_APART)
    for line in measured_quality(networks, _drawn(held_out)):
        _log.info("%s", line)
    _log.info("Done, %.0f s", time.perf_counter() - start)
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipPool:
    """Clips on the device, as small as they are exact enough."""

    batch: GeometryBatch
    """Depth in half precision."""

    @classmethod
    def drawn(cls, training: TinyGeo4DTraining) -> "ClipPool":
        """Draw them."""
        parts = [_halved(batch) for batch in _drawn(training)]

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
            )
        )

    def __len__(self) -> int:
        return self.batch.num_samples

    def clips(self, chosen: Tensor) -> GeometryBatch:
        """Return some clips, with depth in float32."""
        batch = self.batch
        return GeometryBatch(
            names=tuple(batch.names[i] for i in chosen.tolist()),
            video=batch.video[chosen],
            depth=batch.depth[chosen].float(),
            valid=batch.valid[chosen],
            intrinsics=batch.intrinsics[chosen],
            world_to_camera=batch.world_to_camera[chosen],
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
        cls, vae: Geo4DVAE, pool: ClipPool, training: TinyGeo4DTraining, generator: torch.Generator
    ) -> "LatentPool":
        """Encode all clips in all their variants."""
        video, geometry = [], []
        for variant in range(training.variants):
            for part in torch.arange(len(pool)).split(_CLIPS_AT_ONCE):
                batch = pool.clips(part.to(training.device))
                if variant > 0:
                    batch = varied(batch, generator, mirrored=variant % 2 == 1)
                with training.autocast():
                    video.append(video_latents(vae, batch.pictures()).half())
                    geometry.append(geometry_latents(vae, batch.images()).half())
        return cls(video=torch.cat(video), geometry=torch.cat(geometry))


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


@torch.no_grad()
def strengthen(vae: Geo4DVAE) -> None:
    """Start a VAE so that pictures get through it; in place.

    As layers start by themselves, what is in a picture fades from convolution to convolution, and
    training begins with a long time of one grey picture for all. Residual branches start small.
    """
    for name, layer in vae.named_modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if name.endswith((".conv2", ".proj_out", "decoder_adaptor.conv_out")):
            layer.get_parameter("weight").mul_(_BRANCH_START)
    bias = vae.quant_conv.bias
    assert bias is not None
    bias[len(bias) // 2 :] = _START_LOG_VARIANCE


def _train_vae(
    vae: Geo4DVAE, pool: ClipPool, training: TinyGeo4DTraining, generator: torch.Generator
) -> None:
    strengthen(vae)
    objective = VaeObjective(vae)

    def losses(step: int) -> Losses:
        chosen = torch.randint(
            len(pool), (training.vae_clips,), generator=generator, device=generator.device
        )
        batch = varied(pool.clips(chosen), generator, mirrored=step % 2 == 1)
        images = batch.images()
        frames = torch.randperm(batch.depth.shape[1], generator=generator, device=generator.device)[
            :3
        ]

        def some(pictures: Tensor) -> Tensor:
            return rearrange(pictures[:, frames], "n f c h w -> (n f) c h w")

        geometry = {name: some(getattr(images, name)) for name in CHANNELS}
        likelihood = min(1.0, step / (0.3 * training.vae_steps))
        return objective(some(batch.pictures()), geometry, generator, likelihood=likelihood)

    _optimize(dict(vae.named_parameters()), losses, training, training.vae_steps, "VAE")


def _train_unet(
    networks: Geo4DNetworks,
    pool: LatentPool,
    training: TinyGeo4DTraining,
    generator: torch.Generator,
) -> None:
    objective = DenoiserObjective(networks)
    if training.compile:
        objective.unet.compile()
    points_only = ModalityWeights(ray_directions=0, ray_moments=0, disparity=0)

    def losses(step: int) -> Losses:
        chosen = torch.randint(
            len(pool.video), (training.unet_windows,), generator=generator, device=generator.device
        )
        clean, video = pool.geometry[chosen].float(), pool.video[chosen].float()
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        times = drawn_timesteps(len(chosen), training.noise_share, generator)
        first = step < training.points_share * training.unet_steps
        loss = objective(clean, video, noise, times, points_only if first else training.weights)
        last = times == NUM_TRAIN_TIMESTEPS - 1
        return {"loss": loss.mean(), "from noise": loss[last].mean()}

    networks.unet.train()
    parameters = dict(networks.unet.named_parameters()) | {"context": networks.context}
    _optimize(parameters, losses, training, training.unet_steps, "UNet")
    networks.eval()


def drawn_timesteps(count: int, noise_share: float, generator: torch.Generator) -> Tensor:
    """Draw timesteps: `noise_share` of them the last one, then those of sampling, then any."""
    device = generator.device
    sampled = trailing_timesteps(_INFERENCE_STEPS).to(device)
    index = torch.randint(1, len(sampled), (count,), generator=generator, device=device)
    anywhere = torch.randint(NUM_TRAIN_TIMESTEPS, (count,), generator=generator, device=device)
    kind = torch.arange(count, device=device) / count
    times = torch.where(kind < (1 + noise_share) / 2, sampled[index], anywhere)
    return torch.where(kind < noise_share, NUM_TRAIN_TIMESTEPS - 1, times)


def _optimize(
    parameters: dict[str, nn.Parameter],
    losses: Callable[[int], Losses],
    training: TinyGeo4DTraining,
    steps: int,
    label: str,
) -> None:
    """Train; the parameters end as their running mean."""
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=training.learning_rate,
        weight_decay=1e-3,
        fused=training.device != "cpu",
    )
    average = ParameterAverage(parameters, training.ema_decay)
    start = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate_at(step, steps)
        with training.autocast():
            parts = losses(step)
        parts["loss"].backward()
        norm = nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        if step % 200 == 0 or step + 1 == steps:
            said = ", ".join(f"{name} {value.item():.4f}" for name, value in parts.items())
            seconds = time.perf_counter() - start
            _log.info("%s, step %d, %.0f s: %s, gradient %.2f", label, step, seconds, said, norm)
            if not math.isfinite(parts["loss"].item() + norm.item()):
                raise NotFiniteError(f"Loss or gradient is not finite at step {step}: {said}.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(average.mean[name])


@torch.no_grad()
def _standardize(vae: Geo4DVAE, pool: ClipPool) -> None:
    latents = []
    for part in torch.arange(min(len(pool), 256)).split(_CLIPS_AT_ONCE):
        batch = pool.clips(part.to(pool.batch.depth.device))
        latents.append(_by_channel(video_latents(vae, batch.pictures())))
        geometry = geometry_latents(vae, batch.images())
        latents += [_by_channel(geometry[:, channels]) for channels in CHANNELS.values()]
    joined = torch.cat(latents, dim=1)
    fold_latents(vae, joined.mean(1), joined.std(1))
    _log.info("Latents had mean %s, deviation %s", joined.mean(1).tolist(), joined.std(1).tolist())


@torch.no_grad()
def fold_latents(
    vae: Geo4DVAE, mean: Float[Tensor, " channel"], std: Float[Tensor, " channel"]
) -> None:
    """Change a VAE so that latents with this mean and deviation get 0 and 1; in place, exactly.

    What it decodes from a picture stays the same.
    """
    channels = len(mean)
    weight, bias = vae.quant_conv.weight, vae.quant_conv.bias
    assert bias is not None
    mean, std = mean.to(weight), std.to(weight)
    weight[:channels] /= std[:, None, None, None]
    bias[:channels] = bias[:channels] / std - mean / (std * LATENT_SCALE)
    bias[channels:] -= 2 * std.log()
    for decoder in (vae.image_decoder, vae.point_decoder):
        inner = decoder.post_quant_conv
        assert inner.bias is not None
        inner.bias += inner.weight[:, :, 0, 0] @ (mean / LATENT_SCALE)
        inner.weight *= std[None, :, None, None]


def _by_channel(latents: Float[Tensor, "clip 4 frame height width"]) -> Tensor:
    return rearrange(latents, "n c f h w -> c (n f h w)")


def _halved(batch: GeometryBatch) -> GeometryBatch:
    # Beyond what half precision holds there is only sky, which is not valid.
    return replace(batch, depth=batch.depth.where(batch.valid, 1.0).half())


def _drawn(training: TinyGeo4DTraining) -> Iterator[GeometryBatch]:
    """Yield batches of clips on the device."""
    device = torch.device(training.device)
    clips = ProceduralClips(
        training.clips,
        num_clips=training.pool_size,
        first_seed=training.seed * SEEDS_APART,
        device=device,
    )
    loader = DataLoader(
        clips,
        batch_size=min(_CLIPS_AT_ONCE, training.pool_size),
        num_workers=training.workers,
        collate_fn=_as_arrays,
        # A forked process could not use the GPU.
        multiprocessing_context="spawn" if training.workers else None,
        prefetch_factor=2 if training.workers else None,
        generator=torch.Generator().manual_seed(0),
    )
    for arrays in loader:
        yield _as_batch(arrays).to(device)


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


if __name__ == "__main__":
    import tyro

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    print(train(tyro.cli(TinyGeo4DTraining)))
