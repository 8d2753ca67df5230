"""What the Geo4D networks are trained to make small. Losses are returned per sample.

Sources: Geo4D (arXiv 2504.07961), equation 3 for the point decoder; v-prediction with dynamic
rescale (`more4d_backend.geo4d.sampling`) for the denoiser.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from more4d_backend.geo4d.modalities import DISPARITY, POINTS, RAY_DIRECTIONS, RAY_MOMENTS
from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.sampling import DEFAULT_FPS, noised
from more4d_backend.geo4d.sizes import GEOMETRY_CHANNELS
from more4d_backend.geo4d.vae import LATENT_SCALE, DecodedPoints, Geo4DVAE

from ..run.export import Export
from ..run.objectives import Objective
from ..run.settings import SettingsError
from .clips import BatchImages

_SMALLEST_SPREAD = 1e-8
"""Of latents; for a batch of pictures that are all the same."""
_SMALLEST_SIGMA = 1e-3
"""Below it the likelihood of a few perfect pixels would outweigh all others."""

CHANNELS = {
    "points": POINTS,
    "ray_directions": RAY_DIRECTIONS,
    "ray_moments": RAY_MOMENTS,
    "disparity": DISPARITY,
}
"""Modality -> its latent channels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalityWeights:
    """How much the squared error of each modality's latents counts; 0 leaves it out."""

    points: float = 1.0
    """Point maps."""

    ray_directions: float = 1.0
    """Ray directions."""

    ray_moments: float = 1.0
    """Ray moments."""

    disparity: float = 1.0
    """Disparity."""

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in CHANNELS}
        if not all(0 <= w < math.inf for w in weights.values()) or not any(weights.values()):
            raise SettingsError(
                f"The weights of the modalities are {weights}; expected 0 or more, not all 0."
            )

    def of_channels(self, like: Tensor) -> Float[Tensor, " channel"]:
        """Return one weight per latent channel."""
        weights = like.new_zeros(GEOMETRY_CHANNELS)
        for name, channels in CHANNELS.items():
            weights[channels] = getattr(self, name)
        return weights


def laplace_nll(
    decoded: DecodedPoints, target: Float[Tensor, "picture 3 height width"]
) -> Float[Tensor, " picture"]:
    """Negative log-likelihood of point maps under the predicted Laplace distributions.

    `sqrt(2) |error|_1 / sigma + ln(sqrt(2) sigma)`, mean over pixels (equation 3).
    """
    sigma = decoded.sigma.clamp_min(_SMALLEST_SIGMA)
    error = (decoded.points - target).abs().sum(1)
    likelihood = math.sqrt(2) * error / sigma + torch.log(math.sqrt(2) * sigma)
    return reduce(likelihood, "picture height width -> picture", "mean")


class PointDecoderObjective(Objective):
    """Point maps through the frozen encoder and the point decoder that is trained."""

    def __init__(self, vae: Geo4DVAE, *exports: Export) -> None:
        super().__init__(*exports)
        vae.requires_grad_(False)
        vae.point_decoder.requires_grad_(True)
        # Only what is trained is a part: engines would round what is frozen, too.
        self.vae = nn.ModuleDict({"point_decoder": vae.point_decoder})
        self._whole = (vae,)

    def losses(self, points: Float[Tensor, "clip frame 3 height width"]) -> Float[Tensor, " clip"]:
        """Return the loss of each clip."""
        (vae,) = self._whole
        flat = rearrange(points, "n f c h w -> (n f) c h w")
        with torch.no_grad():
            latents = vae.encode(flat)
        losses = laplace_nll(vae.decode_points(latents), flat)
        return reduce(losses, "(n f) -> n", "mean", n=len(points))


