"""The motion-sensitive VAE: normalised motion to Wan latents and back.

A small adapter turns a motion map into something that the RGB VAE can encode, a second one turns
what the VAE decodes back into motion (MoRe4D, arXiv 2512.05044, section 3.2). The VAE between them
is diffusers' `AutoencoderKLWan`. Module names are those of the released files. The adapters take
their layers from a factory (`operations`, torch.nn by default), so that the ComfyUI host can build
them as its own and put them around its own Wan VAE.

Axes: motion (batch, 3, frame, height, width) in normalised units; latent (batch, channel,
latent_frame, latent_height, latent_width).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from ..wan.latents import decode_video, encode_distribution, latent_statistics

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

RELEASED_ADAPTER_WIDTH = 128

FRAMES_PER_CALL = 16
"""The adapters see frames one by one; this many at once fill a GPU and bound the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionLatentSettings:
    """What must be as it was when the motion VAE and the transformer were trained."""

    clamp_decoded: bool
    """Whether the decoder adapter sees the VAE's output clamped to [-1, 1]."""

    latent_mean: tuple[float, ...] | None = None
    """Second standardisation of motion latents, after Wan's own; one number per channel."""

    latent_std: tuple[float, ...] | None = None
    """See `latent_mean`; both or neither."""

    def standardized(
        self, wan_units: Float[Tensor, "batch channel latent_frame latent_height latent_width"]
    ) -> Float[Tensor, "batch channel latent_frame latent_height latent_width"]:
        """From latents as Wan standardises them to those of the transformer."""
        mean, std = self._statistics(wan_units)
        return (wan_units - mean) / std

    def wan_units(
        self, latent: Float[Tensor, "batch channel latent_frame latent_height latent_width"]
    ) -> Float[Tensor, "batch channel latent_frame latent_height latent_width"]:
        """Inverse of `standardized`."""
        mean, std = self._statistics(latent)
        return latent * std + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if self.latent_mean is None or self.latent_std is None:
            return like.new_zeros(1), like.new_ones(1)
        mean, std = like.new_tensor([self.latent_mean, self.latent_std]).view(2, 1, -1, 1, 1, 1)
        return mean, std


class EncoderAdapter(nn.Module):
    """Normalised motion to a video in [-1, 1] that the Wan VAE can encode."""

    def __init__(
        self, width: int = RELEASED_ADAPTER_WIDTH, operations: Any = nn, *, normalize: bool = True
    ) -> None:
        """Make an adapter; without `normalize` it has no group norms. See `_norm`."""
        super().__init__()
        self.conv_in = operations.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList([_Stage(width, 1, operations, normalize)])
        self.norm_out = _norm(width, operations, normalize)
        self.conv_out = operations.Conv2d(width, 3, 3, padding=1)
        # Close to the bare tanh of the reference's zero, but not zero: from zero no gradient
        # would reach the layers before this one.
        nn.init.normal_(self.conv_out.weight, std=1e-3)
        assert self.conv_out.bias is not None
        nn.init.zeros_(self.conv_out.bias)

    def forward(
        self, motion: Float[Tensor, "batch 3 frame height width"]
    ) -> Float[Tensor, "batch 3 frame height width"]:
        """Return `2 * sigmoid(h + motion) - 1`, written as the tanh that it is."""
        return self.adapt(motion.to(self.conv_in.weight))

    def adapt(
        self, motion: Float[Tensor, "batch 3 frame height width"]
    ) -> Float[Tensor, "batch 3 frame height width"]:
        """Do the same where the motion is, for layers that bring their weights to their input."""
        return _per_frame(self._frames, motion)

    def _frames(self, motion: Float[Tensor, "image 3 height width"]) -> Tensor:
        hidden = self.down[0](self.conv_in(motion))
        return torch.tanh((self.conv_out(silu(self.norm_out(hidden))) + motion) / 2)


