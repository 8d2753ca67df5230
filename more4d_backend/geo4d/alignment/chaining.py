"""Windows joined into one world: neighbours share frames, and there the same pixels.

Vectorised over all neighbours; only the joining of the links runs from window to window.
"""

import logging
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from ...geometry import invert_rigid, rigid
from .rotations import mean_rotation
from .samples import Cover, Samples
from .unknowns import joined

_log = logging.getLogger(__name__)

_ROUNDS = 8
_MIN_SAMPLES = 12
"""Shared samples below which two neighbours count as not linked."""
_TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarities:
    """Window to world, float64, on the CPU."""

    scale: Float[Tensor, "window"]
    """Box unit in world units."""

    rotation: Float[Tensor, "window 3 3"]
    """Window to world."""

    translation: Float[Tensor, "window 3"]
    """World = scale * rotation @ window + translation."""

    bridged: tuple[int, ...]
    """Windows that share too little with their neighbour before: the camera was kept still."""


def chain_points(
    samples: Samples, window_to_camera: Float[Tensor, "window position 4 4"]
) -> Similarities:
    """Join windows through the points of shared frames. The first window with points is the world.

    Windows without any point keep the place of the neighbour before.
    """
    usable = (samples.weights > 0).flatten(1).any(1)
    order = sorted(range(samples.cover.num_windows), key=lambda w: samples.cover.first_frame[w])
    used = [window for window in order if usable[window]]
    links = list(pairwise(used))
    scale, rotation, translation, shared = _links(samples, links)
    matrices = torch.eye(4, dtype=torch.float64).repeat(samples.cover.num_windows, 1, 1)
    bridged = []
    for number, (before, after) in enumerate(links):
        link = joined(rotation[number], translation[number], scale[number])
        if shared[number] < _MIN_SAMPLES:
            bridged.append(after)
            link = _still_camera(samples, window_to_camera, before, after)
            _log.warning(
                "Windows %d and %d share no usable pixels: the camera is kept still between them.",
                before, after,
            )  # fmt: skip
        matrices[after] = matrices[before] @ link
    for before, window in pairwise(order):
        if not usable[window]:
            matrices[window] = matrices[before]
    scale = torch.linalg.det(matrices[:, :3, :3]).pow(1 / 3)
    return Similarities(
        scale=scale,
        rotation=matrices[:, :3, :3] / scale[:, None, None],
        translation=matrices[:, :3, 3],
        bridged=tuple(bridged),
    )


def chain_cameras(
    rotation: Float[Tensor, "window position 3 3"],
    center: Float[Tensor, "window position 3"],
    cover: Cover,
) -> Similarities:
    """Join windows through cameras (camera to window) of shared frames, without any points."""
    order = sorted(range(cover.num_windows), key=lambda w: cover.first_frame[w])
    matrices = torch.eye(4, dtype=torch.float64).repeat(cover.num_windows, 1, 1)
    for before, after in pairwise(order):
        shift = cover.first_frame[after] - cover.first_frame[before]
        num_shared = min(cover.length[before] - shift, cover.length[after])
        # Without a shared frame: the last of the one is the first of the other.
        here = slice(shift, shift + num_shared) if num_shared > 0 else slice(-1, None)
        there = slice(0, max(num_shared, 1))
        scale, turn, move = align_trajectories(
            rotation[after, there], center[after, there],
            rotation[before, : cover.length[before]][here],
            center[before, : cover.length[before]][here], torch.ones(()).double(),
        )  # fmt: skip
        matrices[after] = matrices[before] @ joined(turn, move, scale)
    scale = torch.linalg.det(matrices[:, :3, :3]).pow(1 / 3)
    return Similarities(
        scale=scale,
        rotation=matrices[:, :3, :3] / scale[:, None, None],
        translation=matrices[:, :3, 3],
        bridged=(),
    )


