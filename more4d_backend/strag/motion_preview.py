"""Motion while it is being sampled: a quick look at a latent, without the motion VAE's decoder.

A latent of motion looks like noise when it is taken for a picture. Most of what it says is linear
in it, so a matrix of 17 x 3 numbers, fitted once to motion that the VAE encoded, gives the motion
of every 8x8 pixels, and the preview draws it as trails over the image.
"""

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from ..wan.latents import FRAMES_PER_LATENT, PIXELS_PER_LATENT

_PROBE_FRAMES, _PROBE_SIZE = 9, 96
_PROBE_DISCS = 16
_RIDGE = 1e-6
_TRAILS_ACROSS = 40
_SHORTEST_TRAIL = 0.004
"""Of the picture's larger side; what moves less is at rest."""
_BRIGHTNESS = 0.45
_SHOWN_SIZE = 512
"""Pixels of the larger side; what hosts show is not larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearMotion:
    """What a latent says of motion, as far as that is linear."""

    weight: Float[Tensor, "channel_and_one 3"]
    """From the channels of a latent and a one to normalised motion."""

    def __call__(
        self, latent: Float[Tensor, "channel latent_frame latent_height latent_width"]
    ) -> Float[Tensor, "latent_frame latent_height latent_width 3"]:
        """Return the normalised motion of every latent pixel, relative to frame 0."""
        weight = self.weight.to(latent)
        motion = rearrange(latent, "c t h w -> t h w c") @ weight[:-1] + weight[-1]
        return motion - motion[:1]


def fit_linear_motion(encode: Callable[[Tensor], Tensor], *, seed: int = 0) -> LinearMotion:
    """Fit to discs that move in random directions, as a motion VAE encodes them.

    `encode` takes normalised motion (frame, height, width, 3) to its latent (1, channel, ...), as
    the transformer predicts it.
    """
    motion = _moving_discs(torch.Generator().manual_seed(seed))
    latent = encode(motion).float().cpu()
    blocks = reduce(motion[1:], "(t f) (h p) (w q) c -> t h w c", "mean",
                    f=FRAMES_PER_LATENT, p=PIXELS_PER_LATENT, q=PIXELS_PER_LATENT)  # fmt: skip
    inputs = rearrange(latent[0, :, 1:], "c t h w -> (t h w) c")
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1).double()
    # Least squares; the ridge only decides where channels say the same.
    square = inputs.T @ inputs + _RIDGE * len(inputs) * torch.eye(inputs.shape[1]).double()
    weight = torch.linalg.solve(square, inputs.T @ blocks.flatten(0, 2).double())
    return LinearMotion(weight=weight.float())


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionPreview:
    """Draws latents of one image's motion."""

    image: Float[Tensor, "height width 3"]
    """sRGB in [0, 1], at the networks' size."""

    linear: LinearMotion
    """Of the motion VAE that the latents are for."""

    def picture(
        self, latent: Float[Tensor, "channel latent_frame latent_height latent_width"]
    ) -> Float[Tensor, "shown_height shown_width 3"]:
        """Draw where the pixels go: trails over the dimmed image, coloured by direction.

        A small image is enlarged, so that the trails on it are fine.
        """
        return motion_picture(_enlarged(self.image), self.linear(latent).float().cpu())


def _enlarged(
    image: Float[Tensor, "height width 3"],
) -> Float[Tensor, "shown_height shown_width 3"]:
    scale = _SHOWN_SIZE / max(image.shape[:2])
    if scale <= 1:
        return image
    pixels = rearrange(image, "h w c -> 1 c h w")
    larger = torch.nn.functional.interpolate(pixels, scale_factor=scale, mode="bilinear")
    return rearrange(larger, "1 c h w -> h w c")


def motion_picture(
    image: Float[Tensor, "height width 3"],
    motion: Float[Tensor, "latent_frame latent_height latent_width 3"],
) -> Float[Tensor, "height width 3"]:
    """Draw normalised motion as trails over the dimmed image; a dot is where a pixel ends."""
    import numpy as np
    from PIL import Image, ImageDraw

    height, width, _ = image.shape
    dimmed = (image * _BRIGHTNESS).clamp(0, 1).mul(255).byte().cpu().numpy()
    picture = Image.fromarray(dimmed)
    draw = ImageDraw.Draw(picture)
    dot = max(1.0, width / 300)
    for trail in _trails(motion, height, width):
        (x0, y0), (x1, y1) = trail[0], trail[-1]
        if math.hypot(x1 - x0, y1 - y0) < _SHORTEST_TRAIL * max(height, width):
            continue
        hue = math.atan2(y1 - y0, x1 - x0) / (2 * math.pi) % 1
        red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, 1.0))
        draw.line([(x, y) for x, y in trail], fill=(red, green, blue), width=max(1, width // 400))
        draw.ellipse((x1 - dot, y1 - dot, x1 + dot, y1 + dot), fill=(red, green, blue))
    return torch.from_numpy(np.array(picture)).float() / 255


def _trails(motion: Tensor, height: int, width: int) -> list[list[list[float]]]:
    """Pixel coordinates (point, frame, xy) of a grid of points.

    A point at depth z that moves by (x, y, z') times its depth is seen at
    `(offset from the centre + size * (x, y)) / (1 + z')`: motion is normalised by focal length and
    depth for this very reason (`more4d_backend.motion`). The centre is taken for the picture's.
    """
    _, rows, columns, _ = motion.shape
    stride = max(1, math.ceil(columns / _TRAILS_ACROSS))
    row = torch.arange(stride // 2, rows, stride)
    column = torch.arange(stride // 2, columns, stride)
    moved = motion[:, row][:, :, column]
    size = torch.tensor([width, height])
    start = torch.stack(torch.meshgrid(column + 0.5, row + 0.5, indexing="xy"), dim=-1)
    offset = start * size / torch.tensor([columns, rows]) - size / 2
    nearer = (1 + moved[..., 2:]).clamp_min(0.1)
    seen = (offset + size * moved[..., :2]) / nearer + size / 2
    return rearrange(seen, "t h w xy -> (h w) t xy").tolist()


def _moving_discs(generator: torch.Generator) -> Float[Tensor, "frame height width 3"]:
    size = _PROBE_SIZE
    axis = torch.arange(size) + 0.5
    motion = torch.zeros(size, size, 3)
    for _ in range(_PROBE_DISCS):
        x, y = size * torch.rand(2, generator=generator)
        radius = 6 + 18 * torch.rand((), generator=generator)
        inside = (axis[:, None] - y).square() + (axis - x).square() < radius.square()
        motion[inside] = torch.randn(3, generator=generator) * 0.3
    share = torch.arange(_PROBE_FRAMES) / (_PROBE_FRAMES - 1)
    return share.view(-1, 1, 1, 1) * motion
