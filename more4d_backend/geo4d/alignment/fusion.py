"""The scene: depth of every pixel out of all windows, a few frames at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from ...geometry import invert_rigid, pixel_centers, transform_points
from ..predictions import WindowPrediction
from .depths import median_depth, reach_along, robust_depth
from .pixel_terms import TermWeights
from .samples import Samples, at_pixels, away_from_edges
from .settings import AlignmentSettings
from .unknowns import Unknowns, window_to_camera

_PIXELS_PER_CHUNK = 4_000_000
"""Window pixels worked on at once: about 0.3 GB."""

_NEIGHBOUR_WIDTH = 0.1
"""Logarithm of the factor by which depth may well differ from its neighbours'."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionInputs:
    """What depth is fused from."""

    windows: Sequence[WindowPrediction]
    """At full size."""

    samples: Samples
    """Which windows cover which frame, and the device."""

    unknowns: Unknowns
    """Aligned."""

    weights: TermWeights
    """Of points and disparity."""

    settings: AlignmentSettings
    """Which modalities count."""

    disparity_counts: Bool[Tensor, "window"]
    """Windows whose disparity is used."""

    sigma_medians: Sequence[float | None]
    """Median sigma / depth of each window; None without sigma."""


def fuse(inputs: FusionInputs, progress: Callable[[int, int], None] | None = None) -> FusedFrames:
    """Compute depth, place and confidence of every pixel."""
    samples = inputs.samples
    num_frames, num_slots = samples.cover.window.shape
    height, width = samples.height, samples.width
    known = any(median is not None for median in inputs.sigma_medians)
    depth = torch.zeros(num_frames, height, width)
    positions = torch.zeros(num_frames, height, width, 3)
    valid = torch.zeros(num_frames, height, width, dtype=torch.bool)
    confidence = torch.zeros(num_frames, height, width) if known else None
    count = max(1, _PIXELS_PER_CHUNK // (height * width * num_slots))
    for start in range(0, num_frames, count):
        frames = slice(start, min(start + count, num_frames))
        fused = _fuse_frames(_gather(inputs, frames), inputs, frames)
        for whole, part in zip((depth, positions, valid, confidence), fused, strict=True):
            if whole is not None:
                whole[frames].copy_(part)
        if progress is not None:
            progress(frames.stop, num_frames)
    return FusedFrames(depth=depth, positions=positions, valid=valid, confidence=confidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gathered:
    """Full-size predictions of some frames, slot by slot, on the device."""

    points: Float[Tensor, "frame slot pixel 3"]
    valid: Bool[Tensor, "frame slot pixel"]
    relative_sigma: Float[Tensor, "frame slot pixel"]  # over the window's median of sigma / depth
    disparity: Float[Tensor, "frame slot pixel"]
    has_disparity: Bool[Tensor, "frame slot pixel"]
    sigma_scale: Float[Tensor, "frame slot"]  # relative_sigma times this is sigma; inf: not known


def _gather(inputs: FusionInputs, frames: slice) -> _Gathered:
    samples, unknowns, settings = inputs.samples, inputs.unknowns, inputs.settings
    cover, device = samples.cover, samples.points.device
    height, width = samples.height, samples.width
    shape = (frames.stop - frames.start, cover.window.shape[1], height * width)
    points = torch.zeros(*shape, 3, device=device)
    valid = torch.zeros(shape, dtype=torch.bool, device=device)
    sigmas, disparity = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
    has_disparity = torch.zeros_like(valid)
    sigma_scale = torch.full(shape[:2], torch.inf, device=device)
    centers = pixel_centers(height, width, device=device).reshape(-1, 2)
    for number, window in enumerate(inputs.windows):
        first = cover.first_frame[number]
        inside = slice(max(frames.start, first), min(frames.stop, first + cover.length[number]))
        if inside.start >= inside.stop:
            continue
        # The window's own slot of each frame.
        own = (cover.window[inside] == number) & cover.filled[inside]
        row = torch.arange(inside.start - frames.start, inside.stop - frames.start, device=device)
        at = row, own.int().argmax(1).to(device)
        part = slice(inside.start - first, inside.stop - first)
        seen = window.valid[part].flatten(1).to(device)
        taken = window.points[part].flatten(1, 2).to(device, torch.float32)
        points[at] = taken.masked_fill(~seen[..., None], 0)
        valid[at] = seen
        median = inputs.sigma_medians[number]
        if window.sigma is not None and median is not None:
            sigmas[at] = window.sigma[part].flatten(1).to(device, torch.float32) / median
            sigma_scale[at] = median * float(unknowns.window_scale[number])
        if window.disparity is not None and inputs.disparity_counts[number]:
            image = window.disparity[part].to(device, torch.float32)
            scale = float(unknowns.disparity_scale[number])
            shift = float(unknowns.disparity_shift[number])
            here = at_pixels(image, centers, height, width)
            usable = seen & away_from_edges(image, centers, height, width)
            has_disparity[at] = usable & (here > settings.disparity_floor)
            disparity[at] = scale * here + shift
    return _Gathered(
        points=points,
        valid=valid,
        relative_sigma=sigmas,
        disparity=disparity,
        has_disparity=has_disparity,
        sigma_scale=sigma_scale,
    )


def _fuse_frames(
    part: _Gathered, inputs: FusionInputs, frames: slice
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Depth, positions, validity and confidence of some frames."""
    samples, unknowns, weights = inputs.samples, inputs.unknowns, inputs.weights
    height, width = samples.height, samples.width
    device = samples.points.device
    pixels = pixel_centers(height, width, device=device).reshape(-1, 2)
    rays = (pixels - pixels.new_tensor([width / 2, height / 2])) / unknowns.focal_px
    rays = torch.cat([rays, torch.ones_like(rays[:, :1])], dim=-1)
    matrix, offset = window_to_camera(unknowns, samples, frames)
    points = einsum(part.points, matrix.to(rays), "f s p j, f s i j -> f s p i")
    points += offset.to(rays)[:, :, None]
    reach = reach_along(points, rays)
    of_point = weights.point * part.valid * inputs.settings.points
    of_disparity = weights.disparity * part.has_disparity
    rough = median_depth(reach, of_point, part.disparity, of_disparity)
    known = (of_point > 0).any(1) | (of_disparity > 0).any(1)
    around = _neighbours(rough.where(known, torch.nan), height, width)[:, None]
    relative = _relative_sigma(part, rough[:, None])
    confidence = (1 / relative).clamp_max(inputs.settings.max_confidence_ratio)
    of_disparity = of_disparity * confidence * _agreement(part.disparity * around)
    depth = robust_depth(
        points,
        of_point * confidence * _agreement(reach / around),
        rays,
        weights.widths,
        disparity=part.disparity,
        disparity_weights=of_disparity,
    )
    filled = samples.cover.filled[frames].to(device)
    votes = part.valid.sum(1)
    valid = known & (2 * votes >= filled.sum(1)[:, None]) & (votes > 0)
    to_world = invert_rigid(unknowns.world_to_camera)[frames, None].to(rays)
    positions = transform_points(depth[..., None] * rays, to_world).masked_fill(
        ~valid[..., None], 0
    )
    sigma = (part.relative_sigma * part.sigma_scale[..., None]).nan_to_num(torch.inf)
    sigma = sigma.where(part.valid, torch.inf).amin(1)
    certainty = (0.01 * depth / sigma.clamp_min(1e-12)).masked_fill(~valid, 0)
    size = (len(depth), height, width)
    return (
        depth.masked_fill(~valid, 0).reshape(size), positions.reshape(*size, 3),
        valid.reshape(size), certainty.reshape(size),
    )  # fmt: skip


def _neighbours(
    depth: Float[Tensor, "frame pixel"], height: int, width: int
) -> Float[Tensor, "frame pixel"]:
    """Median over 3 x 3 pixels, of those that are known."""
    images = depth.unflatten(1, (height, width))[:, None]
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    return torch.nn.functional.unfold(padded, 3).nanmedian(dim=1).values


def _agreement(ratio: Float[Tensor, "frame slot pixel"]) -> Float[Tensor, "frame slot pixel"]:
    """How much to believe an answer that differs from the neighbourhood by a factor.

    It counts only where answers for one pixel contradict each other: all lose alike on a thin
    object that is none of its neighbours', and what is divided by a common factor stays the same.
    """
    away = ratio.clamp_min(1e-6).log() / _NEIGHBOUR_WIDTH
    return (1 / (1 + away.square())).nan_to_num(1.0)


def _relative_sigma(
    part: _Gathered, depth: Float[Tensor, "frame #slot pixel"]
) -> Float[Tensor, "frame slot pixel"]:
    """Sigma / depth over its median in the window; 1 where sigma is not known."""
    relative = part.relative_sigma / depth.clamp_min(1e-6)
    return torch.where(part.sigma_scale[..., None].isinf(), 1.0, relative).clamp_min(1e-6)
