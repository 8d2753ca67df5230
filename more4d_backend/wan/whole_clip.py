"""A Wan VAE that takes a clip whole instead of four frames at a time: the same numbers, sooner.

diffusers runs the VAE on one latent frame after the other and keeps what causal convolutions need
of the frames before. That bounds memory, and makes a small VAE slow: a clip of 49 frames is 13 runs
of a hundred small kernels each way. All its convolutions are causal, so on the whole clip they
compute the same. Only the layers that change the frame rate treat the first frame on its own.
"""

from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan


def run_whole_clips(vae: "AutoencoderKLWan", *, compiled: bool = False) -> "AutoencoderKLWan":
    """Change a VAE (of Wan 2.1: no patches, no residual shortcuts) to run on whole clips.

    `encode` and `decode` stay as they are to their callers, and `decode_unclamped(latent)` is new;
    tiling is not for such a VAE. `compiled` compiles both, once for each size that comes.
    Returns the VAE.

    Raises:
        ValueError: another kind of VAE, or tiling is on.
    """
    if vae.config["patch_size"] is not None or vae.config["is_residual"] or vae.use_tiling:
        raise ValueError(
            "Only a Wan 2.1 VAE without tiling runs on whole clips; this one has "
            f"patch_size={vae.config['patch_size']}, is_residual={vae.config['is_residual']}, "
            f"use_tiling={vae.use_tiling}."
        )
    target: Any = vae
    encode, decode = _encode, _decode
    if compiled:
        encode, decode = (torch.compile(f, dynamic=False) for f in (encode, decode))
    target._encode = MethodType(encode, vae)
    target._decode = MethodType(_clamped, vae)
    target.decode_unclamped = MethodType(decode, vae)
    return vae


def _clamped(vae: Any, latent: Tensor, return_dict: bool = True) -> Any:
    from diffusers.models.autoencoders.vae import DecoderOutput

    video = vae.decode_unclamped(latent).clamp(-1, 1)
    return DecoderOutput(sample=video) if return_dict else (video,)


def _encode(vae: Any, video: Tensor) -> Tensor:
    encoder = vae.encoder
    hidden = encoder.conv_in(video)
    for layer in encoder.down_blocks:
        hidden = layer(hidden)
        if getattr(layer, "mode", None) == "downsample3d" and hidden.shape[2] > 1:
            hidden = torch.cat([hidden[:, :, :1], layer.time_conv(hidden)], dim=2)
    hidden = encoder.nonlinearity(encoder.norm_out(encoder.mid_block(hidden)))
    return vae.quant_conv(encoder.conv_out(hidden))


def _decode(vae: Any, latent: Tensor) -> Tensor:
    decoder = vae.decoder
    hidden = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latent)))
    for block in decoder.up_blocks:
        for layer in block.resnets:
            hidden = layer(hidden)
        for layer in block.upsamplers or ():
            if layer.mode == "upsample3d":
                hidden = torch.cat([hidden[:, :, :1], _doubled(layer, hidden[:, :, 1:])], dim=2)
            hidden = layer(hidden)
    return decoder.conv_out(decoder.nonlinearity(decoder.norm_out(hidden)))


def _doubled(layer: Any, frames: Tensor) -> Tensor:
    """Twice as many frames; none of none."""
    if frames.shape[2] == 0:
        return frames
    return rearrange(layer.time_conv(frames), "b (two c) t h w -> b c (t two) h w", two=2)
