"""The scene: depth of every pixel out of all windows, a few frames at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from ...geometry import invert_rigid, pixel_centers, transform_points
from ..predictions import WindowPrediction
from .depths import robust_depth
from .pixel_terms import TermWeights
from .samples import Samples, at_pixels, relative_weights
from .settings import AlignmentSettings
from .unknowns import Unknowns, window_to_camera

_PIXELS_PER_CHUNK = 4_000_000
"""Window pixels worked on at once: about 0.3 GB."""

_STEP_AT_EDGE = 1.05
"""Neighbours in a smaller disparity image that differ by more than this factor: an edge between
them has no place, and the disparity is not used there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedFrames:
    """All frames at full size, on the CPU."""

    depth: Float[Tensor, "frame height width"]
    """Camera z; 0 where not valid."""

    positions: Float[Tensor, "frame height width 3"]
    """World coordinates; 0 where not valid."""

    valid: Bool[Tensor, "frame height width"]
    """Where at least half of the windows see a point."""

    confidence: Float[Tensor, "frame height width"] | None
    """1 / sigma; see `AlignmentResult.scene`."""


def fuse(
    windows: Sequence[WindowPrediction],
    samples: Samples,
    unknowns: Unknowns,
    weights: TermWeights,
    settings: AlignmentSettings,
    disparity_counts: Bool[Tensor, "window"],
    progress: Callable[[int, int], None] | None = None,
) -> FusedFrames:
    """Compute depth, place and confidence of every pixel."""
    num_frames, num_slots = samples.cover.window.shape
    height, width = samples.height, samples.width
    known = any(w.sigma is not None for w in windows)
    depth = torch.zeros(num_frames, height, width)
    positions = torch.zeros(num_frames, height, width, 3)
    valid = torch.zeros(num_frames, height, width, dtype=torch.bool)
    confidence = torch.zeros(num_frames, height, width) if known else None
    count = max(1, _PIXELS_PER_CHUNK // (height * width * num_slots))
    for start in range(0, num_frames, count):
        frames = slice(start, min(start + count, num_frames))
        part = _gather(windows, samples, unknowns, settings, disparity_counts, frames)
        fused = _fuse_frames(part, samples, unknowns, weights, frames)
        depth[frames], positions[frames], valid[frames] = (t.cpu() for t in fused[:3])
        if confidence is not None:
            confidence[frames] = fused[3].cpu()
        if progress is not None:
            progress(frames.stop, num_frames)
    return FusedFrames(depth=depth, positions=positions, valid=valid, confidence=confidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gathered:
    """Full-size predictions of some frames, slot by slot, on the device."""

    points: Float[Tensor, "frame slot pixel 3"]
    valid: Bool[Tensor, "frame slot pixel"]
    weights: Float[Tensor, "frame slot pixel"]
    relative_sigma: Float[Tensor, "frame slot pixel"]
    disparity: Float[Tensor, "frame slot pixel"]
    disparity_weights: Float[Tensor, "frame slot pixel"]


def _gather(
    windows: Sequence[WindowPrediction],
    samples: Samples,
    unknowns: Unknowns,
    settings: AlignmentSettings,
    disparity_counts: Tensor,
    frames: slice,
) -> _Gathered:
    cover, device = samples.cover, samples.points.device
    height, width = samples.height, samples.width
    shape = (frames.stop - frames.start, cover.window.shape[1], height * width)
    zeros = torch.zeros(shape, device=device)
    points = torch.zeros(*shape, 3, device=device)
    valid = torch.zeros(shape, dtype=torch.bool, device=device)
    weights, sigmas = zeros.clone(), zeros + torch.inf
    disparity, disparity_weights = zeros.clone(), zeros.clone()
    centers = pixel_centers(height, width, device=device).reshape(-1, 2)
    for row, slot in cover.filled[frames].nonzero().tolist():
        number = int(cover.window[frames.start + row, slot])
        at = int(cover.position[frames.start + row, slot])
        window = windows[number]
        seen = window.valid[at].flatten().to(device)
        points[row, slot] = window.points[at].flatten(0, 1).to(device, torch.float32)
        points[row, slot].masked_fill_(~seen[:, None], 0)
        valid[row, slot] = seen
        sigma = window.sigma
        if sigma is not None:
            sigma = sigma[at].flatten().to(device, torch.float32)
            sigmas[row, slot] = sigma * float(unknowns.window_scale[number])
        if settings.points:
            weights[row, slot] = relative_weights(sigma, seen, settings)
        if settings.disparity and window.disparity is not None and disparity_counts[number]:
            image = window.disparity[at][None].to(device, torch.float32)
            scale = float(unknowns.disparity_scale[number])
            shift = float(unknowns.disparity_shift[number])
            usable = seen & _away_from_edges(scale * image + shift, centers, height, width)
            here = at_pixels(image, centers, height, width)[0]
            usable &= here > settings.disparity_floor
            disparity[row, slot] = scale * here + shift
            disparity_weights[row, slot] = relative_weights(sigma, usable, settings)
    return _Gathered(
        points=points, valid=valid, weights=weights, relative_sigma=sigmas,
        disparity=disparity, disparity_weights=disparity_weights,
    )  # fmt: skip


def _away_from_edges(
    disparity: Float[Tensor, "1 image_height image_width"], centers: Tensor, height: int, width: int
) -> Bool[Tensor, "pixel"] | bool:
    """Where a disparity image that is smaller than the points can be read between its pixels."""
    if disparity.shape[1:] == (height, width):
        return True
    high = torch.nn.functional.max_pool2d(disparity[None], 3, stride=1, padding=1)[0]
    low = -torch.nn.functional.max_pool2d(-disparity[None], 3, stride=1, padding=1)[0]
    smooth = (high < _STEP_AT_EDGE * low).float()
    return at_pixels(smooth, centers, height, width)[0] > 0.5


def _fuse_frames(
    part: _Gathered, samples: Samples, unknowns: Unknowns, weights: TermWeights, frames: slice
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Depth, positions, validity and confidence of some frames."""
    height, width = samples.height, samples.width
    device = samples.points.device
    pixels = pixel_centers(height, width, device=device).reshape(-1, 2)
    rays = (pixels - pixels.new_tensor([width / 2, height / 2])) / unknowns.focal_px
    rays = torch.cat([rays, torch.ones_like(rays[:, :1])], dim=-1)
    matrix, offset = window_to_camera(unknowns, samples, frames)
    points = einsum(matrix.to(rays), part.points, "f s i j, f s p j -> f s p i")
    points += offset.to(rays)[:, :, None]
    depth = robust_depth(
        points,
        weights.point * part.weights,
        rays,
        disparity=part.disparity,
        disparity_weights=weights.disparity * part.disparity_weights,
    )
    known = (part.weights > 0).any(1) | (part.disparity_weights > 0).any(1)
    filled = samples.cover.filled[frames].to(device)
    votes = part.valid.sum(1)
    valid = known & (2 * votes >= filled.sum(1)[:, None]) & (votes > 0)
    to_world = invert_rigid(unknowns.world_to_camera)[frames, None].to(rays)
    positions = transform_points(depth[..., None] * rays, to_world).masked_fill(
        ~valid[..., None], 0
    )
    # Of the most certain window; 1 where its sigma is 1 % of the depth.
    sigma = part.relative_sigma.where(part.valid, torch.inf).amin(1)
    confidence = (0.01 * depth / sigma.clamp_min(1e-12)).masked_fill(~valid, 0)
    size = (len(depth), height, width)
    return (
        depth.masked_fill(~valid, 0).reshape(size), positions.reshape(*size, 3),
        valid.reshape(size), confidence.reshape(size),
    )  # fmt: skip