def align_trajectories(
    rotation: Float[Tensor, "*batch position 3 3"],
    center: Float[Tensor, "*batch position 3"],
    target_rotation: Float[Tensor, "*batch position 3 3"],
    target_center: Float[Tensor, "*batch position 3"],
    usual_scale: Float[Tensor, "*batch"],
    weights: Float[Tensor, "*batch position"] | None = None,
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch 3 3"], Float[Tensor, "*batch 3"]]:
    """Similarity that lays one trajectory (camera to world) on another: scale, rotation, shift.

    The rotation is that of the cameras, which exists without any baseline; a camera that hardly
    moves leaves the scale at `usual_scale`.
    """
    if weights is None:
        weights = torch.ones_like(center[..., 0])
    turn = mean_rotation(target_rotation @ rotation.transpose(-1, -2), weights)
    w = (weights / weights.sum(-1, keepdim=True).clamp_min(_TINY))[..., None]
    mean, target_mean = (w * center).sum(-2), (w * target_center).sum(-2)
    moved = einsum(turn, center - mean[..., None, :], "... i j, ... f j -> ... f i")
    wanted = target_center - target_mean[..., None, :]
    power = (w * moved.square()).sum((-1, -2))
    # A path of 1 % of the unit says nothing about scale.
    prior = 1e-4 + _TINY
    scale = ((w * moved * wanted).sum((-1, -2)) + prior * usual_scale) / (power + prior)
    scale = torch.where(scale > 0, scale, usual_scale)
    turned = einsum(turn, mean, "... i j, ... j -> ... i")
    return scale, turn, target_mean - scale[..., None] * turned


def _links(samples: Samples, links: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Similarity of each pair's second window onto its first, and the number of shared samples."""
    if not links:
        zero = torch.zeros(0, dtype=torch.float64)
        return zero, zero.reshape(0, 1, 1).expand(0, 3, 3), zero[:, None].expand(0, 3), zero
    cover, device = samples.cover, samples.points.device
    before, after = (torch.tensor(side, device=device) for side in zip(*links, strict=True))
    first = torch.tensor(cover.first_frame, device=device)
    length = torch.tensor(cover.length, device=device)
    position = torch.arange(samples.points.shape[1], device=device)
    there = position + (first[after] - first[before])[:, None]
    inside = (there < length[before][:, None]) & (position < length[after][:, None])
    there = there.clamp(0, samples.points.shape[1] - 1)
    step = max(1, samples.points.shape[2] // 700)
    target = samples.points[before[:, None], there, ::step].flatten(1, 2)
    source = samples.points[after, :, ::step].flatten(1, 2)
    weights = samples.weights[before[:, None], there, ::step] * samples.weights[after, :, ::step]
    weights = (weights.sqrt() * inside[..., None]).flatten(1)
    scale, rotation, translation = robust_similarity(source, target, weights)
    shared = (weights > 0).sum(-1)
    return (scale.cpu().double(), rotation.cpu().double(), translation.cpu().double(), shared.cpu())


def robust_similarity(
    source: Float[Tensor, "link sample 3"],
    target: Float[Tensor, "link sample 3"],
    weights: Float[Tensor, "link sample"],
) -> tuple[Float[Tensor, "link"], Float[Tensor, "link 3 3"], Float[Tensor, "link 3"]]:
    """Similarity with target = scale * rotation @ source + translation, least absolute distances.

    Both sides have noise. The scale is therefore the ratio of their spreads (Horn 1987, the
    symmetric form): least squares would shrink a little with every link of a long video.
    """
    robust = weights
    scale, rotation, translation = (
        torch.ones_like(weights[:, 0]),
        torch.eye(3).to(source).expand(len(source), 3, 3),
        torch.zeros_like(source[:, 0]),
    )
    for _ in range(_ROUNDS):
        w = (robust / robust.sum(-1, keepdim=True).clamp_min(_TINY))[..., None]
        mean_s, mean_t = (w * source).sum(1), (w * target).sum(1)
        s, t = source - mean_s[:, None], target - mean_t[:, None]
        covariance = einsum(w * t, s, "l n i, l n j -> l i j")
        rotation = mean_rotation(covariance[:, None], covariance.new_ones(len(source), 1))
        spread_s, spread_t = (w * s.square()).sum((1, 2)), (w * t.square()).sum((1, 2))
        scale = (spread_t / spread_s.clamp_min(_TINY)).sqrt().clamp_min(1e-6)
        turned = einsum(rotation, source, "l i j, l n j -> l n i") * scale[:, None, None]
        translation = mean_t - einsum(rotation, mean_s, "l i j, l j -> l i") * scale[:, None]
        residual = (target - turned - translation[:, None]).norm(dim=-1)
        typical = (weights * residual).sum(-1) / weights.sum(-1).clamp_min(_TINY)
        robust = weights / residual.clamp_min(0.05 * typical[:, None] + 1e-9)
    return scale, rotation, translation


def _still_camera(
    samples: Samples, window_to_camera: Tensor, before: int, after: int
) -> Float[Tensor, "4 4"]:
    """Link that gives `after` the camera, and the median depth, that `before` ended with."""
    here, there = samples.cover.length[before] - 1, 0
    depths = []
    for window in (before, after):
        camera = window_to_camera[window].to(samples.points)
        z = einsum(camera[:, 2, :3], samples.points[window], "f j, f p j -> f p")
        z = (z + camera[:, None, 2, 3])[samples.weights[window] > 0]
        depths.append(float(z.median()))
    scale = window_to_camera.new_tensor(max(depths[0], _TINY) / max(depths[1], _TINY))
    start = window_to_camera[after, there]
    eye = torch.eye(3, dtype=start.dtype)
    grow = rigid(scale * eye, torch.zeros(3, dtype=start.dtype))
    return invert_rigid(window_to_camera[before, here]) @ grow @ start
