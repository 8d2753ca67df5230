"""Boxes of pixels, expanded to the list of their pixels."""

import torch
from jaxtyping import Int
from torch import Tensor


def pixels_in_boxes(
    corner: Int[Tensor, "box"], num_x: Int[Tensor, "box"], area: Int[Tensor, "box"], width: int
) -> tuple[Int[Tensor, "pixel"], Int[Tensor, "pixel"]]:
    """Return, for every pixel of every box, the box's number and the pixel.

    Pixels count row by row in pictures of `width`. A box starts at the pixel `corner` and has
    `area` pixels, `num_x` in each row; boxes of area 0 are skipped.
    """
    if area.numel() == 0:
        return area, area
    ends = area.cumsum(0)
    box = torch.repeat_interleave(area, output_size=int(ends[-1]))
    within = torch.arange(len(box), device=box.device) - (ends - area)[box]
    row = within // num_x[box]
    return box, corner[box] + within + row * (width - num_x)[box]
