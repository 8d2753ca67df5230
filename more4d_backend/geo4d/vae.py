"""The per-frame VAE: pictures to latents and back, with a second decoder for point maps.

The 2D VAE of Stable Diffusion. Rays, disparity and video share its stock decoder; point maps have a
fine-tuned one with a branch that predicts how uncertain each point is (arXiv 2504.07961, section
3.3). Module names are those of the released files. It is written in plain torch because ComfyUI
ships no diffusers; a test holds that diffusers' `AutoencoderKL` computes the same.

Axes: N picture, H height, W width, C channel. Pictures come and go as (N C H W).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .layers import Conv2d, GroupNorm, Pointwise2d, attention, upsampled
from .sizes import LATENT_CHANNELS, VAESize

LATENT_SCALE = 0.18215
"""Makes latents about as large as noise."""

_NORM_EPS = 1e-6
_LOG_VARIANCE_RANGE = (-30.0, 20.0)


class PictureSizeError(ValueError):
    """A height or width that the VAE cannot halve often enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedPoints:
    """A normalised point map and how uncertain each point is, in float32."""

    points: Float[Tensor, "picture 3 height width"]
    """Normalised x, y and z; see geo4d/modalities.py."""

    logit: Float[Tensor, "picture height width"]
    """Before softplus."""

    @property
    def sigma(self) -> Float[Tensor, "picture height width"]:
        """Scale of the Laplace distribution around each point, larger than 0."""
        return F.softplus(self.logit)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentDistribution:
    """The posterior of a picture, in the scaled units that the UNet sees."""

    mean: Float[Tensor, "picture 4 latent_height latent_width"]
    """What `Geo4DVAE.encode` returns."""

    log_variance: Float[Tensor, "picture 4 latent_height latent_width"]
    """Natural logarithm."""

    def sample(
        self, generator: torch.Generator | None = None
    ) -> Float[Tensor, "picture 4 latent_height latent_width"]:
        """Draw latents, on the generator's device so that a seed means the same anywhere."""
        source = "cpu" if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=source)
        return self.mean + torch.exp(self.log_variance / 2) * noise.to(self.mean.device)


