"""The embedded VAEs as they are trained: one encoder, a decoder of pictures and one of motion."""

import copy
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from more4d_backend.strag.motion_vae import DecoderAdapter, EncoderAdapter, MotionVAE
from more4d_backend.strag.profile import OWN
from more4d_backend.wan.latents import decode_video, latent_statistics

from ..losses import divergence_loss
from ..networks import TINY_VAE_WIDTH
from ..run.averaging import ParameterAverage
from .loop import Losses

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

_ADAPTER_WIDTH = 32
_MOTION_WEIGHT = 2.0
"""Of the error of motion, against that of colours."""
_DIVERGENCE = 1e-5
"""Weight of the latents' divergence from a normal distribution, per element."""
_RESIDUAL_START = 0.1
"""What a block adds at first, relative to what it could."""
_START_LOG_VARIANCE = -8.0
"""Of the latents. From 0, as layers start, noise would hide everything for a long time."""


def _mean_absolute(error: Tensor) -> Tensor:
    return error.abs().mean()


def _root_mean_square(error: Tensor) -> Tensor:
    return error.square().mean().sqrt()


def _keep_signals(vae: nn.Module) -> None:
    """Draw a VAE's weights so that what goes in reaches the latents, and they the output.

    From torch's own initial values the latents of two clips differ by a thousandth of what all have
    in common: after thousands of updates the decoder still gave the mean clip.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanResidualBlock

    for module in vae.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, WanResidualBlock):
                module.conv2.weight *= _RESIDUAL_START


class TinyVaes(nn.Module):
    """One encoder, with a decoder for pictures and one for motion."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

        self.rgb = AutoencoderKLWan(base_dim=TINY_VAE_WIDTH)
        _keep_signals(self.rgb)
        with torch.no_grad():
            outermost = self.rgb.get_submodule("quant_conv").get_parameter("bias")
            outermost[self.rgb.config["z_dim"] :] = _START_LOG_VARIANCE
            self.rgb.get_submodule("quant_conv").get_parameter("weight")[
                self.rgb.config["z_dim"] :
            ] *= 0.1
        vae = copy.deepcopy(self.rgb)
        vae.encoder, vae.quant_conv = self.rgb.encoder, self.rgb.quant_conv
        encode = EncoderAdapter(_ADAPTER_WIDTH, normalize=False)
        decode = DecoderAdapter(_ADAPTER_WIDTH, normalize=False)
        self.motion = MotionVAE(vae, encode, decode, OWN.latents)
        self.is_split = False

    @classmethod
    def continued(cls, rgb: "AutoencoderKLWan", motion: MotionVAE) -> "TinyVaes":
        """Go on from what a training has written.

        There each VAE scales the latents of the common encoder for itself; here both are given
        them as that of pictures does.
        """
        vaes = cls()
        vaes.rgb.load_state_dict(rgb.state_dict())
        vaes.motion.load_state_dict(motion.state_dict())  # the encoder too, in full precision
        common, scaled = vaes.rgb.get_submodule("quant_conv"), rgb.get_submodule("quant_conv")
        common.load_state_dict(scaled.state_dict())
        _take_latents_of(vaes.motion.vae, scaled, instead_of=motion.vae.get_submodule("quant_conv"))
        vaes.is_split = True
        return vaes

    def get_extra_state(self) -> dict[str, bool]:
        """Return what a checkpoint holds besides tensors."""
        return {"is_split": self.is_split}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        """Take it over."""
        self.is_split = state["is_split"]

    def losses(
        self,
        pictures: Float[Tensor, "clip 3 frame height width"],
        motion: Float[Tensor, "crop 3 frame height width"],
    ) -> Losses:
        """Send pictures (in [-1, 1]) and motion through and back.

        From scratch a decoder of motion settles at no motion at all, because most places rest and
        what moves goes either way. So motion begins as one more kind of picture with the decoder of
        pictures, from which its own then starts (`split_decoders`), and until then with the root
        mean square error, for which the mean of all motions is worse than any.
        """
        shown = self.motion.encoder_prompt(motion)
        posterior = self.rgb.encode(torch.cat([pictures, shown]), return_dict=False)[0]
        latent, felt = posterior.sample().split([len(pictures), len(motion)])
        seen = decode_own_units(self.rgb, latent)
        if self.is_split:
            decoded = self.motion.decode(self.motion.standardize(felt))
        else:
            decoded = self.motion.decoder_prompt(decode_own_units(self.rgb, felt))
        colour, mover = seen.float() - pictures, decoded.float() - motion
        norm = _mean_absolute if self.is_split else _root_mean_square
        spread = divergence_loss(posterior.mean, posterior.logvar).mean() / latent[0].numel()
        return {
            "loss": norm(colour) + _MOTION_WEIGHT * norm(mover) + _DIVERGENCE * spread,
            "colour": _mean_absolute(colour),
            "R": _mean_absolute(mover) / _mean_absolute(motion),
        }

    def split_decoders(self, average: ParameterAverage) -> None:
        """Let the decoder of motion start from that of pictures, and its running mean with it."""
        self.is_split = True
        for part in ("decoder", "post_quant_conv"):
            source = self.rgb.get_submodule(part)
            self.motion.vae.get_submodule(part).load_state_dict(source.state_dict())
            for name, _ in source.named_parameters():
                mean = average.mean[f"rgb.{part}.{name}"]
                average.mean[f"motion.vae.{part}.{name}"].copy_(mean)


@torch.no_grad()
def _take_latents_of(vae: nn.Module, scaled: nn.Module, *, instead_of: nn.Module) -> None:
    """Change a decoder for latents that differ by a scale and a shift of each channel."""
    weight, bias = (scaled.get_parameter(name).double() for name in ("weight", "bias"))
    other, other_bias = (instead_of.get_parameter(name).double() for name in ("weight", "bias"))
    weight, other = weight.flatten(1), other.flatten(1)
    scale = (other * weight).sum(1) / weight.square().sum(1)
    decode = vae.get_submodule("post_quant_conv")
    inner, channels = decode.get_parameter("weight"), decode.get_parameter("weight").shape[1]
    shift = (other_bias - scale * bias)[:channels].to(inner)
    decode.get_parameter("bias").add_(torch.einsum("oi...,i->o", inner, shift))
    inner.mul_(scale[:channels].to(inner).view(1, -1, 1, 1, 1))


def decode_own_units(vae: "AutoencoderKLWan", latent: Tensor) -> Tensor:
    """Decode latents as the VAE's posterior gives them, without clamping. Gradients flow."""
    mean, std = latent_statistics(vae, latent.device)
    return decode_video(vae, (latent - mean) / std, clamp=False)
