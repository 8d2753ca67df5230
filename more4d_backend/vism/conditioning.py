"""A rendered video and its hole mask, as the inpainting transformer is told of them.

Axes: rendered video (frame, height, width, 3), sRGB in [0, 1]; hole mask (frame, height, width),
True = to be filled. Channel order of the transformer's input: noise 16, mask 4, image 16.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from ..shapes import check_shapes
from ..wan.latents import FRAMES_PER_LATENT, encode_video, latent_size

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

_log = logging.getLogger(__name__)

NEARLY_ALL = 0.95
NEARLY_NONE = 1e-3
FLAT = 2 / 255
"""Colours that vary less than this are one colour: a background, not a picture."""


def masked_video(
    rendered: Float[Tensor, "frame height width 3"], hole_mask: Bool[Tensor, "frame height width"]
) -> Float[Tensor, "1 3 frame height width"]:
    """Return the video in [-1, 1] with holes at 0, which is mid-grey."""
    video = rearrange(rendered * 2 - 1, "f h w c -> 1 c f h w")
    return video.masked_fill(hole_mask, 0)


def mask_latent(
    hole_mask: Bool[Tensor, "frame height width"],
) -> Float[Tensor, "1 4 latent_frame latent_height latent_width"]:
    """Pack the mask into latent size: 1 = known, 4 channels for the 4 frames of a latent frame.

    The first latent frame is one frame, so its channels are equal.

    Raises:
        VideoSizeError: frames are not 4k + 1, or the size is not a multiple of 16.
    """
    num_latent_frames, height, width = latent_size(*hole_mask.shape)
    known = (~hole_mask).float()
    first = repeat(known[:1], "1 h w -> 1 c 1 h w", c=FRAMES_PER_LATENT)
    packed = interpolate(first, size=(1, height, width), mode="trilinear")
    if num_latent_frames > 1:
        rest = rearrange(known[1:], "(f c) h w -> 1 c f h w", c=FRAMES_PER_LATENT)
        size = (num_latent_frames - 1, height, width)
        packed = torch.cat([packed, interpolate(rest, size=size, mode="trilinear")], dim=2)
    return packed


def condition_latent(
    vae: "AutoencoderKLWan",
    rendered: Float[Tensor, "frame height width 3"],
    hole_mask: Bool[Tensor, "frame height width"],
) -> Float[Tensor, "1 20 latent_frame latent_height latent_width"]:
    """Return mask latent and masked-video latent, the 20 channels after the noise.

    Where everything is a hole they are all zero: that is how the network was told in training
    that there is nothing to go by.

    Raises:
        VideoSizeError: frames are not 4k + 1, or the size is not a multiple of 16.
    """
    return condition_by(partial(encode_video, vae), rendered, hole_mask)


def condition_by(
    encode: Callable[[Tensor], Tensor],
    rendered: Float[Tensor, "frame height width 3"],
    hole_mask: Bool[Tensor, "frame height width"],
) -> Float[Tensor, "1 20 latent_frame latent_height latent_width"]:
    """Do the same with any encoder of videos in [-1, 1] to normalised latents."""
    mask = mask_latent(hole_mask)
    if hole_mask.all():
        return torch.zeros_like(mask[:, :1]).repeat(1, 20, 1, 1, 1)
    image = encode(masked_video(rendered, hole_mask))
    return torch.cat([mask.to(image), image], dim=1)


def check_holes(
    rendered: Float[Tensor, "frame height width 3"], hole_mask: Bool[Tensor, "frame height width"]
) -> None:
    """Check that mask and video belong together, and warn of masks that are likely mistakes.

    Raises:
        ShapeError: mask and video differ in size.
        ValueError: the video is not finite, or not in [0, 1].
    """
    check_shapes(
        rendered=(rendered, "frame height width 3"), hole_mask=(hole_mask, "frame height width")
    )
    low, high = rendered.aminmax()
    if not (low >= 0 and high <= 1):  # also false for NaN
        raise ValueError(
            f"The rendered video has values from {float(low):.4g} to {float(high):.4g}; expected "
            "sRGB from 0 to 1. Divide 8-bit values by 255."
        )
    if (warning := hole_warning(rendered, hole_mask)) is not None:
        _log.warning(warning)


def hole_warning(
    rendered: Float[Tensor, "frame height width 3"], hole_mask: Bool[Tensor, "frame height width"]
) -> str | None:
    """Say what is likely wrong with a mask; None where nothing is."""
    fraction = float(hole_mask.float().mean())
    if _looks_inverted(rendered, hole_mask):
        return (
            "The hole mask looks inverted: what it marks as known has one colour, and the "
            "picture is in what it marks as holes. True (white) must mean: to be filled."
        )
    if fraction > NEARLY_ALL:
        return (
            f"The hole mask covers {100 * fraction:.1f} % of the video: nearly everything is "
            "invented. Is the mask inverted, or does the camera leave the scene?"
        )
    if fraction < NEARLY_NONE:
        return (
            f"The hole mask covers {100 * fraction:.3f} % of the video: there is next to nothing "
            "to fill."
        )
    return None


def paste_back(
    known: Float[Tensor, "frame height width 3"],
    filled: Float[Tensor, "frame height width 3"],
    hole_mask: Bool[Tensor, "frame height width"],
    feather_px: int = 8,
) -> Float[Tensor, "frame height width 3"]:
    """Put the known pixels over a filled video; the seam fades over `feather_px` of known pixels.

    Every hole keeps what was filled in, and pixels further than `feather_px` (in rows or
    columns) from any hole are exactly the known ones.

    Raises:
        ShapeError: the sizes differ.
        ValueError: `feather_px` is negative.
    """
    check_shapes(
        known=(known, "frame height width 3"),
        filled=(filled, "frame height width 3"),
        hole_mask=(hole_mask, "frame height width"),
    )
    if feather_px < 0:
        raise ValueError(f"feather_px is {feather_px}; expected 0 or more.")
    # Grow the holes by a radius, then average over the same radius: 1 in every hole, 0 beyond.
    radius = feather_px // 2
    size = 2 * radius + 1
    grown = max_pool2d(hole_mask[:, None].to(known), (size, 1), 1, (radius, 0))
    grown = max_pool2d(grown, (1, size), 1, (0, radius))
    share = avg_pool2d(grown, (size, 1), 1, (radius, 0), count_include_pad=False)
    share = avg_pool2d(share, (1, size), 1, (0, radius), count_include_pad=False)
    return torch.lerp(known, filled, rearrange(share, "f 1 h w -> f h w 1"))


def _looks_inverted(rendered: Tensor, hole_mask: Tensor) -> bool:
    if hole_mask.all() or not hole_mask.any():
        return False
    known_varies = float(rendered[~hole_mask].std(dim=0, correction=0).max()) > FLAT
    holes_vary = float(rendered[hole_mask].std(dim=0, correction=0).max()) > FLAT
    return holes_vary and not known_varies