class Geo4DVAE(nn.Module):
    """Encoder, stock decoder and point decoder. Latents are scaled by `LATENT_SCALE` throughout."""

    def __init__(self, size: VAESize, pictures_per_call: int = 8) -> None:
        """Make a VAE with random values; `pictures_per_call` bounds its memory."""
        super().__init__()
        self.size = size
        self.pictures_per_call = pictures_per_call
        self.encoder = Encoder(size)
        self.quant_conv = Pointwise2d(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS)
        self.image_decoder = ImageDecoder(size)
        self.point_decoder = PointDecoder(size)

    def encode(
        self, pictures: Float[Tensor, "picture 3 height width"]
    ) -> Float[Tensor, "picture 4 latent_height latent_width"]:
        """Encode pictures, or normalised maps, in [-1, 1] to the mean of their posterior.

        Raises:
            PictureSizeError: height or width is not a multiple of the latent pixel.
        """
        return self.distribution(pictures).mean

    def distribution(self, pictures: Float[Tensor, "picture 3 height width"]) -> LatentDistribution:
        """Return the whole posterior, for training.

        Raises:
            PictureSizeError: height or width is not a multiple of the latent pixel.
        """
        step = self.size.reduction
        height, width = pictures.shape[-2:]
        if height % step or width % step:
            raise PictureSizeError(
                f"Pictures are {height} x {width}; the VAE needs multiples of {step}."
            )
        moments = self._in_parts(lambda part: self.quant_conv(self.encoder(part)), pictures)
        mean, log_variance = moments.float().chunk(2, dim=1)
        return LatentDistribution(
            mean=mean * LATENT_SCALE,
            log_variance=log_variance.clamp(*_LOG_VARIANCE_RANGE) + 2 * math.log(LATENT_SCALE),
        )

    def decode(
        self,
        latents: Float[Tensor, "picture 4 latent_height latent_width"],
        *,
        reduction: int = 1,
    ) -> Float[Tensor, "picture 3 height width"]:
        """Decode ray maps, disparity or video with the stock decoder. The result has no bounds.

        With `reduction` 2 or 4 the latents are averaged over squares of that side first: the result
        is smaller by it along each side, and the work by its square. Enough for what is smooth.

        Raises:
            PictureSizeError: the latents do not divide by `reduction`.
        """
        if reduction > 1:
            if latents.shape[-2] % reduction or latents.shape[-1] % reduction:
                raise PictureSizeError(
                    f"Latents of {latents.shape[-2]} x {latents.shape[-1]} cannot be reduced by "
                    f"{reduction}. Use a smaller reduction."
                )
            latents = F.avg_pool2d(latents, reduction)
        return self._in_parts(self.image_decoder, latents / LATENT_SCALE).float()

    def decode_points(
        self, latents: Float[Tensor, "picture 4 latent_height latent_width"]
    ) -> DecodedPoints:
        """Decode point maps with the fine-tuned decoder and its uncertainty branch."""
        decoded = self._in_parts(self.point_decoder, latents / LATENT_SCALE).float()
        return DecodedPoints(points=decoded[:, :3], logit=decoded[:, 3])

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute each block in the backward pass instead of keeping what is inside it."""
        for module in self.modules():
            if isinstance(module, _Blocks):
                module.gradient_checkpointing = enabled

    def _in_parts(self, network: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
        pictures = pictures.to(self.quant_conv.weight.dtype).permute(0, 2, 3, 1)  # N H W C
        parts = [network(part) for part in pictures.split(self.pictures_per_call)]
        return torch.cat(parts).permute(0, 3, 1, 2)  # N C H W


class _Blocks(nn.Module):
    """What runs its blocks one by one, with their activations kept or made again."""

    gradient_checkpointing = False

    def _run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, hidden, use_reentrant=False)
        return block(hidden)


class Encoder(_Blocks):
    """Pictures to moments."""

    def __init__(self, size: VAESize) -> None:
        super().__init__()
        widths = [size.channels * multiple for multiple in size.channel_mult]
        self.conv_in = Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            _Level(before, width, size.num_res_blocks, size)
            for before, width in pairwise([widths[0], *widths])
        )
        for level, width in zip(list(self.down)[:-1], widths[:-1], strict=True):
            level.downsample = _Downsample(width)
        self.mid = _Middle(widths[-1], size)
        self.norm_out = GroupNorm(size.norm_groups, widths[-1], _NORM_EPS, silu=True)
        self.conv_out = Conv2d(widths[-1], 2 * LATENT_CHANNELS, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Map (N H W 3) to (N h w 8)."""
        hidden = self.conv_in(pictures)
        for level in (*self.down, self.mid):
            hidden = self._run(level, hidden)
        return self.conv_out(self.norm_out(hidden))


class Decoder(_Blocks):
    """Latents to pictures, and to the features that these are made from."""

    def __init__(self, size: VAESize) -> None:
        super().__init__()
        widths = [size.channels * multiple for multiple in size.channel_mult]
        self.conv_in = Conv2d(LATENT_CHANNELS, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1], size)
        self.up = nn.ModuleList(
            _Level(before, width, size.num_res_blocks + 1, size)
            for width, before in pairwise([*widths, widths[-1]])
        )
        for level, width in zip(list(self.up)[1:], widths[1:], strict=True):
            level.upsample = _Upsample(width)
        self.norm_out = GroupNorm(size.norm_groups, widths[0], _NORM_EPS, silu=True)
        self.conv_out = Conv2d(widths[0], 3, 3, padding=1)

    def features(self, latents: Tensor) -> Tensor:
        """Map (N h w 4) to (N H W C) of full resolution."""
        hidden = self.conv_in(latents)
        # Level 0 has the full resolution, in the released names.
        for level in (self.mid, *reversed(self.up)):
            hidden = self._run(level, hidden)
        return hidden

    def picture(self, features: Tensor) -> Tensor:
        """Map (N H W C) to (N H W 3)."""
        return self.conv_out(self.norm_out(features))


