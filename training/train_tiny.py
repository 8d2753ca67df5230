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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from more4d_backend.files import replacing
from more4d_backend.strag.motion_vae import DecoderAdapter, EncoderAdapter, MotionVAE
from more4d_backend.strag.profile import OWN
from more4d_backend.tiny.depth_network import DepthNetwork
from more4d_backend.tiny.writing import fold_statistics, measured_statistics, write_embedded
from more4d_backend.wan.latents import decode_video, encode_video, latent_statistics
from more4d_backend.wan.whole_clip import run_whole_clips
from more4d_backend.weights.kinds import WeightKind

from .averaging import ParameterAverage
from .clip_pool import MOVES, ClipPool
from .export import export_weights
from .generated import GeneratedBatches
from .losses import divergence_loss
from .networks import TINY_VAE_WIDTH
from .pictures import draw_pictures
from .procedural import PROCEDURAL_RECIPES
from .run_errors import NotFiniteError
from .samples import SampleSize

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

_log = logging.getLogger(__name__)

SEEDS_APART = 1_000_000
"""The samples of training seed s begin at s times this."""
_ADAPTER_WIDTH = 32
_MOTION_WEIGHT = 2.0
"""Of the error of motion, against that of colours."""
_DIVERGENCE = 1e-5
"""Weight of the latents' divergence from a normal distribution, per element."""
_WARMUP_STEPS = 100
_SAVE_EVERY = 1000
_WHOLE_SHARE = 0.06
"""Of the updates: the last ones, on whole clips."""
_START_LOG_VARIANCE = -8.0
"""Of the latents. From 0, as layers start, noise would hide everything for a long time."""


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

    pool_size: int
    """Samples that are drawn, before training."""

    compile: bool = False
    """Compile the VAEs. They are half again as quick after some minutes."""

    ema_decay: float = 0.995
    """Of the running mean of the parameters, which is what is written."""

    def batches(self, *, first: int, count: int) -> GeneratedBatches:
        """Draw `count` batches, from sample `first` of this training's seed on."""
        return GeneratedBatches(
            settings=PROCEDURAL_RECIPES["tiny"](),
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
    "vae": TinyTraining(
        part="vae", steps=5200, batch_size=10, learning_rate=1.5e-3, pool_size=1500
    ),
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
        with torch.no_grad():
            outermost = self.rgb.get_submodule("quant_conv").get_parameter("bias")
            outermost[self.rgb.config["z_dim"] :] = _START_LOG_VARIANCE
        vae = copy.deepcopy(self.rgb)
        vae.encoder, vae.quant_conv = self.rgb.encoder, self.rgb.quant_conv
        encode = EncoderAdapter(_ADAPTER_WIDTH, normalize=False)
        decode = DecoderAdapter(_ADAPTER_WIDTH, normalize=False)
        self.motion = MotionVAE(vae, encode, decode, OWN.latents)

    def losses(
        self,
        pictures: Float[Tensor, "clip 3 frame height width"],
        motion: Float[Tensor, "crop 3 frame height width"],
        *,
        decoder: Literal["shared", "own"],
        balanced: bool,
    ) -> Losses:
        """Send pictures (in [-1, 1]) and motion through and back.

        From scratch a decoder of motion settles at no motion at all, because most places rest and
        what moves goes either way. So motion begins as one more kind of picture with the decoder of
        pictures (`shared`), from which its own decoder then starts (`split_decoders`). `balanced`
        weighs what moves and what rests alike.
        """
        shown = self.motion.encoder_prompt(motion)
        posterior = self.rgb.encode(torch.cat([pictures, shown]), return_dict=False)[0]
        latent, felt = posterior.sample().split([len(pictures), len(motion)])
        if decoder == "shared":
            decoded = decode_own_units(self.rgb, torch.cat([latent, felt]))
            seen, decoded_motion = decoded.split([len(pictures), len(motion)])
            decoded_motion = self.motion.decoder_prompt(decoded_motion)
        else:
            seen = decode_own_units(self.rgb, latent)
            decoded_motion = self.motion.decode(self.motion.standardize(felt))
        colour = (seen - pictures).abs().mean()
        error = (decoded_motion.float() - motion).abs()
        moves = (motion.abs().amax((1, 2), keepdim=True) > MOVES).expand_as(error)
        mover = error.mean()
        if balanced:
            mover = 0.5 * (error[moves].mean() + error[~moves].mean())
        spread = divergence_loss(posterior.mean, posterior.logvar).mean() / latent[0].numel()
        return {
            "loss": colour + _MOTION_WEIGHT * mover + _DIVERGENCE * spread,
            "colour": colour,
            "R": error.mean() / motion.abs().mean(),
            "R_moving": error[moves].mean() / motion.abs()[moves].mean(),
        }

    def split_decoders(self, average: ParameterAverage) -> None:
        """Let the decoder of motion start from that of pictures, and its running mean with it."""
        for part in ("decoder", "post_quant_conv"):
            source = self.rgb.get_submodule(part)
            self.motion.vae.get_submodule(part).load_state_dict(source.state_dict())
            for name, _ in source.named_parameters():
                mean = average.mean[f"rgb.{part}.{name}"]
                average.mean[f"motion.vae.{part}.{name}"].copy_(mean)


def decode_own_units(vae: "AutoencoderKLWan", latent: Tensor) -> Tensor:
    """Decode latents as the VAE's posterior gives them, without clamping. Gradients flow."""
    mean, std = latent_statistics(vae, latent.device)
    return decode_video(vae, (latent - mean) / std, clamp=False)


def train_vaes(training: TinyTraining) -> None:
    """Train both VAEs on parts of a pool of clips, and write them with their statistics folded in.

    Most updates are on small and short parts, because what is hard is the edges of motion, which
    are everywhere; the last ones are on whole clips.
    """
    torch.manual_seed(training.seed)
    model = TinyVaes().to(training.device)
    generator = torch.Generator(training.device).manual_seed(training.seed)
    count = math.ceil(training.pool_size / training.batch_size)
    pool = ClipPool.filled(training.batches(first=0, count=count), OWN.motion)
    _log.info("Drew %d clips", len(pool.motion))
    split_step = training.steps // 2
    small_steps = round(training.steps * (1 - _WHOLE_SHARE))
    small = SampleSize(num_frames=17, height=64, width=64)
    whole = SampleSize(num_frames=pool.motion.shape[2], height=pool.motion.shape[3],
                       width=pool.motion.shape[4])  # fmt: skip

    def losses(step: int, average: ParameterAverage) -> Losses:
        if step == split_step:
            model.split_decoders(average)
        size, counts = (small, (8, 12)) if step < small_steps else (whole, (2, 4))
        return model.losses(
            pool.picture_crops(counts[0], size, generator),
            pool.motion_crops(counts[1], size, generator),
            decoder="shared" if step < split_step else "own",
            balanced=step < split_step,
        )

    for vae in (model.rgb, model.motion.vae):
        run_whole_clips(vae, compiled=training.compile)
    average = _train(model, losses, training, generator)
    for vae in (model.rgb, model.motion.vae):
        run_whole_clips(vae)
    with torch.no_grad(), average.in_use(), training.autocast():
        _log.info("On other samples: %s", _measured(model.eval(), training))
        _fold_statistics(model, pool)
        _write_vaes(model, training)


def _measured(model: TinyVaes, training: TinyTraining) -> str:
    """Errors on whole clips that were not trained on."""
    pool = ClipPool.filled(training.batches(first=SEEDS_APART // 2, count=2), OWN.motion)
    motion, errors = pool.motion.float(), []
    for clip in motion[:, None]:
        errors.append((model.motion.decode(model.motion.encode(clip)) - clip).abs().sum())
    relative = torch.stack(errors).sum() / motion.abs().sum()
    colours = pool.video[:16].float() / 127.5 - 1
    decoded = [decode_video(model.rgb, encode_video(model.rgb, clip)) for clip in colours[:, None]]
    psnr = -10 * ((torch.cat(decoded) - colours) / 2).square().mean().log10()
    return f"R {relative:.3f}, colours {psnr:.2f} dB"


def _fold_statistics(model: TinyVaes, pool: ClipPool) -> None:
    pictures, motions = [], []
    for number in range(min(64, len(pool.motion))):
        clip = pool.video[number, None].float() / 127.5 - 1
        depth = pool.depth_picture[number, None].float()
        # Videos, and pictures held still as 4D-STraG is given them.
        for seen in (clip, clip[:, :, :1].expand_as(clip), depth.expand_as(clip)):
            pictures.append(encode_video(model.rgb, seen))
        motions.append(model.motion.encode(pool.motion[number, None].float()))
    # One encoder, but two scales of what it says.
    model.motion.vae.quant_conv = copy.deepcopy(model.rgb.quant_conv)
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
    settings = PROCEDURAL_RECIPES["tiny"]()
    pool = draw_pictures(
        settings,
        first_seed=training.seed * SEEDS_APART,
        count=training.pool_size,
        num_workers=training.workers,
    ).to(training.device)
    images, depths, focals = pool.images, pool.depth, pool.log_focal

    def losses(_step: int, _average: ParameterAverage) -> Losses:
        chosen = torch.randint(
            len(images), (training.batch_size,), generator=generator, device=images.device
        )
        image = images[chosen].float() / 255
        true_depth = depths[chosen].float().log()
        if torch.rand(1, generator=generator, device=images.device) < 0.5:
            image, true_depth = image.flip(-1), true_depth.flip(-1)
        depth, focal = model(image)
        error = depth - true_depth
        # Depth is judged after one scale per picture; the scale itself is learned a little.
        shape = (error - error.flatten(1).median(1).values[:, None, None]).abs().mean()
        field = (focal - focals[chosen]).abs().mean()
        return {"loss": shape + 0.1 * error.abs().mean() + field, "shape": shape, "focal": field}

    average = _train(model, losses, training, generator)
    recipe = f"training.train_tiny depth --steps {training.steps} --seed {training.seed}"
    with average.in_use():
        write_embedded("depth", model, folder=training.output, recipe=recipe)


def _train(
    model: nn.Module,
    losses: Callable[[int, ParameterAverage], Losses],
    training: TinyTraining,
    generator: torch.Generator,
) -> ParameterAverage:
    """Train, or go on with what was begun; return the running mean of the parameters."""
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=training.learning_rate, weight_decay=1e-3, fused=True
    )
    average = ParameterAverage(parameters, training.ema_decay)
    unfinished = _Unfinished(model, optimizer, average, generator)
    path = training.output / f"{training.part}_unfinished.pt"
    first = unfinished.read(path) if path.exists() else 0
    start = time.perf_counter()
    for step in range(first, training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate_at(step)
        with training.autocast():
            parts = losses(step, average)
        parts["loss"].backward()
        norm = nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        done = step + 1
        if step % 200 == 0 or done == training.steps:
            seconds = time.perf_counter() - start
            said = ", ".join(f"{name} {value.item():.4f}" for name, value in parts.items())
            _log.info("step %d, %.0f s: %s, gradient %.2f", step, seconds, said, norm)
            if not math.isfinite(parts["loss"].item() + norm.item()):
                raise NotFiniteError(f"Loss or gradient is not finite at step {step}: {said}.")
        if done % _SAVE_EVERY == 0 and done < training.steps:
            unfinished.write(path, done)
    path.unlink(missing_ok=True)
    return average


@dataclass(frozen=True, slots=True)
class _Unfinished:
    """What a training is continued from, in one file."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: ParameterAverage
    generator: torch.Generator

    def write(self, path: Path, step: int) -> None:
        """Write everything as it is after `step` updates."""
        state = {
            "step": step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.mean,
            "averaged_updates": self.average.num_updates,
            "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state_all(),
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def read(self, path: Path) -> int:
        """Take everything over, and return the number of updates done."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, mean in state["average"].items():
            self.average.mean[name].copy_(mean)
        self.average.num_updates = state["averaged_updates"]
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        torch.cuda.set_rng_state_all(state["device_random"])
        _log.info("%s: %d updates are done", path, state["step"])
        return state["step"]


if __name__ == "__main__":
    import tyro

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    told = tyro.extras.overridable_config_cli({n: (n, r) for n, r in RECIPES.items()})
    {"vae": train_vaes, "depth": train_depth}[told.part](told)
