"""Train the embedded parts that the three trainers take as given: RGB VAE and depth network.

    python -m training.train_tiny vae --output runs/tiny
    python -m training.train_tiny depth --output runs/tiny
    python -m training.train_tiny vae --output /tmp/v --steps 2 --device cpu --precision fp32

`vae` learns colours, depth pictures and motion together, with one encoder and two decoders: from
colours alone the encoder would keep little of what a motion map holds. It writes
`wan_vae.safetensors` as embedded, and `motion_vae.safetensors` for `train_motion_vae` to go on
with. Everything is drawn from procedural seeds; no sample is stored.
"""

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from more4d_backend.strag.conditioning import depth_picture_of
from more4d_backend.strag.motion_vae import DecoderAdapter, EncoderAdapter, MotionVAE
from more4d_backend.strag.profile import OWN
from more4d_backend.tiny.depth_network import DepthNetwork
from more4d_backend.tiny.writing import fold_statistics, measured_statistics, write_embedded
from more4d_backend.wan.latents import encode_video
from more4d_backend.wan.whole_clip import run_whole_clips
from more4d_backend.weights.kinds import WeightKind

from .averaging import ParameterAverage
from .crops import moving_crops, random_clips
from .export import export_weights
from .generated import GeneratedBatches
from .losses import divergence_loss
from .networks import TINY_VAE_WIDTH
from .procedural import PROCEDURAL_RECIPES
from .run_errors import NotFiniteError
from .samples import TrainingBatch
from .targets import normalized_motion

_log = logging.getLogger(__name__)

SEEDS_APART = 1_000_000
"""The samples of training seed s begin at s times this."""
_ADAPTER_WIDTH = 32
_MOTION_SCALE = 20.0
"""Motion is a few hundredths of the picture; this brings its error to that of colours."""
_DIVERGENCE = 1e-5
"""Weight of the latents' divergence from a normal distribution, per element."""
_WARMUP_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyTraining:
    """How one of the embedded parts is trained."""

    part: Literal["vae", "depth"]
    """Which."""

    output: Path = Path("runs/tiny")
    """Folder for the weights."""

    steps: int
    """Updates."""

    batch_size: int
    """Samples of one update."""

    learning_rate: float
    """At its highest; it rises in a line and falls to nothing along half a cosine."""

    seed: int = 1
    """Of parameters and data."""

    device: str = "cuda"
    """Where."""

    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the computation; parameters are float32."""

    workers: int = 8
    """Processes that draw samples."""

    pool_size: int = 0
    """Samples that are drawn once, before training (`depth`); 0 draws new ones for each update."""

    compile: bool = False
    """Compile the VAEs. They are half again as quick after some minutes."""

    ema_decay: float = 0.995
    """Of the running mean of the parameters, which is what is written."""

    def batches(self, *, first: int, count: int, novel: bool = True) -> GeneratedBatches:
        """Draw `count` batches, from sample `first` of this training's seed on."""
        settings = PROCEDURAL_RECIPES["tiny"]()
        return GeneratedBatches(
            settings=settings if novel else replace(settings, novel_paths=()),
            first_seed=self.seed * SEEDS_APART + first,
            batch_size=self.batch_size,
            num_batches=count,
            device=torch.device(self.device),
            num_workers=self.workers,
        )

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of the update after `step` updates."""
        rise = min(1.0, (step + 1) / min(_WARMUP_STEPS, max(1, self.steps // 4)))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def autocast(self) -> torch.autocast:
        """Compute in bfloat16 inside, where the settings say so."""
        device = torch.device(self.device).type
        return torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16")


Losses = Mapping[str, Tensor]
"""Parts of a loss by name; `loss` is what is made small."""

RECIPES = {
    "vae": TinyTraining(part="vae", steps=1600, batch_size=10, learning_rate=1.5e-3),
    "depth": TinyTraining(
        part="depth", steps=6000, batch_size=32, learning_rate=2e-3, pool_size=16_000
    ),
}


class TinyVaes(nn.Module):
    """One encoder, with a decoder for pictures and one for motion."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

        self.rgb = AutoencoderKLWan(base_dim=TINY_VAE_WIDTH)
        vae = copy.deepcopy(self.rgb)
        vae.encoder = self.rgb.encoder
        adapters = EncoderAdapter(_ADAPTER_WIDTH), DecoderAdapter(_ADAPTER_WIDTH)
        self.motion = MotionVAE(vae, *adapters, OWN.latents)

    def losses(
        self,
        pictures: Float[Tensor, "clip 3 frame height width"],
        motion: Float[Tensor, "crop 3 long_frame crop_height crop_width"],
        *,
        squared: bool,
    ) -> Losses:
        """Send pictures (in [-1, 1]) and motion through and back."""
        seen = self.rgb.encode(pictures).latent_dist
        colour = (self.rgb.decode(seen.sample()).sample.float() - pictures).abs().mean()
        felt = self.motion.distribution(motion)
        error = self.motion.decode(self.motion.standardize(felt.sample())) - motion
        absolute = error.abs().mean()
        # From scratch the absolute error alone settles at no motion at all.
        mover = error.square().mean().sqrt() if squared else absolute
        divergence = sum(divergence_loss(p.mean, p.logvar).mean() / p.mean[0].numel()
                         for p in (seen, felt))  # fmt: skip
        return {
            "loss": colour + _MOTION_SCALE * mover + _DIVERGENCE * divergence,
            "colour": colour,
            "R": absolute / motion.abs().mean(),
        }


