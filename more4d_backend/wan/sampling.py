"""From noise to latent: the schedule, guidance and denoising loop that STraG and ViSM share.

The networks predict the velocity of flow matching, noise minus latent, for a noisy latent
`(1 - sigma) * latent + sigma * noise`; their timestep is `1000 * sigma`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

Sampler = Literal["euler", "unipc", "dpm++"]
Branch = Literal["prompt", "negative", "both"]
Progress = Callable[[int, int], None]

Velocity = Callable[[Tensor, Tensor, Tensor, Branch], Tensor]
"""(noisy latent [batch ...], timestep [batch], text [batch 512 text_dim], branch) -> velocity.

`branch` says which texts the batch holds, for networks that keep a cache per branch; in "both"
the negative ones come first.
"""

NUM_TRAIN_TIMESTEPS = 1000


class SamplingError(ValueError):
    """Settings that cannot work, or a network that returned NaN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How a latent is sampled. The defaults are those of the released inference."""

    num_steps: int = 50
    """Steps from noise to latent."""

    guidance_scale: float = 6.0
    """1 is no guidance and halves the work; larger follows the prompt more."""

    sampler: Sampler = "euler"
    """The released one is "euler"; "unipc" and "dpm++" need about half the steps."""

    shift: float = 5.0
    """Moves steps towards noise. With "euler" it acts twice, as the released schedule does."""

    sequential_guidance: bool = False
    """Run the negative and the prompt branch one after the other: less memory, a bit slower."""

    guided_fraction: float = 1.0
    """Guide only this leading part of the steps (CFG-skip); the rest follow the prompt alone."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise SamplingError(f"num_steps is {self.num_steps}; expected at least 1.")
        if self.sampler not in get_args(Sampler):
            names = ", ".join(get_args(Sampler))
            raise SamplingError(f"sampler is {self.sampler!r}; expected one of {names}.")
        if not self.guidance_scale >= 0:
            raise SamplingError(f"guidance_scale is {self.guidance_scale}; expected 0 or more.")
        if not self.shift > 0:
            raise SamplingError(f"shift is {self.shift}; expected a positive number.")
        if not 0 <= self.guided_fraction <= 1:
            raise SamplingError(f"guided_fraction is {self.guided_fraction}; expected 0 to 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPair:
    """Encoded texts of both branches of guidance."""

    prompt: Float[Tensor, "batch token text_dim"]
    """What to make."""

    negative: Float[Tensor, "batch token text_dim"]
    """What guidance moves away from; usually the empty text."""


def make_scheduler(settings: SamplingSettings) -> Any:
    """Return diffusers' scheduler for the settings, with its timesteps set.

    FlowMatchEulerDiscreteScheduler shifts its range of sigmas when it is made and shifts again in
    `set_timesteps`: the schedule of the released inference. UniPC and DPM++ shift once.
    """
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
        FlowMatchEulerDiscreteScheduler,
    )
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    if settings.sampler == "euler":
        scheduler = FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=NUM_TRAIN_TIMESTEPS, shift=settings.shift
        )
    else:
        multistep = {"unipc": UniPCMultistepScheduler, "dpm++": DPMSolverMultistepScheduler}
        scheduler = multistep[settings.sampler](
            num_train_timesteps=NUM_TRAIN_TIMESTEPS,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=settings.shift,
        )
    scheduler.set_timesteps(settings.num_steps)
    return scheduler


def initial_noise(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device | str
) -> Float[Tensor, "*shape"]:
    """Draw float32 noise on the generator's device, so that a seed means the same anywhere."""
    source = "cpu" if generator is None else generator.device
    noise = torch.randn(shape, generator=generator, device=source, dtype=torch.float32)
    return noise.to(device)


@torch.no_grad()
def denoise(
    velocity: Velocity,
    noise: Float[Tensor, "batch *shape"],
    text: PromptPair,
    settings: SamplingSettings,
    *,
    progress: Progress | None = None,
) -> Float[Tensor, "batch *shape"]:
    """Integrate from noise to a latent, in float32 between the network's calls.

    Raises:
        SamplingError: the network returned NaN or infinity; names the step.
    """
    scheduler = make_scheduler(settings)
    latent = noise.float()
    num_guided = round(settings.guided_fraction * settings.num_steps)
    for step, timestep in enumerate(scheduler.timesteps):
        guided = settings.guidance_scale != 1 and step < num_guided
        predicted = _guided_velocity(velocity, latent, timestep, text, settings if guided else None)
        if not predicted.isfinite().all():
            raise SamplingError(
                f"The network returned NaN or infinity at step {step + 1} of "
                f"{settings.num_steps} (timestep {float(timestep):.1f}). Check that the weights "
                "are whole and fit the model, and use bfloat16 or float32 instead of float16."
            )
        latent = scheduler.step(predicted, timestep, latent, return_dict=False)[0]
        if progress is not None:
            progress(step + 1, settings.num_steps)
    return latent


def _guided_velocity(
    velocity: Velocity,
    latent: Tensor,
    timestep: Tensor,
    text: PromptPair,
    settings: SamplingSettings | None,
) -> Tensor:
    # Classifier-free guidance (Ho and Salimans 2022); None means the prompt alone.
    times = timestep.to(latent.device).expand(latent.shape[0])
    if settings is None:
        return velocity(latent, times, text.prompt, "prompt").float()
    if settings.sequential_guidance:
        negative = velocity(latent, times, text.negative, "negative").float()
        prompt = velocity(latent, times, text.prompt, "prompt").float()
    else:
        both = torch.cat([text.negative, text.prompt])
        doubled = velocity(torch.cat([latent] * 2), torch.cat([times] * 2), both, "both")
        negative, prompt = doubled.float().chunk(2)
    return negative + settings.guidance_scale * (prompt - negative)
