"""The UNet of the embedded Geo4D: trained on latents that are kept on the device."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from more4d_backend.geo4d.modalities import RAY_DIRECTIONS, RAY_MOMENTS
from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.sampling import NUM_TRAIN_TIMESTEPS, latent_scale, trailing_timesteps

from ..run.time_boxes import Losses, TimeBox, optimize
from .objectives import CHANNELS, DenoiserObjective
from .pools import LatentPool
from .recipes import POINTS_ONLY
from .tiny_settings import TinyGeo4DTraining

if TYPE_CHECKING:
    from more4d_backend.geo4d.network import Geo4DUNet

_log = logging.getLogger(__name__)

_INFERENCE_STEPS = 5
_LAST = NUM_TRAIN_TIMESTEPS - 1
_SMALLEST_VARIANCE, _SMALLEST_ON_THE_WAY = 1e-4, 0.25
"""Errors do not count relative to less. On the way from noise the velocity is mostly noise that
the network copies, and how exactly it does would outweigh what it sees in the video."""


def train_unet(
    networks: Geo4DNetworks,
    pool: LatentPool,
    training: TinyGeo4DTraining,
    generator: torch.Generator,
    box: TimeBox,
    at_quarters: Callable[[], None] = lambda: None,
) -> int:
    """Train, and return the number of updates.

    Each channel's error counts relative to how much that channel differs between windows: ray
    moments are far smaller than points, and all modalities are needed. Of rays, half of that is how
    much the window itself differs from the mean: otherwise the few cameras that travel far would
    outweigh all others. What the log says by modality is the share of the variance that is not
    explained from pure noise: 1 knows nothing of the video, 0 all.
    """
    objective, device = DenoiserObjective(networks), generator.device
    if training.compile:
        # Not in place: what is measured on the way has other sizes, which would be compiled, too.
        mode = "reduce-overhead" if training.cuda_graphs else None
        objective.unet = cast("Geo4DUNet", torch.compile(objective.unet, mode=mode))
    elif training.cuda_graphs:
        with training.autocast():
            _record(networks, pool, training.unet_windows)
    mean, variance = pool.mean(), pool.variance()
    said = ", ".join(f"{name} {variance[part].mean():.3f}" for name, part in CHANNELS.items())
    _log.info("Windows differ in variance: %s", said)
    scale = float(latent_scale()[_LAST]) ** 2
    counts = training.modality_weights.of_channels(variance)

    def losses(step: int, progress: float) -> Losses:
        chosen = torch.randint(
            len(pool), (training.unet_windows,), generator=generator, device=device
        )
        clean, video = pool.geometry[chosen].float(), pool.video[chosen].float()
        noise = torch.randn(clean.shape, generator=generator, device=device)
        share = 1.0 if progress < training.one_step_share else training.noise_share
        times = drawn_timesteps(len(chosen), share, generator)
        shown = torch.ones_like(variance, dtype=torch.bool)
        if progress < training.points_share:
            shown = POINTS_ONLY.of_channels(variance) > 0
        errors = objective.errors(clean, video, noise, times, shown)
        last = times == _LAST
        floor = torch.where(last, _SMALLEST_VARIANCE, _SMALLEST_ON_THE_WAY)[:, None]
        relative = errors / torch.maximum(compared_with(clean, mean, variance), floor)
        # Not errors[last]: to choose by a mask waits for the device.
        at_last = (errors * last[:, None]).sum(0) / last.sum()
        unexplained = (at_last / (scale * variance)).detach()
        told = {n: unexplained[part].mean() for n, part in CHANNELS.items() if shown[part].all()}
        counted = counts * shown
        return {"loss": (relative.mean(0) * counted).sum() / counted.sum()} | told

    networks.unet.train()
    parameters = dict(networks.unet.named_parameters()) | {"context": networks.context}
    steps = optimize(parameters, losses, training.updates, box, "UNet", at_quarters)
    networks.eval()
    return steps


def compared_with(
    clean: Float[Tensor, "window 16 frame height width"],
    mean: Float[Tensor, "16 frame height width"],
    variance: Float[Tensor, " channel"],
) -> Float[Tensor, "window channel"]:
    """Return what the errors of each window count relative to."""
    own = (clean - mean).square().mean((2, 3, 4))
    compared = variance.expand_as(own).clone()
    for rays in (RAY_DIRECTIONS, RAY_MOMENTS):
        compared[:, rays] = (variance[rays] + own[:, rays]) / 2
    return compared


def _record(networks: Geo4DNetworks, pool: LatentPool, num_windows: int) -> None:
    """Record the kernels of the UNet in training and of its gradient; in place.

    From then on it replays them, for as many windows at a time; in evaluation it runs as before.
    """
    some = torch.zeros(num_windows, dtype=torch.long, device=pool.video.device)
    latents = torch.cat([pool.geometry[some], pool.video[some]], dim=1).float()
    context = networks.context.detach().clone().requires_grad_()
    networks.unet.train()
    torch.cuda.make_graphed_callables(networks.unet, (latents, some, context, some))
    _log.info("The UNet's kernels are recorded for %d windows", num_windows)


def drawn_timesteps(
    count: int, noise_share: float, generator: torch.Generator
) -> Int[Tensor, " window"]:
    """Draw timesteps: `noise_share` of them the last one, then those of sampling, then any."""
    device = generator.device
    sampled = trailing_timesteps(_INFERENCE_STEPS).to(device)
    index = torch.randint(1, len(sampled), (count,), generator=generator, device=device)
    anywhere = torch.randint(NUM_TRAIN_TIMESTEPS, (count,), generator=generator, device=device)
    kind: Float[Tensor, " window"] = torch.arange(count, device=device) / count
    times = torch.where(kind < (1 + noise_share) / 2, sampled[index], anywhere)
    return torch.where(kind < noise_share, _LAST, times)
