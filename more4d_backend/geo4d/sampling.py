"""From noise to geometry latents: v-prediction with zero terminal SNR, in few DDIM steps.

The schedule ends in pure noise (Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps
are Flawed"), the network predicts velocity (Salimans and Ho 2022), and clean latents shrink with
the timestep ("dynamic rescale", DynamiCrafter). Tensors are (window channel frame height width);
a timestep is 0 (clean) to 999 (noise).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..wording import counted
from .model import Geo4DNetworks

_log = logging.getLogger(__name__)

NUM_TRAIN_TIMESTEPS = 1000
DEFAULT_FPS = 24
"""What the released evaluation feeds for every video."""

_FIRST_BETA, _LAST_BETA = 0.00085, 0.012
_LAST_SCALE, _SCALE_STEPS = 0.7, 400

Rescale = Literal["corrected", "released"]


class SamplingError(ValueError):
    """Settings that cannot work, or a network that returned NaN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How latents are sampled."""

    num_steps: int | None = None
    """Calls of the UNet. None: as many as the weights are made for, 5 for the released ones."""

    rescale: Rescale = "corrected"
    """At the end: `corrected` returns the clean latent that the network predicts. `released` leaves
    its dynamic rescale in (a factor of 0.85 at 5 steps) and 3 % of the predicted noise."""

    def __post_init__(self) -> None:
        if self.num_steps is not None and not 1 <= self.num_steps <= NUM_TRAIN_TIMESTEPS:
            raise SamplingError(
                f"num_steps is {self.num_steps}; expected 1 to {NUM_TRAIN_TIMESTEPS}, or None: "
                "what the weights are made for."
            )
        if self.rescale not in get_args(Rescale):
            known = ", ".join(get_args(Rescale))
            raise SamplingError(f"rescale is {self.rescale!r}; expected one of {known}.")

    def for_networks(self, networks: Geo4DNetworks) -> "SamplingSettings":
        """Return settings with the number of steps chosen; the log says why."""
        why = "as asked for" if self.num_steps else "what these weights are made for"
        num_steps = self.num_steps or networks.num_steps
        _log.info("Denoising in %s: %s.", counted(num_steps, "step"), why)
        return replace(self, num_steps=num_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisedLatent:
    """A training example of the denoiser."""

    noisy: Float[Tensor, "window channel frame height width"]
    """What the UNet sees."""

    velocity: Float[Tensor, "window channel frame height width"]
    """What it should predict."""


def alphas_cumprod() -> Float[Tensor, " timestep"]:
    """Return the share of the clean latent's variance at each timestep; 0 at the last one."""
    betas = torch.linspace(
        _FIRST_BETA**0.5, _LAST_BETA**0.5, NUM_TRAIN_TIMESTEPS, dtype=torch.float64
    )
    roots = (1 - betas**2).cumprod(0).sqrt()
    # Zero terminal SNR: shift the last root to 0 and stretch so that the first one stays.
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2


def latent_scale() -> Float[Tensor, " timestep"]:
    """Return the factor on the clean latent at each timestep, in training and when sampling."""
    falling = torch.linspace(1, _LAST_SCALE, _SCALE_STEPS, dtype=torch.float64)
    rest = torch.full((NUM_TRAIN_TIMESTEPS - _SCALE_STEPS,), _LAST_SCALE, dtype=torch.float64)
    return torch.cat([falling, rest])


def trailing_timesteps(num_steps: int) -> Int[Tensor, " step"]:
    """Return the timesteps from noise to clean; the first one is pure noise."""
    steps = torch.arange(num_steps, dtype=torch.float64)
    return ((1 - steps / num_steps) * NUM_TRAIN_TIMESTEPS).round().long() - 1


