"""Which pixels of a render are to be filled. Decided by coverage; a black object is no hole."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from .settings import RenderError, RenderOutput

_PIXELS_AT_ONCE = {"cpu": 2**19, "cuda": 2**25}  # in a CPU's caches; within a GPU's memory
_EXACT_IN_FLOAT32 = 2**24


def hole_mask(
    alpha: Float[Tensor, "frame height width"],
    *,
    threshold: float = 0.5,
    grow_px: int = 0,
    feather_px: int = 0,
    min_area_px: int = 0,
) -> Float[Tensor, "frame height width"]:
    """Mark what is to be filled: 1 in holes, 0 where the render is to be kept.

    In this order: holes smaller than `min_area_px` are dropped, the others grow, and a ramp is
    put around them.

    Args:
        alpha: coverage in [0, 1], as rendered.
        threshold: less coverage than this is a hole.
        grow_px: fill this far around each hole too (in an octagon, nearly a disc), because a
            render is least reliable beside its holes.
        feather_px: outside of that, fall evenly from 1 to 0 over this many pixels, for mixing
            the filling with the render. Inside holes the mask stays 1: nothing is there to mix.
        min_area_px: connected holes (diagonals connect) of fewer pixels become 0, kept, though
            nothing was drawn in them; `fill_pinholes` gives them a colour.

    Raises:
        RenderError: a negative size, or a threshold outside 0 to 1.
    """
    sizes = {"grow_px": grow_px, "feather_px": feather_px, "min_area_px": min_area_px}
    for name, value in sizes.items():
        if value < 0:
            raise RenderError(f"{name} is {value}; expected 0 or more pixels.")
    if not 0 <= threshold <= 1:
        raise RenderError(f"threshold is {threshold}; expected a coverage from 0 to 1.")
    mask = torch.empty_like(alpha)
    pixels = _PIXELS_AT_ONCE.get(alpha.device.type, 2**22)
    step = max(1, pixels // (alpha.shape[1] * alpha.shape[2]))
    for start in range(0, len(alpha), step):
        holes = alpha[start : start + step] < threshold
        if min_area_px > 1:
            holes &= component_area(holes) >= min_area_px
        grown = holes.to(alpha.dtype)
        for radius in range(grow_px):
            grown = _one_pixel_larger(grown, radius)
        ramp = grown.clone()
        for radius in range(grow_px, grow_px + feather_px):
            grown = _one_pixel_larger(grown, radius)
            ramp += grown
        mask[start : start + step] = ramp / (feather_px + 1)
    return mask


def fill_pinholes(output: RenderOutput, max_area_px: int) -> RenderOutput:
    """Give holes of fewer than `max_area_px` pixels the mean of what is around them.

    Colour and depth grow inwards from the covered pixels beside, one pixel at a time; alpha
    becomes 1. For `hole_mask(..., min_area_px=n)`, fill with the same n before.
    """
    holes = output.alpha < 0.5
    to_fill = holes & (component_area(holes) < max_area_px)
    known = torch.where(holes, 0.0, 1.0)
    values = torch.cat([output.rgb, output.depth[..., None]], dim=-1) * known[..., None]
    values = values.movedim(-1, 1)  # f c h w
    while True:
        weight = avg_pool2d(known[:, None], 3, stride=1, padding=1)
        reached = to_fill & (known == 0) & (weight[:, 0] > 0)
        if not reached.any():
            break
        mean = avg_pool2d(values, 3, stride=1, padding=1) / weight.clamp(min=1e-6)
        values = torch.where(reached[:, None], mean, values)
        known = known.masked_fill(reached, 1.0)
    filled = to_fill & (known > 0)
    values = values.movedim(1, -1)
    return RenderOutput(
        rgb=torch.where(filled[..., None], values[..., :3].clamp(max=1), output.rgb),
        depth=torch.where(filled, values[..., 3], output.depth),
        alpha=output.alpha.masked_fill(filled, 1.0),
    )


def component_area(mask: Bool[Tensor, "frame height width"]) -> Int[Tensor, "frame height width"]:
    """Number of pixels in the connected region (8 neighbours) of each marked pixel; 0 elsewhere.

    Every pixel is labelled by a pixel of its region, at first itself. Each round the labels take
    over the largest label beside any pixel that they label, and then the label of that: so few
    rounds are needed for any shape (Shiloach and Vishkin 1982). kornia's connected_components
    moves labels by one pixel a round, and a fixed number of rounds.
    """
    frames, height, width = mask.shape
    pixels = height * width
    dtype = torch.float32 if pixels < _EXACT_IN_FLOAT32 else torch.float64
    labels = torch.arange(1, pixels + 1, device=mask.device, dtype=dtype) * mask.view(frames, -1)
    while True:
        around = max_pool2d(labels.view(frames, 1, height, width), 3, stride=1, padding=1)
        around = around.view(frames, pixels) * mask.view(frames, pixels)
        if torch.equal(around, labels):
            break
        labels = labels.scatter_reduce(1, _labelled(labels), around, "amax")
        for _ in range(2):
            labels = labels.gather(1, _labelled(labels)) * (labels > 0)
    owner = labels.to(torch.int64)
    counts = torch.zeros(frames, pixels + 1, dtype=torch.int64, device=mask.device)
    counts.scatter_add_(1, owner, torch.ones_like(owner))
    return (counts.gather(1, owner) * (owner > 0)).view(mask.shape)


def _labelled(labels: Float[Tensor, "frame pixel"]) -> Int[Tensor, "frame pixel"]:
    """Number of the pixel that a label names (labels count from 1); 0 for no label."""
    return (labels - 1).clamp_(min=0).to(torch.int64)


def _one_pixel_larger(
    mask: Float[Tensor, "frame height width"], radius: int
) -> Float[Tensor, "frame height width"]:
    """Grow by one pixel; squares and crosses in turn make an octagon."""
    from kornia.morphology import dilation  # heavy to import

    kernel = torch.ones(3, 3, device=mask.device, dtype=mask.dtype)
    if radius % 2 == 0:
        kernel[::2, ::2] = 0
    return dilation(mask[:, None], kernel)[:, 0]
