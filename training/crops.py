"""Parts of clips to train on: where something moves, and a few frames of a video."""

import torch
from jaxtyping import Float
from torch import Tensor

_STILL = 1e-4
"""Chance of a still pixel to be a crop's centre, relative to a moving one."""


@torch.no_grad()
def moving_crops(
    motion: Float[Tensor, "batch 3 frame height width"],
    *,
    per_sample: int,
    size_px: int,
    generator: torch.Generator,
) -> Float[Tensor, "crop 3 frame size size"]:
    """Cut squares around pixels that move, mirrored at random along every axis.

    Mirroring the picture turns motion along with it; turning the sign of a motion alone is a
    motion too.
    """
    height, width = motion.shape[-2:]
    moves = motion.abs().amax((1, 2)).flatten(1) > 1e-3
    chance = moves.float() + _STILL
    centers = torch.multinomial(chance, per_sample, replacement=True, generator=generator)
    shift = torch.randint(-size_px // 3, size_px // 3 + 1, (2, *centers.shape), generator=generator,
                          device=motion.device)  # fmt: skip
    top = (centers // width + shift[0] - size_px // 2).clamp(0, height - size_px)
    left = (centers % width + shift[1] - size_px // 2).clamp(0, width - size_px)
    corners = torch.stack([top, left], dim=-1).tolist()
    crops = [
        clip[:, :, y : y + size_px, x : x + size_px]
        for clip, places in zip(motion, corners, strict=True)
        for y, x in places
    ]
    return _mirrored(torch.stack(crops), generator)


def _mirrored(crops: Tensor, generator: torch.Generator) -> Tensor:
    draw = torch.rand(5, len(crops), generator=generator, device=crops.device)
    signs = torch.where(draw[:3].T < 0.5, -1.0, 1.0)
    crops = crops * signs.view(-1, 3, 1, 1, 1)
    for axis, chosen in ((-1, draw[3] < 0.5), (-2, draw[4] < 0.5)):
        crops = torch.where(chosen.view(-1, 1, 1, 1, 1), crops.flip(axis), crops)
    return crops


@torch.no_grad()
def random_clips(
    clips: Float[Tensor, "batch channel frame height width"],
    *,
    num_frames: int,
    generator: torch.Generator,
) -> Float[Tensor, "batch channel num_frames height width"]:
    """Cut some frames out of each clip, mirrored from left to right half of the time."""
    draw = torch.rand(2, len(clips), generator=generator, device=clips.device)
    first = (draw[0] * (clips.shape[2] - num_frames + 1)).long().tolist()
    cut = torch.stack([c[:, i : i + num_frames] for c, i in zip(clips, first, strict=True)])
    return torch.where((draw[1] < 0.5).view(-1, 1, 1, 1, 1), cut.flip(-1), cut)
