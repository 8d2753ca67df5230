"""Point and disparity terms: their value, and their normal equations with every depth eliminated.

Differences are measured in what was predicted, where the noise is: the fused point d * ray, taken
to the window's coordinates, against the predicted point, and 1 / d, taken to the window's
disparity, against the predicted disparity. Both are then relative to a fixed unit (see `depths`).
Measured in the world, a window would get better by shrinking, and with it all that follow.

Per pixel the unknown depth d couples to what moves the point: camera, focal length, windows. All
derivatives are functions of the fused point alone. For one frame they are the same for all windows,
up to small per-window matrices, and linear in the fused point, so that all sums over pixels are
moments of it: a few batched matrix products.

Basis of a pixel, 10 columns. Of the point's residual d * ray - point in camera axes: a rotation
(0 to 2), a translation (3 to 5), a growth of the window (6), the logarithm of the focal length (7).
Of the disparity's residual 1 / d - (scale * predicted + shift): 1 / d (8) and 1 (9).
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from .depths import NoiseWidths, Start, huber, robust_depth
from .rotations import cross_matrix
from .samples import Samples
from .unknowns import FrameSamples, Unknowns, window_to_camera

COLUMNS = 10
_POINT, _LINE = slice(0, 8), slice(8, 10)
_COUPLED = slice(3, 8)
"""Columns of the point's residual that a change of depth can undo: not the rotation."""
_TINY = 1e-20


@dataclass(frozen=True, slots=True, kw_only=True)
class TermWeights:
    """Weight of each term, divided by the number of samples that it is the mean of."""

    point: float
    """Per point sample."""

    disparity: float
    """Per disparity sample."""

    widths: NoiseWidths
    """Where differences become absolute."""

    start: Unknowns
    """Depth, and scales of the windows, that differences are relative to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameSums:
    """Sums over the pixels of some frames. Slots are the windows that cover a frame."""

    normal: Float[Tensor, "frame slot column other_slot column"]
    """Normal matrix in the basis above, depths eliminated; float64, on the CPU."""

    gradient: Float[Tensor, "frame slot column"]
    """Of the residuals, depths eliminated; float64, on the CPU."""

    depth: Float[Tensor, "frame pixel"]
    """Refined for these cameras; on the device."""

    point_loss: float
    """Weighted sum of distances."""

    disparity_loss: float
    """Weighted sum of differences."""


def sum_frames(
    samples: Samples,
    part: FrameSamples,
    unknowns: Unknowns,
    weights: TermWeights,
    frames: slice,
) -> FrameSums:
    """Refine the depth of some frames' samples, then sum up both terms."""
    rays = samples.rays(unknowns.focal_px)
    matrix, offset = window_to_camera(unknowns, samples, frames)
    points = einsum(part.points, matrix.to(rays), "f s p j, f s i j -> f s p i")
    points = points + offset.to(rays)[:, :, None]
    window = samples.cover.window[frames]
    of_point = weights.point * part.weights
    disparity, of_disparity = torch.zeros_like(of_point), torch.zeros_like(of_point)
    if part.disparity is not None and part.disparity_weights is not None:
        scale = unknowns.disparity_scale[window].to(rays)[..., None]
        disparity = scale * part.disparity + unknowns.disparity_shift[window].to(rays)[..., None]
        of_disparity = weights.disparity * part.disparity_weights
    growth = (unknowns.window_scale / weights.start.window_scale)[window].to(rays)[..., None]
    steeper = (unknowns.disparity_scale / weights.start.disparity_scale)[window].to(rays)
    start = Start(
        depth=unknowns.depth[frames],
        point_unit=growth * weights.start.depth[frames, None],
        disparity_unit=steeper[..., None] / weights.start.depth[frames, None],
    )
    depth = robust_depth(
        points,
        of_point,
        rays,
        weights.widths,
        disparity=disparity,
        disparity_weights=of_disparity,
        start=start,
        rounds=2,
    )
    start = replace(start, depth=depth)
    return _sums(points, of_point, disparity, of_disparity, start, rays, weights.widths)