class VaeObjective(nn.Module):
    """All kinds of pictures through a VAE that is trained whole, for sizes without a stock one.

    Latents of ray maps are to mix as the maps do (as in the interpolation consistency of Verma et
    al. 2019). Otherwise so small pictures are written in a code of their own, in which the mean of
    two cameras is none.
    """

    divergence_weight = 1e-6
    """Of the latents' divergence from a normal distribution, per element."""

    direction_weight, moment_weight = 3.0, 20.0
    """Chosen by hand: an error of 0.01 turns a camera by half a degree, and moments are a fifteenth
    as large as points."""

    bend_weight = 0.2
    """Of how far the latents of mixed ray maps are from mixed latents."""

    def __init__(self, vae: Geo4DVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(
        self,
        video: Float[Tensor, "picture 3 height width"],
        geometry: dict[str, Float[Tensor, "picture 3 height width"]],
        generator: torch.Generator,
        *,
        likelihood: float = 1.0,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return parts of the loss by name; `loss` is their sum.

        `likelihood` goes from 0 (absolute error of points) to 1 (with sigma).
        """
        shares = mixing_shares(len(video), generator)
        rays = {name: geometry[name] for name in ("ray_directions", "ray_moments")}
        mixed = {name: mixed_halves(maps, shares) for name, maps in rays.items()}
        shown = {"video": video, "disparity": geometry["disparity"], "points": geometry["points"]}
        shown |= rays | {f"mixed_{name}": maps for name, maps in mixed.items()}
        seen = self.vae.distribution(torch.cat(list(shown.values())))
        means = dict(zip(shown, seen.mean.chunk(len(shown)), strict=True))
        latents = dict(zip(shown, seen.sample(generator).chunk(len(shown)), strict=True))

        truth = {"video": video, "disparity": geometry["disparity"]} | mixed
        coded = {n: mixed_halves(latents[n], shares) if n in rays else latents[n] for n in truth}
        decoded = self.vae.decode(torch.cat(list(coded.values()))).chunk(len(truth))
        losses = {
            name: (ours - true).abs().mean()
            for ours, (name, true) in zip(decoded, truth.items(), strict=True)
        }
        points = self.vae.decode_points(latents["points"])
        losses["points"] = (points.points - geometry["points"]).abs().mean()
        nll = laplace_nll(points, geometry["points"]).mean()
        bend = sum(bend_of(means[n], means[f"mixed_{n}"], shares) for n in rays) / len(rays)
        divergence = _divergence(seen.mean / LATENT_SCALE,
                                 seen.log_variance - 2 * math.log(LATENT_SCALE))  # fmt: skip
        loss = sum(losses.values()) + (self.moment_weight - 1) * losses["ray_moments"]
        loss = loss + (self.direction_weight - 1) * losses["ray_directions"]
        loss = loss + likelihood * 0.1 * nll + self.divergence_weight * divergence
        loss = loss + self.bend_weight * bend
        return {"loss": loss, "nll": nll, "bend": bend} | losses


def mixing_shares(count: int, generator: torch.Generator) -> Float[Tensor, "picture 1 1 1"]:
    """Draw how much of another picture is mixed into each: nothing for every second one."""
    device = generator.device
    shares = torch.rand(count, 1, 1, 1, generator=generator, device=device)
    shares[::2] = 0
    return shares


def mixed_halves(
    maps: Float[Tensor, "picture channel height width"], shares: Float[Tensor, "picture 1 1 1"]
) -> Float[Tensor, "picture channel height width"]:
    """Mix each of `maps` with the one half a batch further on."""
    return torch.lerp(maps, _partners(maps), shares.to(maps.dtype))


def _partners(maps: Tensor) -> Tensor:
    return maps.roll(max(len(maps) // 2, 1), 0)


def bend_of(means: Tensor, of_mixed: Tensor, shares: Tensor) -> Float[Tensor, ""]:
    """Squared distance between latents of mixed pictures and mixed latents.

    Relative to that between the latents that are mixed, so that it is 0 for a linear encoder only,
    and the same at any scale of the latents.
    """
    between = (means - _partners(means)).square().mean()
    return (of_mixed - mixed_halves(means, shares)).square().mean() / (between + _SMALLEST_SPREAD)


class DenoiserObjective(Objective):
    """The velocity that the UNet predicts for noisy latents."""

    def __init__(self, networks: Geo4DNetworks, *exports: Export) -> None:
        super().__init__(*exports)
        self.unet, self.context = networks.unet, networks.context

    def losses(
        self,
        clean: Float[Tensor, "window 16 frame height width"],
        video: Float[Tensor, "window 4 frame height width"],
        noise: Float[Tensor, "window 16 frame height width"],
        timestep: Int[Tensor, " window"],
        weights: ModalityWeights,
    ) -> Float[Tensor, " window"]:
        """Return the loss of each window.

        Of modalities that do not count the network is shown nothing but noise.
        """
        counts = weights.of_channels(clean)
        error = self.errors(clean, video, noise, timestep, counts > 0)
        return (error * counts).sum(1) / counts.sum()

    def errors(
        self,
        clean: Float[Tensor, "window 16 frame height width"],
        video: Float[Tensor, "window 4 frame height width"],
        noise: Float[Tensor, "window 16 frame height width"],
        timestep: Int[Tensor, " window"],
        shown: Bool[Tensor, " channel"],
    ) -> Float[Tensor, "window channel"]:
        """Return the mean squared error of the velocity, where only some channels are shown."""
        target = noised(clean * shown[:, None, None, None], noise, timestep)
        rates = torch.full_like(timestep, DEFAULT_FPS)
        inputs = torch.cat([target.noisy, video], dim=1)
        velocity = self.unet(inputs, timestep, self.context, rates).float()
        return reduce((velocity - target.velocity).square(), "n c f h w -> n c", "mean")


@torch.no_grad()
def geometry_latents(
    vae: Geo4DVAE, images: BatchImages
) -> Float[Tensor, "clip 16 frame latent_height latent_width"]:
    """Encode the images of all modalities to what the UNet is to predict."""
    clips = len(images.points)

    def encoded(pictures: Tensor) -> Tensor:
        latents = vae.encode(rearrange(pictures, "n f c h w -> (n f) c h w"))
        return rearrange(latents, "(n f) c h w -> n c f h w", n=clips)

    return torch.cat([encoded(getattr(images, name)) for name in CHANNELS], dim=1)


@torch.no_grad()
def video_latents(
    vae: Geo4DVAE, pictures: Float[Tensor, "clip frame 3 height width"]
) -> Float[Tensor, "clip 4 frame latent_height latent_width"]:
    """Encode videos to what the UNet is shown."""
    latents = vae.encode(rearrange(pictures, "n f c h w -> (n f) c h w"))
    return rearrange(latents, "(n f) c h w -> n c f h w", n=len(pictures))


def _divergence(mean: Tensor, log_variance: Tensor) -> Float[Tensor, ""]:
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