class ImageDecoder(nn.Module):
    """The stock decoder."""

    def __init__(self, size: VAESize) -> None:
        super().__init__()
        self.post_quant_conv = Pointwise2d(LATENT_CHANNELS, LATENT_CHANNELS)
        self.decoder = Decoder(size)

    def forward(self, latents: Tensor) -> Tensor:
        """Map (N h w 4), not scaled, to (N H W 3)."""
        return self.decoder.picture(self.decoder.features(self.post_quant_conv(latents)))


class PointDecoder(ImageDecoder):
    """The fine-tuned decoder, whose features also tell how uncertain each point is."""

    def __init__(self, size: VAESize) -> None:
        super().__init__(size)
        self.decoder_adaptor = UncertaintyBranch(size)

    def forward(self, latents: Tensor) -> Tensor:
        """Map (N h w 4), not scaled, to (N H W 4): normalised point, logit."""
        features = self.decoder.features(self.post_quant_conv(latents))
        return torch.cat([self.decoder.picture(features), self.decoder_adaptor(features)], dim=-1)


class UncertaintyBranch(_Blocks):
    """Features of the decoder to one logit per pixel."""

    def __init__(self, size: VAESize) -> None:
        super().__init__()
        self.up = nn.ModuleList([_Level(size.channels, size.channels, 2, size)])
        self.norm_out = GroupNorm(size.norm_groups, size.channels, _NORM_EPS, silu=True)
        self.conv_out = Conv2d(size.channels, 1, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N H W C) to (N H W 1)."""
        return self.conv_out(self.norm_out(self._run(self.up[0], features)))


class _Level(nn.Module):
    """Residual blocks of one resolution, and the step to the next one where there is one."""

    def __init__(self, in_channels: int, width: int, num_blocks: int, size: VAESize) -> None:
        super().__init__()
        widths = [in_channels] + [width] * num_blocks
        self.block = nn.ModuleList(_ResBlock(a, b, size) for a, b in pairwise(widths))
        self.downsample = nn.Identity()
        self.upsample = nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.block:
            hidden = layer(hidden)
        return self.upsample(self.downsample(hidden))


class _Middle(nn.Module):
    def __init__(self, width: int, size: VAESize) -> None:
        super().__init__()
        self.block_1 = _ResBlock(width, width, size)
        self.attn_1 = _Attention(width, size)
        self.block_2 = _ResBlock(width, width, size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(hidden)))


class _ResBlock(nn.Module):
    def __init__(self, in_channels: int, width: int, size: VAESize) -> None:
        super().__init__()
        self.norm1 = GroupNorm(size.norm_groups, in_channels, _NORM_EPS, silu=True)
        self.conv1 = Conv2d(in_channels, width, 3, padding=1)
        self.norm2 = GroupNorm(size.norm_groups, width, _NORM_EPS, silu=True)
        self.conv2 = Conv2d(width, width, 3, padding=1)
        same = in_channels == width
        self.nin_shortcut = nn.Identity() if same else Pointwise2d(in_channels, width)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.conv2(self.norm2(self.conv1(self.norm1(hidden))))
        return self.nin_shortcut(hidden) + inner


class _Attention(nn.Module):
    """All places of a picture attend to each other, with one head."""

    def __init__(self, width: int, size: VAESize) -> None:
        super().__init__()
        self.norm = GroupNorm(size.norm_groups, width, _NORM_EPS)
        self.q = Pointwise2d(width, width)
        self.k = Pointwise2d(width, width)
        self.v = Pointwise2d(width, width)
        self.proj_out = Pointwise2d(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.norm(hidden).flatten(1, 2)
        mixed = attention(self.q(inner), self.k(inner), self.v(inner), inner.shape[-1])
        return hidden + self.proj_out(mixed).view_as(hidden)


class _Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = Conv2d(width, width, 3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(F.pad(hidden, (0, 0, 0, 1, 0, 1)))


class _Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = Conv2d(width, width, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(upsampled(hidden))


VAE_BLOCKS = (_ResBlock, _Attention)
"""What encoder and decoders are made of: where nearly all of their time goes."""