class DecoderAdapter(nn.Module):
    """What the Wan VAE decoded to normalised motion."""

    def __init__(
        self, width: int = RELEASED_ADAPTER_WIDTH, operations: Any = nn, *, normalize: bool = True
    ) -> None:
        """Make an adapter; without `normalize` it has no group norms. See `_norm`."""
        super().__init__()
        self.conv_in = operations.Conv2d(3, width, 3, padding=1)
        self.up = nn.ModuleList([_Stage(width, 2, operations, normalize)])
        self.norm_out = _norm(width, operations, normalize)
        self.conv_out = operations.Conv2d(width, 3, 3, padding=1)
        self.adds = not normalize
        if self.adds:
            nn.init.normal_(self.conv_out.weight, std=1e-3)
            nn.init.zeros_(self.conv_out.bias)

    def forward(
        self, video: Float[Tensor, "batch 3 frame height width"]
    ) -> Float[Tensor, "batch 3 frame height width"]:
        """Return normalised motion; it has no bounds.

        A narrow adapter, without norms, begins as the inverse of the encoder adapter's tanh (for
        small motion) and learns what to add.
        """
        return self.adapt(video.to(self.conv_in.weight))

    def adapt(
        self, video: Float[Tensor, "batch 3 frame height width"]
    ) -> Float[Tensor, "batch 3 frame height width"]:
        """Do the same where the video is, for layers that bring their weights to their input."""
        return _per_frame(self._frames, video)

    def _frames(self, video: Float[Tensor, "image 3 height width"]) -> Tensor:
        hidden = self.up[0](self.conv_in(video))
        motion = self.conv_out(silu(self.norm_out(hidden)))
        return motion + 2 * video if self.adds else motion


class MotionVAE(nn.Module):
    """Both adapters around a Wan VAE whose decoder is fine-tuned for motion.

    Tiling and slicing are those of `vae` (`motion_vae.vae.enable_tiling()`).
    """

    def __init__(
        self,
        vae: "AutoencoderKLWan",
        encoder_prompt: EncoderAdapter,
        decoder_prompt: DecoderAdapter,
        settings: MotionLatentSettings,
    ) -> None:
        super().__init__()
        self.vae = vae
        self.encoder_prompt = encoder_prompt
        self.decoder_prompt = decoder_prompt
        self.settings = settings

    def distribution(
        self, motion: Float[Tensor, "batch 3 frame height width"]
    ) -> "DiagonalGaussianDistribution":
        """Posterior in the VAE's own units, for losses. Gradients reach the encoder adapter.

        Raises:
            VideoSizeError: frames are not 4k + 1, or the size is not a multiple of 16.
        """
        return encode_distribution(self.vae, self.encoder_prompt(motion))

    def standardize(
        self, own_units: Float[Tensor, "batch channel latent_frame latent_height latent_width"]
    ) -> Float[Tensor, "batch channel latent_frame latent_height latent_width"]:
        """From the VAE's own units to those of the transformer, in float32."""
        mean, std = latent_statistics(self.vae, own_units.device)
        return self.settings.standardized((own_units.float() - mean) / std)

    def encode(
        self,
        motion: Float[Tensor, "batch 3 frame height width"],
        *,
        sample: bool = False,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch channel latent_frame latent_height latent_width"]:
        """Encode normalised motion to the float32 latent that the transformer predicts.

        The posterior's mode, or with `sample=True` a draw from it.

        Raises:
            VideoSizeError: frames are not 4k + 1, or the size is not a multiple of 16.
        """
        posterior = self.distribution(motion)
        return self.standardize(posterior.sample(generator) if sample else posterior.mode())

    def decode(
        self, latent: Float[Tensor, "batch channel latent_frame latent_height latent_width"]
    ) -> Float[Tensor, "batch 3 frame height width"]:
        """Decode a latent to float32 normalised motion. Inverse of `encode`, but for loss."""
        wan_units = self.settings.wan_units(latent.float())
        video = decode_video(self.vae, wan_units, clamp=self.settings.clamp_decoded)
        return self.decoder_prompt(video).float()


class _Stage(nn.Module):
    def __init__(self, width: int, num_blocks: int, operations: Any, normalize: bool) -> None:
        super().__init__()
        blocks = [_ResidualBlock(width, operations, normalize) for _ in range(num_blocks)]
        self.block = nn.ModuleList(blocks)

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.block:
            hidden = block(hidden)
        return hidden


class _ResidualBlock(nn.Module):
    def __init__(self, width: int, operations: Any, normalize: bool) -> None:
        super().__init__()
        self.norm1 = _norm(width, operations, normalize)
        self.conv1 = operations.Conv2d(width, width, 3, padding=1)
        self.norm2 = _norm(width, operations, normalize)
        self.conv2 = operations.Conv2d(width, width, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.conv1(silu(self.norm1(hidden)))
        return hidden + self.conv2(silu(self.norm2(inner)))


def _norm(width: int, operations: Any, normalize: bool) -> nn.Module:
    # A group norm of few channels divides a frame by the size of its own motion, which the layers
    # after it must then guess: narrow adapters do better without.
    if not normalize:
        return nn.Identity()
    return operations.GroupNorm(min(32, width), width, eps=1e-6)


def _per_frame(network, video: Tensor) -> Tensor:
    frames = rearrange(video, "b c f h w -> (b f) c h w")
    done = torch.cat([network(chunk) for chunk in frames.split(FRAMES_PER_CALL)])
    return rearrange(done, "(b f) c h w -> b c f h w", b=video.shape[0])
