"""Points as small flat Gaussians that span the surface to their neighbours."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .settings import RenderOutput
from .surface import Surface
from .view import PointFrames

LOW_PASS_PX2 = 0.1
"""Variance in square pixels that is added to every projected Gaussian, against aliasing.

A third of what gsplat adds by default: with 0.3 a photograph seen from its own camera comes back
blurred (32 dB on the synthetic worlds against 38 dB).
"""

NEAR = 0.01
"""World units; Gaussians nearer to the camera than this are not drawn."""

_LONGEST_STEP = 8.0
"""A Gaussian is at most this many spacings long; steeper surfaces than that are thin in the view
that they were seen from, and thick slabs of guessed colour in others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaussians:
    """3D Gaussians of one or more frames."""

    means: Float[Tensor, "frame point 3"]
    """World coordinates; finite."""

    covariances: Float[Tensor, "frame point 3 3"]
    """World units squared; symmetric, positive semi-definite."""

    opacities: Float[Tensor, "frame point"]
    """0 to 1."""

    colors: Float[Tensor, "colored point 3"]
    """sRGB in [0, 1]; one frame of colors for points that keep theirs, else one per frame."""

    def frame(self, index: int) -> "Gaussians":
        """Return one frame; the only one if there is one."""
        now = slice(index, index + 1) if len(self.means) > 1 else slice(0, 1)
        return Gaussians(
            means=self.means[now],
            covariances=self.covariances[now],
            opacities=self.opacities[now],
            colors=self.colors[now] if len(self.colors) > 1 else self.colors,
        )


def gaussians_of(points: PointFrames, surface: Surface, sigma: float) -> Gaussians:
    """Turn points into Gaussians with a standard deviation of `sigma` times the way to neighbours.

    Points at depth edges and points without neighbours become balls of the face-on spacing.
    """
    usable = points.usable & points.positions.isfinite().all(-1)
    usable &= (surface.spacing > 0) & (surface.spacing < torch.inf)
    means = points.positions.masked_fill(~usable[..., None], 0.0)
    spacing = surface.spacing.masked_fill(~usable, 0.0)[..., None]
    ball = spacing[..., None].square() * torch.eye(3, device=means.device)
    if surface.joins is None or points.grid_hw is None:
        covariances = ball
    else:
        right, has_right = _tangent(means, surface.joins.right, 1)
        down, has_down = _tangent(means, surface.joins.down, points.grid_hw[1])
        longest = _LONGEST_STEP * spacing
        sheet = _outer(_at_most(right, longest)) + _outer(_at_most(down, longest))
        is_sheet = has_right & has_down & ~surface.joins.edge
        covariances = torch.where(is_sheet[..., None, None], sheet, ball)
    return Gaussians(
        means=means,
        covariances=covariances * sigma**2,
        opacities=usable.to(means.dtype),
        colors=points.colors,
    )


def blended(
    premultiplied: Float[Tensor, "frame height width 4"], alpha: Float[Tensor, "frame height width"]
) -> RenderOutput:
    """Mean color and depth of what was composited: sums of color and depth divided by alpha."""
    mean = premultiplied / alpha.clamp(min=1e-6)[..., None]
    return RenderOutput(rgb=mean[..., :3].clamp(0, 1), depth=mean[..., 3], alpha=alpha)


def _tangent(
    positions: Float[Tensor, "frame point 3"], joined: Bool[Tensor, "frame point"], offset: int
) -> tuple[Float[Tensor, "frame point 3"], Bool[Tensor, "frame point"]]:
    """Mean step to the joined neighbours along one direction of the grid, and whether any is."""
    ahead, behind = torch.zeros_like(positions), torch.zeros_like(positions)
    ahead[:, :-offset] = positions[:, offset:] - positions[:, :-offset]
    ahead *= joined[..., None]
    behind[:, offset:] = ahead[:, :-offset]
    also = torch.zeros_like(joined)
    also[:, offset:] = joined[:, :-offset]
    sides = joined.to(positions.dtype) + also
    return (ahead + behind) / sides.clamp(min=1)[..., None], joined | also


def _at_most(vector: Tensor, longest: Tensor) -> Tensor:
    length = vector.norm(dim=-1, keepdim=True)
    return vector * (longest / length.clamp(min=1e-30)).clamp(max=1)


def _outer(vector: Float[Tensor, "frame point 3"]) -> Float[Tensor, "frame point 3 3"]:
    return vector[..., :, None] * vector[..., None, :]