def train_vaes(training: TinyTraining) -> None:
    """Train both VAEs on new samples, and write them with their statistics folded in."""
    torch.manual_seed(training.seed)
    model = TinyVaes().to(training.device)
    for vae in (model.rgb, model.motion.vae):
        run_whole_clips(vae, compiled=training.compile)
    generator = torch.Generator(training.device).manual_seed(training.seed)

    def losses(batch: TrainingBatch, step: int) -> Losses:
        motion = normalized_motion(batch, OWN.motion)
        crops = moving_crops(motion, per_sample=3, size_px=64, generator=generator)
        pictures = random_clips(_pictures(batch), num_frames=17, generator=generator)
        return model.losses(pictures, crops, squared=step < training.steps // 6)

    batches = training.batches(first=0, count=training.steps)
    average = _train(model, enumerate(batches), losses, training)
    with torch.no_grad(), average.in_use(), training.autocast():
        _fold_statistics(model.eval(), training)
        _write_vaes(model, training)


def _pictures(batch: TrainingBatch) -> Float[Tensor, "clip 3 frame height width"]:
    """Videos of both cameras in turn, and still depth pictures, in [-1, 1]."""
    novel = batch.video if batch.novel_video is None else batch.novel_video
    chosen = torch.cat([batch.video[::2], novel[1::2]])
    colours = rearrange(chosen, "b f h w c -> b c f h w").float() / 127.5 - 1
    still = depth_picture_of(batch.depth[: max(1, batch.num_samples // 3)], OWN.motion)
    depth = repeat(still, "b h w -> b 3 f h w", f=colours.shape[2])
    return torch.cat([colours, depth])


def _fold_statistics(model: TinyVaes, training: TinyTraining) -> None:
    pictures, motions = [], []
    for batch in training.batches(first=SEEDS_APART // 2, count=8):
        for clip in _pictures(batch)[:, None]:
            # Videos, and pictures held still as 4D-STraG is given them.
            pictures += [encode_video(model.rgb, clip)]
            pictures += [encode_video(model.rgb, clip[:, :, :1].expand_as(clip))]
        motions += [model.motion.encode(m[None]) for m in normalized_motion(batch, OWN.motion)]
    for name, vae, latents in (("RGB", model.rgb, pictures), ("motion", model.motion.vae, motions)):
        mean, std = measured_statistics(latents)
        _log.info("%s latents: mean %s, std %s", name, mean.tolist(), std.tolist())
        fold_statistics(vae, mean, std)


def _write_vaes(model: TinyVaes, training: TinyTraining) -> None:
    recipe = f"training.train_tiny vae --steps {training.steps} --seed {training.seed}"
    write_embedded("wan_vae", model.rgb, folder=training.output, recipe=recipe)
    path = training.output / "motion_vae_start.safetensors"
    state, kind = model.motion.state_dict(), WeightKind.MOTION_VAE
    export_weights(state, kind, path, dtype=torch.float32, profile=OWN.name)


def train_depth(training: TinyTraining) -> None:
    """Train the depth network on a pool of pictures of frame 0, mirrored half of the time."""
    torch.manual_seed(training.seed)
    model = DepthNetwork().to(training.device)
    generator = torch.Generator(training.device).manual_seed(training.seed)
    images, depths, focals = _picture_pool(training)

    def losses(chosen: Tensor, _step: int) -> Losses:
        image = images[chosen].float() / 255
        true_depth = depths[chosen].float().log()
        mirrored = torch.rand(1, generator=generator, device=training.device) < 0.5
        if mirrored:
            image, true_depth = image.flip(-1), true_depth.flip(-1)
        depth, focal = model(image)
        error = depth - true_depth
        # Depth is judged after one scale per picture; the scale itself is learned a little.
        shape = (error - error.flatten(1).median(1).values[:, None, None]).abs().mean()
        field = (focal - focals[chosen]).abs().mean()
        return {"loss": shape + 0.1 * error.abs().mean() + field, "shape": shape, "focal": field}

    order = torch.randint(
        len(images),
        (training.steps, training.batch_size),
        generator=generator,
        device=images.device,
    )
    average = _train(model, enumerate(order), losses, training)
    recipe = f"training.train_tiny depth --steps {training.steps} --seed {training.seed}"
    with average.in_use():
        write_embedded("depth", model, folder=training.output, recipe=recipe)


def _picture_pool(training: TinyTraining) -> tuple[Tensor, Tensor, Tensor]:
    """Images (uint8), depth (float16) and logarithms of the focal length by the longer side."""
    images, depths, focals = [], [], []
    count = math.ceil(training.pool_size / training.batch_size)
    for batch in training.batches(first=0, count=count, novel=False):
        images.append(rearrange(batch.video[:, 0], "b h w c -> b c h w"))
        depths.append(batch.depth.half())
        focals.append((batch.intrinsics[:, 0, 0, 0] / max(batch.depth.shape[1:])).log())
    _log.info("Drew %d pictures", count * training.batch_size)
    return torch.cat(images), torch.cat(depths), torch.cat(focals)


def _train(
    model: nn.Module, data, losses: Callable[..., Losses], training: TinyTraining
) -> ParameterAverage:
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=training.learning_rate, weight_decay=1e-3, fused=True
    )
    average = ParameterAverage(parameters, training.ema_decay)
    start = time.perf_counter()
    for step, batch in data:
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate_at(step)
        with training.autocast():
            parts = losses(batch, step)
        parts["loss"].backward()
        norm = nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        if step % 50 == 0 or step + 1 == training.steps:
            seconds = time.perf_counter() - start
            said = ", ".join(f"{name} {float(value):.4f}" for name, value in parts.items())
            _log.info("step %d, %.0f s: %s, gradient %.2f", step, seconds, said, norm)
            if not math.isfinite(float(parts["loss"]) + float(norm)):
                raise NotFiniteError(f"Loss or gradient is not finite at step {step}: {said}.")
    return average


if __name__ == "__main__":
    import tyro

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    told = tyro.extras.overridable_config_cli({n: (n, r) for n, r in RECIPES.items()})
    {"vae": train_vaes, "depth": train_depth}[told.part](told)