@cache  # a copy to a GPU waits for all that runs there
def _tables(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return by timestep the factors of the clean latent and of noise, and the latent's scale."""
    with torch.inference_mode(False):
        alpha = alphas_cumprod()
        signal, spread, scale = (
            table.to(device, dtype) for table in (alpha.sqrt(), (1 - alpha).sqrt(), latent_scale())
        )
    return signal, spread, scale


def noised(
    clean: Float[Tensor, "window channel frame height width"],
    noise: Float[Tensor, "window channel frame height width"],
    timestep: Int[Tensor, " window"],
) -> NoisedLatent:
    """Add noise to clean latents for training, each window at its own timestep."""
    tables = _tables(clean.device, clean.dtype)
    signal, spread, scale = (table[timestep].view(-1, 1, 1, 1, 1) for table in tables)
    scaled = clean * scale
    return NoisedLatent(
        noisy=signal * scaled + spread * noise, velocity=signal * noise - spread * scaled
    )


@torch.no_grad()
def sample_latents(
    networks: Geo4DNetworks,
    video_latents: Float[Tensor, "window 4 frame height width"],
    noise: Float[Tensor, "window 16 frame height width"],
    *,
    fps: int = DEFAULT_FPS,
    settings: SamplingSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "window 16 frame height width"]:
    """Denoise the geometry of windows, given their videos' latents. Deterministic in its inputs.

    DDIM (Song et al. 2021) with eta 0, in float32 between the network's calls. Windows do not see
    each other. `noise` is standard normal (`wan.sampling.initial_noise` draws it from a generator).

    Raises:
        SamplingError: the network returned NaN or infinity; names the step.
        LatentSizeError: see `Geo4DUNet.forward`.
    """
    settings = settings or SamplingSettings()
    video = video_latents.to(networks.device, networks.dtype)
    latents = noise.to(networks.device, torch.float32)
    rates = torch.full((len(latents),), fps, device=networks.device)
    steps = _steps(settings.num_steps or networks.num_steps, settings.rescale)
    for number, step in enumerate(steps):
        times = torch.full_like(rates, step.timestep)
        inputs = torch.cat([latents.to(video.dtype), video], dim=1)
        velocity = networks.unet(inputs, times, networks.context, rates).float()
        # A sum is finite only if all that it sums is: one pass, and one wait for the device.
        if not velocity.sum().isfinite():
            raise SamplingError(
                f"The network returned NaN or infinity at step {number + 1} of {len(steps)} "
                f"(timestep {step.timestep}). Check that the weights are whole, and use bfloat16 "
                "or float32 instead of float16."
            )
        clean = step.signal * latents - step.spread * velocity
        predicted_noise = step.signal * velocity + step.spread * latents
        latents = step.next_signal * clean + step.next_spread * predicted_noise
        if progress is not None:
            progress(number + 1, len(steps))
    return latents


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """Factors of one DDIM step."""

    timestep: int
    """What the network is told."""

    signal: float
    """Of the clean latent in what the network sees."""

    spread: float
    """Of the noise there."""

    next_signal: float
    """Of the clean latent in what the next step sees, with the change of the dynamic rescale."""

    next_spread: float
    """Of the noise there."""


def _steps(num_steps: int, rescale: Rescale) -> list[_Step]:
    alpha, scale = alphas_cumprod().tolist(), latent_scale().tolist()
    timesteps = trailing_timesteps(num_steps).tolist()
    last = timesteps[-1]
    # After the last step, as (alpha, scale). The released code takes the first alpha for 1, and
    # never takes the last scale off.
    end = (1.0, 1.0) if rescale == "corrected" else (alpha[0], scale[last])
    states = [(alpha[t], scale[t]) for t in timesteps] + [end]
    return [
        _Step(
            timestep=timestep,
            signal=now_alpha**0.5,
            spread=(1 - now_alpha) ** 0.5,
            next_signal=next_alpha**0.5 * next_scale / now_scale,
            next_spread=(1 - next_alpha) ** 0.5,
        )
        for timestep, (now_alpha, now_scale), (next_alpha, next_scale) in zip(
            timesteps, states[:-1], states[1:], strict=True
        )
    ]
