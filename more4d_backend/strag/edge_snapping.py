"""Decoded motion sharpened along the edges of the image and the depth that it belongs to.

The motion VAE blurs motion across silhouettes, where most of its error is. Frame 0 shows where
the silhouettes are. So every pixel near a step of the motion takes the mean of its neighbours,
weighted by likeness in colour and depth (a joint bilateral filter: Petschnig et al. 2004, "Digital
photography with flash and no-flash image pairs", section 3.1), and by how steady the motion is
at the neighbour: on the blurred slope itself it is nobody's motion. That second weight is ours.

Axes: frame, height, width. All frames share one set of weights, because a motion map is indexed
by the pixels of frame 0 and its edges therefore stay in place.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, max_pool2d

from ..shapes import check_shapes

_PIXELS_PER_CALL = 2**16
"""Bounds the memory: the neighbours of so many pixels take 200 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSnapping:
    """How far the filter looks, and what it takes for an edge."""

    radius_px: int = 4
    """Neighbours up to this far to each side: half a block of the VAE."""

    distance_sigma_px: float = 3.0
    """How weight falls with distance in the image."""

    color_sigma: float = 0.12
    """How weight falls with the difference of colours (sRGB in [0, 1], Euclidean)."""

    depth_sigma: float = 0.03
    """How weight falls with the difference of the logarithms of depth."""

    steady: float = 0.05
    """A step between neighbouring pixels of this part of the typical motion halves the weight of
    both; larger steps, with what lies within `radius_px`, are what is filtered at all."""

    def __post_init__(self) -> None:
        sigmas = (self.distance_sigma_px, self.color_sigma, self.depth_sigma, self.steady)
        if self.radius_px < 1 or not min(sigmas) > 0:
            raise ValueError(f"{self}; expected a radius of at least 1 and positive numbers.")


@torch.no_grad()
def snap_motion_to_edges(
    motion: Float[Tensor, "frame height width 3"],
    image: Float[Tensor, "height width 3"],
    depth: Float[Tensor, "height width"],
    settings: EdgeSnapping | None = None,
) -> Float[Tensor, "frame height width 3"]:
    """Sharpen normalised motion by frame 0's image (sRGB in [0, 1]) and depth.

    Pixels farther than the radius from any step of the motion keep theirs to the last bit. Pixels
    without usable depth are compared as if they were all equally far behind the rest.

    Raises:
        ShapeError: motion, image and depth differ in size.
    """
    settings = settings or EdgeSnapping()
    check_shapes(
        motion=(motion, "frame height width 3"),
        image=(image, "height width 3"),
        depth=(depth, "height width"),
    )
    rows = rearrange(motion, "f h w c -> h w (f c)").float()
    unsteadiness = _unsteadiness(rows)
    step = (unsteadiness > settings.steady**2)[None].float()
    radius = settings.radius_px
    filtered = max_pool2d(step, 2 * radius + 1, stride=1, padding=radius)[0] > 0
    guide = _guide(image.to(rows), depth.to(rows), settings)
    steadiness = 1 / (1 + unsteadiness / settings.steady**2)
    snapped = rows.flatten(0, 1).clone()
    pixels = filtered.flatten().nonzero()[:, 0]
    for part in pixels.split(_PIXELS_PER_CALL):
        neighbors, weights = _neighbors(part, guide, steadiness, settings)
        snapped[part] = embedding_bag(
            neighbors, rows.flatten(0, 1), per_sample_weights=weights, mode="sum"
        )
    height, width, _ = image.shape
    return rearrange(snapped, "(h w) (f c) -> f h w c", h=height, w=width, c=3).to(motion)


def snap_depth_to_edges(
    depth: Float[Tensor, "height width"],
    image: Float[Tensor, "height width 3"],
    settings: EdgeSnapping | None = None,
) -> Float[Tensor, "height width"]:
    """Sharpen a network's depth by the colours of its picture (sRGB in [0, 1]); no edge moves far.

    The same filter on the logarithm of depth. It looks a little further than for motion, because
    small depth networks blur more than the motion VAE. Depth is positive and finite.

    Raises:
        ShapeError: depth and image differ in size.
    """
    settings = settings or EdgeSnapping(radius_px=6, distance_sigma_px=4.0)
    level = depth.log()
    middle = level.median()  # so that the units of depth change nothing
    field = (level - middle)[None, ..., None].expand(-1, -1, -1, 3)
    snapped = snap_motion_to_edges(field, image, torch.ones_like(depth), settings)
    return (snapped[0, ..., 0] + middle).exp()


def _unsteadiness(rows: Float[Tensor, "height width value"]) -> Float[Tensor, "height width"]:
    """Largest squared step to a 4-neighbour, relative to the typical squared motion.

    Typical is the mean weighted by itself, so that it tells of what moves, however little that is.
    """
    size = rows.square().sum(-1)
    typical = size.square().sum() / size.sum()
    across = (rows[:, 1:] - rows[:, :-1]).square().sum(-1)
    down = (rows[1:] - rows[:-1]).square().sum(-1)
    pad = torch.nn.functional.pad
    steps = [pad(across, (1, 0)), pad(across, (0, 1)), pad(down, (0, 0, 1, 0))]
    largest = torch.stack([*steps, pad(down, (0, 0, 0, 1))]).amax(0)
    return largest / typical if typical > 0 else torch.zeros_like(largest)


def _guide(
    image: Float[Tensor, "height width 3"],
    depth: Float[Tensor, "height width"],
    settings: EdgeSnapping,
) -> Float[Tensor, "pixel 4"]:
    """Colour and depth in units of their sigmas."""
    usable = depth.isfinite() & (depth > 0)
    level = depth.where(usable, torch.ones_like(depth)).log() / settings.depth_sigma
    behind = level[usable].max() + 10 if usable.any() else level.new_zeros(())
    level = level.where(usable, behind)
    return torch.cat([image / settings.color_sigma, level[..., None]], dim=-1).flatten(0, 1)


def _neighbors(
    pixels: Int[Tensor, "pixel"],
    guide: Float[Tensor, "place 4"],
    steadiness: Float[Tensor, "height width"],
    settings: EdgeSnapping,
) -> tuple[Int[Tensor, "pixel neighbor"], Float[Tensor, "pixel neighbor"]]:
    """Indices of each pixel's neighbours, itself included, and weights that sum to 1."""
    height, width = steadiness.shape
    reach = torch.arange(-settings.radius_px, settings.radius_px + 1, device=pixels.device)
    dy, dx = (d.flatten() for d in torch.meshgrid(reach, reach, indexing="ij"))
    y, x = (pixels // width)[:, None] + dy, (pixels % width)[:, None] + dx
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    index = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    unlike = (guide[index] - guide[pixels, None]).square().sum(-1)
    far = (dy.square() + dx.square()) / settings.distance_sigma_px**2
    # In logarithms, so that softmax gives every pixel a sum of 1, however unlike its neighbours.
    logits = steadiness.flatten()[index].log() - (unlike + far) / 2
    return index, logits.masked_fill(~inside, -math.inf).softmax(-1)
