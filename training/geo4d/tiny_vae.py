"""The VAE of the embedded Geo4D: trained whole, because no stock one is this small."""

import logging

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from more4d_backend.geo4d.vae import LATENT_SCALE, Geo4DVAE

from ..run.time_boxes import Losses, TimeBox, optimize
from .objectives import CHANNELS, VaeObjective, geometry_latents, video_latents
from .pools import ClipPool, varied
from .tiny_settings import TinyGeo4DTraining

_log = logging.getLogger(__name__)

_START_LOG_VARIANCE = -6.0
"""Of the latents. From 0, as layers start, noise would hide everything for a long time."""
_BRANCH_START = 0.1
_FRAMES_OF_CLIP = 3
_LIKELIHOOD_SHARE = 0.3
"""Of the training, in which the likelihood of points comes in."""
_MEASURED_CLIPS = 256


def train_vae(
    vae: Geo4DVAE,
    pool: ClipPool,
    training: TinyGeo4DTraining,
    generator: torch.Generator,
    box: TimeBox,
) -> int:
    """Train, bring latents to mean 0 and deviation 1, and return the number of updates."""
    strengthen(vae)
    objective, device = VaeObjective(vae), generator.device

    def losses(step: int, progress: float) -> Losses:
        chosen = torch.randint(len(pool), (training.vae_clips,), generator=generator, device=device)
        batch = varied(pool.somewhere(chosen, generator), generator, mirrored=step % 2 == 1)
        images = batch.images()
        order = torch.randperm(batch.depth.shape[1], generator=generator, device=device)
        frames = order[:_FRAMES_OF_CLIP]

        def some(pictures: Tensor) -> Tensor:
            return rearrange(pictures[:, frames], "n f c h w -> (n f) c h w")

        geometry = {name: some(getattr(images, name)) for name in CHANNELS}
        likelihood = min(1.0, progress / _LIKELIHOOD_SHARE)
        return objective(some(batch.pictures()), geometry, generator, likelihood=likelihood)

    steps = optimize(dict(vae.named_parameters()), losses, training.updates, box, "VAE")
    standardize(vae, pool)
    return steps


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


@torch.no_grad()
def standardize(vae: Geo4DVAE, pool: ClipPool) -> None:
    """Bring the latents of all kinds of pictures together to mean 0 and deviation 1."""
    latents = []
    for chosen in pool.in_parts(_MEASURED_CLIPS):
        batch = pool.windows(chosen, torch.zeros_like(chosen))
        latents.append(_by_channel(video_latents(vae, batch.pictures())))
        geometry = geometry_latents(vae, batch.images())
        latents += [_by_channel(geometry[:, channels]) for channels in CHANNELS.values()]
    joined = torch.cat(latents, dim=1)
    mean, std = joined.mean(1), joined.std(1)
    fold_latents(vae, mean, std)
    said = (" ".join(f"{value:.3f}" for value in values.tolist()) for values in (mean, std))
    _log.info("Latents had mean %s, deviation %s", *said)


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
    # The noise of sampled latents shrinks with them.
    bias[channels:] -= 2 * std.log()
    for decoder in (vae.image_decoder, vae.point_decoder):
        inner = decoder.post_quant_conv
        assert inner.bias is not None
        inner.bias += inner.weight[:, :, 0, 0] @ (mean / LATENT_SCALE)
        inner.weight *= std[None, :, None, None]


def _by_channel(latents: Float[Tensor, "clip 4 frame height width"]) -> Tensor:
    return rearrange(latents, "n c f h w -> c (n f h w)")