def point_normal_matrix(moments: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 8 8"]:
    """Sum of basis^T basis over pixels, out of the weighted moments of (x, y, z, 1)."""
    basis = _point_basis().to(moments)
    half = einsum(moments, basis, "... a b, b i k -> ... a i k")
    return einsum(basis, half, "a i c, ... a i k -> ... c k")


def point_gradient(moments: Float[Tensor, "*batch 3 4"]) -> Float[Tensor, "*batch 8"]:
    """Sum of basis^T residual, out of the weighted moments of residual and (x, y, z, 1)."""
    return einsum(moments, _point_basis().to(moments), "... i a, a i c -> ... c")


@cache
def _point_basis() -> Float[Tensor, "4 3 8"]:
    """Derivative of the point's residual, as the factors of x, y, z and 1 of the fused point."""
    basis = torch.zeros(4, 3, 8, dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    basis[:3, :, 0:3] = cross_matrix(eye)
    basis[3, :, 3:6] = -eye
    basis[:3, :, 6] = -eye
    basis[:2, :, 7] = -eye[:2]
    return basis


def _sums(
    points: Float[Tensor, "frame slot pixel 3"],
    point_weights: Float[Tensor, "frame slot pixel"],
    disparity: Float[Tensor, "frame slot pixel"],
    disparity_weights: Float[Tensor, "frame slot pixel"],
    start: Start,
    rays: Float[Tensor, "pixel 3"],
    widths: NoiseWidths,
) -> FrameSums:
    depth = start.depth
    fused = depth[..., None] * rays
    residual = fused[:, None] - points
    error = 1 / depth[:, None] - disparity
    distance = residual.norm(dim=-1) / start.point_unit
    difference = error / start.disparity_unit
    of_point = point_weights / (distance.clamp_min(widths.point) * start.point_unit.square())
    of_disparity = disparity_weights / difference.abs().clamp_min(widths.disparity)
    of_disparity = of_disparity / start.disparity_unit.square()
    line = torch.stack([-1 / depth, -torch.ones_like(depth)], dim=-1)
    # Basis times what a change of log depth does: d * ray to the point, -1 / d to the disparity.
    length2 = fused.square().sum(-1)
    across2 = length2 - depth.square()
    on_point = torch.cat([-fused, -length2[..., None], -across2[..., None]], dim=-1)
    on_line = -line / depth[..., None]
    along = einsum(residual, fused, "f s p i, f p i -> f s p")
    of_depth = of_point.sum(1) * length2 + of_disparity.sum(1) / depth.square()
    of_depth = of_depth.clamp_min(_TINY)
    slope = (of_point * along).sum(1) - (of_disparity * error).sum(1) / depth

    moment = torch.cat([fused, torch.ones_like(depth)[..., None]], dim=-1)
    pulled = of_point[..., None] * residual
    losses = [
        (point_weights * huber(distance, widths.point)).sum(),
        (disparity_weights * huber(difference, widths.disparity)).sum(),
    ]
    found = _PixelSums(
        _lost(of_point, of_disparity, on_point, on_line, of_depth),
        _lost_gradient(of_point, of_disparity, on_point, on_line, slope / of_depth),
        _weighted_products(of_point, moment, moment),
        _weighted_products(of_disparity, line, line),
        einsum(pulled, moment, "f s p i, f p a -> f s i a"),
        einsum(of_disparity * error, line, "f s p, f p c -> f s c"),
        torch.stack(losses),
    ).on_cpu()
    point_loss, disparity_loss = found.losses.tolist()
    return FrameSums(
        normal=found.normal(),
        gradient=found.gradient(),
        depth=depth,
        point_loss=point_loss,
        disparity_loss=disparity_loss,
    )


class _PixelSums(NamedTuple):
    """What pixels add up to, before small matrices turn it into the normal equations."""

    lost: Float[Tensor, "frame slot other_slot 39"]
    """What the matrix loses when every pixel's depth is free (Schur complement): products of
    points with points (25), of points with disparities (10), of disparities with those (4)."""
    lost_gradient: Float[Tensor, "frame slot 7"]
    points: Float[Tensor, "frame slot 4 4"]
    line: Float[Tensor, "frame slot 2 2"]
    pulled: Float[Tensor, "frame slot 3 4"]
    line_gradient: Float[Tensor, "frame slot 2"]
    losses: Float[Tensor, "2"]

    def on_cpu(self) -> "_PixelSums":
        """In float64, by one copy: they are small, and not every device has float64."""
        joined = torch.cat([sums.flatten() for sums in self]).cpu().double()
        parts = joined.split([sums.numel() for sums in self])
        return _PixelSums(*(p.view(s.shape) for p, s in zip(parts, self, strict=True)))

    def normal(self) -> Float[Tensor, "frame slot column other_slot column"]:
        frames, slots = self.lost.shape[:2]
        result = self.lost.new_zeros(frames, slots, COLUMNS, slots, COLUMNS)
        both, mixed, lines = self.lost.split([25, 10, 4], dim=-1)
        mixed = rearrange(mixed, "f s r (c k) -> f s c r k", k=2)
        result[:, :, _COUPLED, :, _COUPLED] = rearrange(-both, "f s r (c k) -> f s c r k", k=5)
        result[:, :, _COUPLED, :, _LINE] = -mixed
        result[:, :, _LINE, :, _COUPLED] = rearrange(-mixed, "f s c r k -> f r k s c")
        result[:, :, _LINE, :, _LINE] = rearrange(-lines, "f s r (c k) -> f s c r k", k=2)
        own_points = point_normal_matrix(self.points)
        for slot in range(slots):
            result[:, slot, _POINT, slot, _POINT] += own_points[:, slot]
            result[:, slot, _LINE, slot, _LINE] += self.line[:, slot]
        return result

    def gradient(self) -> Float[Tensor, "frame slot column"]:
        result = self.lost.new_zeros(*self.lost.shape[:2], COLUMNS)
        result[..., _POINT] = point_gradient(self.pulled)
        result[..., _LINE] = self.line_gradient
        result[..., _COUPLED.start :] -= self.lost_gradient
        return result


def _lost(
    of_point: Float[Tensor, "frame slot pixel"],
    of_disparity: Float[Tensor, "frame slot pixel"],
    on_point: Float[Tensor, "frame pixel 5"],
    on_line: Float[Tensor, "frame pixel 2"],
    of_depth: Float[Tensor, "frame pixel"],
) -> Float[Tensor, "frame slot other_slot 39"]:
    """See `_PixelSums.lost`."""
    point, line = (of_point, on_point), (of_disparity, on_line)
    parts = []
    for (weights, on), (other_weights, other_on) in ((point, point), (point, line), (line, line)):
        scaled = weights / of_depth[:, None]
        both = (scaled[:, :, None] * other_weights[:, None]).flatten(1, 2)
        sums = _weighted_products(both, on, other_on).flatten(2)
        parts.append(sums.unflatten(1, (-1, other_weights.shape[1])))
    return torch.cat(parts, dim=-1)


def _lost_gradient(
    of_point: Float[Tensor, "frame slot pixel"],
    of_disparity: Float[Tensor, "frame slot pixel"],
    on_point: Float[Tensor, "frame pixel 5"],
    on_line: Float[Tensor, "frame pixel 2"],
    step: Float[Tensor, "frame pixel"],
) -> Float[Tensor, "frame slot 7"]:
    """What the gradient loses likewise; `step` is the depths' own, in their logarithm."""
    return torch.cat(
        [of_point @ (step[..., None] * on_point), of_disparity @ (step[..., None] * on_line)], -1
    )


def _weighted_products(
    weights: Float[Tensor, "frame item pixel"],
    left: Float[Tensor, "frame pixel column"],
    right: Float[Tensor, "frame pixel other_column"],
) -> Float[Tensor, "frame item column other_column"]:
    """Sum over pixels of weight * left^T right, as one matrix product per frame."""
    products = rearrange(left[..., None] * right[..., None, :], "f p c k -> f p (c k)")
    return rearrange(weights @ products, "f n (c k) -> f n c k", c=left.shape[-1])
