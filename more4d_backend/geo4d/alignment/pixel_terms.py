"""Point and disparity terms: their value, and their normal equations with every depth eliminated.

Per pixel the unknown depth d couples to what moves the point: camera, focal length, windows. All
derivatives are taken at the fused point d * ray, not at the noisy predicted ones. For one frame
they are then the same for all windows, up to small per-window matrices, so that the sums over
pixels are a few batched matrix products. It also matters for the answer: with predicted points in
both factors their noise does not average out, and every window would shrink a little against its
neighbours (errors in variables).

Basis of a pixel, 10 columns. Of the point's residual d * ray - point in camera axes: a rotation
(3), a translation (3), a growth of the window (1), the logarithm of the focal length (1). Of the
disparity's residual 1 / d - (scale * predicted + shift): 1 / d and 1.
"""

from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from .depths import POINT_FLOOR, robust_depth
from .initial import camera_rays
from .rotations import cross_matrix
from .samples import Samples
from .unknowns import FrameSamples, Unknowns, frame_samples, window_to_camera

POINT_COLUMNS, COLUMNS = 8, 10
_TINY = 1e-20


@dataclass(frozen=True, slots=True, kw_only=True)
class TermWeights:
    """Weight of each term, divided by the number of samples that it is the mean of."""

    point: float
    """Per point sample."""

    disparity: float
    """Per disparity sample."""


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
    samples: Samples, unknowns: Unknowns, weights: TermWeights, frames: slice
) -> FrameSums:
    """Refine the depth of some frames' samples, then sum up both terms."""
    rays = camera_rays(samples, unknowns.focal_px)
    part = frame_samples(samples, frames)
    matrix, offset = window_to_camera(unknowns, samples, frames)
    points = einsum(matrix.to(rays), part.points, "f s i j, f s p j -> f s p i")
    points = points + offset.to(rays)[:, :, None]
    seen = _disparity(samples, unknowns, part, frames)
    of_disparity = part.disparity_weights
    if of_disparity is not None:
        of_disparity = weights.disparity * of_disparity
    depth = robust_depth(
        points,
        weights.point * part.weights,
        rays,
        disparity=seen,
        disparity_weights=of_disparity,
        start=unknowns.depth[frames],
        rounds=2,
    )
    if seen is None or of_disparity is None:
        seen = torch.zeros_like(part.weights)
        of_disparity = torch.zeros_like(part.weights)
    return _sums(points, weights.point * part.weights, seen, of_disparity, depth, rays)


def _disparity(
    samples: Samples, unknowns: Unknowns, part: FrameSamples, frames: slice
) -> Tensor | None:
    if part.disparity is None:
        return None
    window = samples.cover.window[frames]
    scale = unknowns.disparity_scale[window].to(part.disparity)[..., None]
    return scale * part.disparity + unknowns.disparity_shift[window].to(scale)[..., None]


def _sums(
    points: Float[Tensor, "frame slot pixel 3"],
    point_weights: Float[Tensor, "frame slot pixel"],
    disparity: Float[Tensor, "frame slot pixel"],
    disparity_weights: Float[Tensor, "frame slot pixel"],
    depth: Float[Tensor, "frame pixel"],
    rays: Float[Tensor, "pixel 3"],
) -> FrameSums:
    fused = depth[..., None] * rays
    residual = fused[:, None] - points
    distance = residual.norm(dim=-1)
    error = 1 / depth[:, None] - disparity
    of_point = point_weights / torch.maximum(distance, POINT_FLOOR * depth[:, None])
    of_disparity = disparity_weights / error.abs().clamp_min(POINT_FLOOR / depth[:, None])

    basis = _point_basis(fused)  # frame pixel 3 column
    line = torch.stack([-1 / depth, -torch.ones_like(depth)], dim=-1)  # frame pixel 2
    # What both do with a change of log depth: d * ray, and -1 / d.
    on_point = einsum(basis, fused, "f p i c, f p i -> f p c")
    on_line = -line / depth[..., None]
    of_depth = (
        of_point.sum(1) * fused.square().sum(-1) + of_disparity.sum(1) / depth.square()
    ).clamp_min(_TINY)
    slope = einsum(of_point, residual, fused, "f s p, f s p i, f p i -> f p")
    slope = slope - (of_disparity * error).sum(1) / depth

    coupling = torch.cat([on_point, on_line], dim=-1)
    share = torch.stack([of_point, of_disparity], dim=1)  # frame term slot pixel
    num_slots = points.shape[1]
    pairs = einsum(share / of_depth[:, None, None], share, "f t s p, f u r p -> f t s u r p")
    products = einsum(coupling, coupling, "f p c, f p k -> f p c k")
    eliminated = einsum(pairs, products, "f t s u r p, f p c k -> f t u s c r k")
    lost = einsum(share * (slope / of_depth)[:, None, None], coupling, "f t s p, f p c -> f t s c")

    gram = einsum(basis, basis, "f p i c, f p i k -> f p c k")
    own_points = einsum(of_point, gram, "f s p, f p c k -> f s c k")
    own_line = einsum(of_disparity, line, line, "f s p, f p c, f p k -> f s c k")
    normal = points.new_zeros(len(depth), num_slots, COLUMNS, num_slots, COLUMNS)
    gradient = points.new_zeros(len(depth), num_slots, COLUMNS)
    parts = (slice(0, POINT_COLUMNS), slice(POINT_COLUMNS, COLUMNS))
    for t, rows in enumerate(parts):
        gradient[..., rows] = -lost[:, t, :, rows]
        for u, columns in enumerate(parts):
            normal[:, :, rows, :, columns] = -eliminated[:, t, u, :, rows, :, columns]
    weighted = of_point[..., None] * residual
    gradient[..., parts[0]] += einsum(weighted, basis, "f s p i, f p i c -> f s c")
    gradient[..., parts[1]] += einsum(of_disparity * error, line, "f s p, f p c -> f s c")
    for slot in range(num_slots):
        normal[:, slot, parts[0], slot, parts[0]] += own_points[:, slot]
        normal[:, slot, parts[1], slot, parts[1]] += own_line[:, slot]
    return FrameSums(
        normal=normal.double().cpu(),
        gradient=gradient.double().cpu(),
        depth=depth,
        point_loss=float((point_weights * distance).sum()),
        disparity_loss=float((disparity_weights * error.abs()).sum()),
    )


def _point_basis(fused: Float[Tensor, "frame pixel 3"]) -> Float[Tensor, "frame pixel 3 8"]:
    """Derivative of d * ray - point by the columns of the basis."""
    shift = -torch.eye(3, dtype=fused.dtype, device=fused.device).expand(*fused.shape, 3)
    focal = -fused * fused.new_tensor([1.0, 1.0, 0.0])
    return torch.cat([cross_matrix(fused), shift, -fused[..., None], focal[..., None]], dim=-1)
