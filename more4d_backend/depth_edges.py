"""Where neighbouring pixels of a depth map lie on different surfaces.

Disparity (1 / depth) is an affine function of the pixel on every plane, however steeply the
plane is seen. So a step between two neighbours is no edge when it continues the slope beside it,
and a tilted floor is not torn up as it is by a threshold on depth differences.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def depth_breaks(
    depth: Float[Tensor, "frame height width"],
    valid: Bool[Tensor, "frame height width"],
    *,
    relative_jump: float = 0.03,
    steepest: float = 0.2,
) -> tuple[Bool[Tensor, "frame height width"], Bool[Tensor, "frame height width"]]:
    """Tell which pixels lie on another surface than their neighbour (to the right, below).

    The last column of the first and the last row of the second have no neighbour and are False.
    A pair breaks when its step in disparity is neither small nor part of a straight run of four
    pixels. Four, because three would also pass one half-way pixel in the middle of an edge, which
    depth sensors and networks produce. A pair with an invalid pixel never breaks.

    Args:
        depth: camera z of each pixel; any value where invalid.
        valid: True where depth is finite and above 0.
        relative_jump: a step (far / near - 1) up to this is noise, never a break.
        steepest: a step above this breaks even on a plane. Such a plane is within a degree of its
            ray at ordinary focal lengths, and in practice a smeared edge.
    """
    disparity = torch.where(valid, 1 / depth, torch.nan)
    right = _breaks_along_rows(disparity, relative_jump, steepest)
    down = _breaks_along_rows(disparity.transpose(-1, -2), relative_jump, steepest)
    pad = torch.nn.functional.pad
    return pad(right, (0, 1)), pad(down.transpose(-1, -2), (0, 0, 0, 1))


def depth_edges(
    depth: Float[Tensor, "frame height width"],
    valid: Bool[Tensor, "frame height width"],
    *,
    relative_jump: float = 0.03,
    steepest: float = 0.2,
) -> Bool[Tensor, "frame height width"]:
    """Mark the pixels on both sides of each depth edge: those with a break to a 4-neighbour.

    The border of missing depth is not an edge. Arguments are those of `depth_breaks`.
    """
    right, down = depth_breaks(depth, valid, relative_jump=relative_jump, steepest=steepest)
    return touching(right, down)


def touching(
    right: Bool[Tensor, "frame height width"], down: Bool[Tensor, "frame height width"]
) -> Bool[Tensor, "frame height width"]:
    """Mark the pixels of at least one marked pair (with the pixel to the right, or below)."""
    touched = right | down
    touched[..., 1:] |= right[..., :-1]
    touched[..., 1:, :] |= down[..., :-1, :]
    return touched


def _breaks_along_rows(
    disparity: Float[Tensor, "*batch n"], relative_jump: float, steepest: float
) -> Bool[Tensor, "*batch n-1"]:
    """Breaks between successive entries of rows; invalid entries are NaN, which compares False."""
    step = disparity[..., 1:] - disparity[..., :-1]
    size = step.abs()
    unexplained = size
    if disparity.shape[-1] >= 4:
        bend = (step[..., 1:] - step[..., :-1]).abs()
        # bend_of_run[k] says how far from straight the entries k .. k + 3 are.
        bend_of_run = torch.maximum(bend[..., 1:], bend[..., :-1])
        runs = torch.nn.functional.pad(bend_of_run, (2, 2), value=torch.nan)
        for offset in range(3):  # fmin ignores the runs that leave the image or touch a hole
            unexplained = torch.fmin(unexplained, runs[..., offset : offset + size.shape[-1]])
    farther = torch.minimum(disparity[..., 1:], disparity[..., :-1])
    return (unexplained > relative_jump * farther) | (size > steepest * farther)
