"""What 4D-STraG is told of the image: control, depth and reference latents, all by the RGB VAE.

Channels of the transformer's input: 16 noise, 16 control, 16 zeros, 16 depth
(reference code, pipeline_wan_fun_control.py; equation 2 of the paper leaves the zeros out).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from ..motion import MotionNormalization, repaired_depth
from ..wan.latents import LATENT_CHANNELS, encode_video
from .profile import GREY_LEVEL, StragWeightsProfile

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

VideoEncoder = Callable[[Tensor], Tensor]
"""Video (batch, 3, frame, height, width) in [-1, 1] -> normalised latent, as `encode_video`."""

_MAX_DEPTH = 1e4
_MIN_DEPTH = 1e-5
_MIN_RANGE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class StragCondition:
    """Conditioning latents of one image."""

    channels: Float[Tensor, "batch 48 latent_frame latent_height latent_width"]
    """Control, zeros, depth: what follows the noise in the transformer's input."""

    reference_latent: Float[Tensor, "batch 16 latent_height latent_width"]
    """Leads the video as one more frame."""


def encode_condition(
    vae: "AutoencoderKLWan",
    image: Float[Tensor, "batch height width 3"],
    depth: Float[Tensor, "batch height width"],
    num_frames: int,
    profile: StragWeightsProfile,
) -> StragCondition:
    """Encode images (sRGB in [0, 1]) and their frame-0 depth, repeated over the frames."""
    return condition_by(partial(encode_video, vae), image, depth, num_frames, profile)


def condition_by(
    encode: VideoEncoder,
    image: Float[Tensor, "batch height width 3"],
    depth: Float[Tensor, "batch height width"],
    num_frames: int,
    profile: StragWeightsProfile,
) -> StragCondition:
    """Do the same with any encoder of videos, such as that of a host."""
    picture = rearrange(2 * image - 1, "b h w c -> b c 1 h w")
    control = encode(picture.expand(-1, -1, num_frames, -1, -1))
    depth_latent = torch.zeros_like(control)
    if profile.depth_latent:
        depth_picture = repeat(depth_picture_of(depth, profile.motion), "b h w -> b 3 1 h w")
        depth_latent = encode(depth_picture.expand(-1, -1, num_frames, -1, -1))
    if profile.reference_latent == "image":
        reference = encode(picture)[:, :, 0]
    else:
        reference = torch.zeros_like(control[:, :, 0])
    channels = torch.cat([control, torch.zeros_like(control), depth_latent], dim=1)
    assert channels.shape[1] == 3 * LATENT_CHANNELS
    return StragCondition(channels=channels, reference_latent=reference)


def depth_picture_of(
    depth: Float[Tensor, "batch height width"], normalization: MotionNormalization
) -> Float[Tensor, "batch height width"]:
    """Depth stretched to [-1, 1] per image; constant depth becomes -1.

    What is done with unusable depth is part of how the weights were trained, as in
    `normalize_motion`: the released training puts 1 there, ours the median.
    """
    if normalization.depth_repair == "one":
        good = depth.isfinite() & (depth >= _MIN_DEPTH)
        repaired = depth.where(good, torch.ones_like(depth)).clamp(max=_MAX_DEPTH)
    else:
        repaired = torch.stack([repaired_depth(d, normalization) for d in depth])
    low = repaired.amin((1, 2), keepdim=True)
    span = (repaired.amax((1, 2), keepdim=True) - low).clamp_min(_MIN_RANGE)
    return 2 * (repaired - low) / span - 1


def clip_picture(
    image: Float[Tensor, "height width 3"], profile: StragWeightsProfile
) -> Float[Tensor, "height width 3"]:
    """Return the picture that CLIP is shown: the image, or the released training's grey."""
    if profile.clip_image == "image":
        return image
    return torch.full_like(image, GREY_LEVEL / 255)


def perceived_picture(
    image: Float[Tensor, "height width 3"], profile: StragWeightsProfile
) -> Float[Tensor, "1 3 height width"]:
    """Return the picture that motion perception is shown, in the profile's range."""
    low, high = profile.perception_range
    return rearrange(low + (high - low) * image, "h w c -> 1 c h w")
