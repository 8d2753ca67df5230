"""What the networks are trained to make small, as plain functions of tensors.

Axes: batch, channel, latent_frame, latent_height, latent_width; pixels (batch, frame, height,
width). Losses are returned per sample, so that a bad one can be named.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from more4d_backend.wan.latents import FRAMES_PER_LATENT, PIXELS_PER_LATENT, check_video_size


def stratified_noise_levels(
    num_samples: int,
    *,
    shift: float,
    generator: torch.Generator,
    rank: int = 0,
    num_ranks: int = 1,
) -> Float[Tensor, "sample"]:
    """Draw the noise levels sigma of one rank's samples, in (0, 1).

    Before the shift they are uniform; those of all ranks together are evenly spaced with one
    common random offset (Kingma et al. 2021, "Variational diffusion models", appendix I.1), so
    that a batch sees all levels. `generator` must be in the same state on every rank.
    """
    total = num_samples * num_ranks
    offset = torch.rand(1, generator=generator, device=generator.device)
    # The order is shuffled, or the first sample of rank 0 would always be the least noisy one.
    order = torch.randperm(total, generator=generator, device=generator.device)
    level = (order[rank * num_samples : (rank + 1) * num_samples] + offset) / total
    level = level.clamp(1e-3, 1 - 1e-3)
    return shift * level / (1 + (shift - 1) * level)


def add_noise(
    latent: Float[Tensor, "batch *shape"],
    noise: Float[Tensor, "batch *shape"],
    sigma: Float[Tensor, "batch"],
) -> Float[Tensor, "batch *shape"]:
    """Mix latent and noise: `(1 - sigma) * latent + sigma * noise`."""
    return torch.lerp(latent, noise, sigma.view(-1, *[1] * (latent.ndim - 1)))


def flow_matching_loss(
    velocity: Float[Tensor, "batch channel *place"],
    latent: Float[Tensor, "batch channel *place"],
    noise: Float[Tensor, "batch channel *place"],
    weight: Float[Tensor, "batch 1 *place"] | None = None,
    *,
    max_error: float | None = None,
) -> Float[Tensor, "batch"]:
    """Mean squared error of a predicted velocity against `noise - latent`, per sample.

    `weight` says how much each place counts; it need not be normalised. Elements that are off by
    more than `max_error` count as right, as in the released training.
    """
    error = velocity.float() - (noise - latent).float()
    if max_error is not None:
        error = error.masked_fill(error.abs() > max_error, 0)  # NaN stays NaN
    return _weighted_mean(error.square(), weight)


def motion_loss(
    decoded: Float[Tensor, "batch 3 frame height width"],
    motion: Float[Tensor, "batch 3 frame height width"],
    weight: Float[Tensor, "batch 1 frame height width"] | None = None,
    *,
    squared: bool = False,
) -> Float[Tensor, "batch"]:
    """Mean absolute (or squared) error of decoded motion, per sample."""
    error = decoded.float() - motion.float()
    return _weighted_mean(error.square() if squared else error.abs(), weight)


def divergence_loss(
    mean: Float[Tensor, "batch *shape"], log_variance: Float[Tensor, "batch *shape"]
) -> Float[Tensor, "batch"]:
    """Kullback-Leibler divergence from a standard normal distribution, summed per sample."""
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)


def visibility_weight(
    visibility: Bool[Tensor, "batch frame height width"], hidden_weight: float
) -> Float[Tensor, "batch 1 frame height width"]:
    """Weight 1 where the point is seen, `hidden_weight` where it is not."""
    return (hidden_weight + (1 - hidden_weight) * visibility.float()).unsqueeze(1)


def at_latent_size(
    weight: Float[Tensor, "batch 1 frame height width"],
) -> Float[Tensor, "batch 1 latent_frame latent_height latent_width"]:
    """Average a weight per pixel over what one latent element covers.

    Raises:
        VideoSizeError: frames are not 4k + 1, or the size is not a multiple of 16.
    """
    check_video_size(*weight.shape[2:])
    frames = rearrange(weight, "b 1 f h w -> b f h w")
    small = avg_pool2d(frames, PIXELS_PER_LATENT)
    rest = rearrange(small[:, 1:], "b (f four) h w -> b f four h w", four=FRAMES_PER_LATENT)
    return torch.cat([small[:, :1], rest.mean(2)], dim=1).unsqueeze(1)


def _weighted_mean(error: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return error.flatten(1).mean(1)
    weight = weight.expand_as(error).flatten(1)
    return (error.flatten(1) * weight).sum(1) / weight.sum(1)
