"""Cameras, windows, focal length and depths adjusted together, by reweighted Gauss-Newton.

It minimises the paper's four terms. All are absolute (not squared) differences, so each round
weighs every difference by the inverse of its last value.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...geometry import rigid
from .block_solver import CAMERA_SIZE, WINDOW_SIZE, Layout, System, layout_of
from .depths import NoiseWidths
from .initial import ray_trajectories
from .pixel_terms import COLUMNS, FrameSums, TermWeights, sum_frames
from .pose_terms import add_camera_term, add_smoothness_term
from .report import Losses
from .rotations import cross_matrix, rotation_from_vector
from .samples import Samples
from .settings import AlignmentSettings
from .unknowns import FrameSamples, Unknowns, frame_samples, window_to_camera
from .window_cameras import focal_range_px

_MAX_LOG_FOCAL_STEP = 0.2
_WORSE = 1e-4
"""Relative growth of the loss that a step may bring: depths are refined only roughly in between."""
_MAX_DAMPING = 1e4
_FREE_DAMPING = 1e-2
"""Steps that are damped more are short for that alone, and tell nothing of convergence."""
_FOLLOWING_STEPS = 10
"""Steps in which the ray cameras are laid on the cameras anew; if they always were, both would
wander together for long."""
_NOISE_FACTOR = 1.5
"""Differences up to this many times their median count as noise."""
_MIN_WIDTH = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjusted:
    """Where the adjustment ended."""

    unknowns: Unknowns
    """At the end."""

    start: Losses
    """Before."""

    end: Losses
    """After."""

    iterations: int
    """Steps tried."""

    last_step: float
    """Largest movement in the last step taken."""

    converged: bool
    """Whether that was below the tolerance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    """What stays the same from step to step."""

    samples: Samples
    weights: TermWeights
    frames: list[slice]
    parts: list[FrameSamples]
    rays_count: Bool[Tensor, "window"]
    settings: AlignmentSettings
    layout: Layout
    pivots: Float[Tensor, "window 3"]

    @property
    def log_focal_range(self) -> tuple[float, float]:
        """Where predictions that fit nothing may take the focal length."""
        low, high = focal_range_px(self.samples)
        return math.log(low), math.log(high)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trajectories:
    """Ray cameras of trusted windows, laid on the cameras of the video."""

    rotation: Float[Tensor, "camera 3 3"]
    center: Float[Tensor, "camera 3"]
    frame: Int[Tensor, "camera"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """Unknowns, and the normal equations there."""

    unknowns: Unknowns
    trajectories: _Trajectories | None
    system: System
    losses: Losses


def adjust(
    samples: Samples,
    unknowns: Unknowns,
    weights: TermWeights,
    rays_count: Bool[Tensor, "window"],
    settings: AlignmentSettings,
    progress: Callable[[int, int], None] | None = None,
) -> Adjusted:
    """Adjust everything from a near start. `rays_count`: windows whose ray cameras are trusted."""
    problem = _Problem(
        samples=samples,
        weights=weights,
        frames=samples.chunks,
        parts=[frame_samples(samples, frames) for frames in samples.chunks],
        rays_count=rays_count,
        settings=settings,
        layout=layout_of(samples.cover),
        pivots=_window_centers(samples),
    )
    state = _linearize(problem, unknowns, _trajectories(problem, unknowns))
    start, damping, size, converged, iteration = state.losses, 1e-6, 0.0, False, 0
    for iteration in range(1, settings.max_iterations + 1):
        try:
            step, focal = state.system.solve(damping)
        except torch.linalg.LinAlgError:  # rounding made it indefinite: closer to the gradient
            damping = max(10 * damping, 1e-4)
            if damping > _MAX_DAMPING:
                break
            continue
        if progress is not None:
            progress(iteration, settings.max_iterations)
        focal = focal.clamp(-_MAX_LOG_FOCAL_STEP, _MAX_LOG_FOCAL_STEP)
        moved = _moved(problem, state.unknowns, step, focal)
        follow = iteration <= _FOLLOWING_STEPS
        trajectories = _trajectories(problem, moved) if follow else state.trajectories
        tried = _linearize(problem, moved, trajectories)
        better = tried.losses.total <= state.losses.total * (1 + _WORSE) + 1e-12
        # Windows that fit nothing can run off to where the equations overflow.
        if not (better and tried.system.is_finite):
            damping = max(10 * damping, 1e-4)
            if damping > _MAX_DAMPING:
                break
            continue
        size = _step_size(step, focal, problem.layout)
        converged = size < settings.tolerance and damping <= _FREE_DAMPING
        state, damping = tried, max(damping / 10, 1e-8)
        if converged:
            break
    return Adjusted(
        unknowns=state.unknowns,
        start=start,
        end=state.losses,
        iterations=iteration,
        last_step=size,
        converged=converged,
    )


def _linearize(problem: _Problem, unknowns: Unknowns, trajectories: _Trajectories | None) -> _State:
    """Refine all depths, then add up all terms."""
    samples, settings = problem.samples, problem.settings
    system = System(problem.layout)
    weights = problem.weights
    depth, point_loss, disparity_loss = [], 0.0, 0.0
    for frames, part in zip(problem.frames, problem.parts, strict=True):
        sums = sum_frames(samples, part, unknowns, weights, frames)
        _add_pixels(system, problem, unknowns, sums, frames)
        depth.append(sums.depth)
        point_loss += sums.point_loss
        disparity_loss += sums.disparity_loss
    _fix_world(system, samples, settings)
    num_frames = samples.cover.num_frames
    camera_loss = 0.0
    if trajectories is not None:
        assert settings.camera_weight is not None  # `for_weights` chose it
        share = 1 if settings.pose_terms == "sum" else len(trajectories.frame)
        camera_loss = add_camera_term(
            system,
            unknowns,
            trajectories.rotation,
            trajectories.center,
            trajectories.frame,
            settings.camera_weight / share,
        )
    share = 1 if settings.pose_terms == "sum" else max(num_frames - 1, 1)
    smoothness = add_smoothness_term(
        system, unknowns, settings.smoothness_weight / share, settings.smoothness
    )
    losses = Losses(
        points=point_loss, disparity=disparity_loss, cameras=camera_loss, smoothness=smoothness
    )
    unknowns = replace(unknowns, depth=torch.cat(depth))
    return _State(unknowns=unknowns, trajectories=trajectories, system=system, losses=losses)


def _trajectories(problem: _Problem, unknowns: Unknowns) -> _Trajectories | None:
    cover = problem.samples.cover
    if problem.samples.ray_cameras is None or not problem.rays_count.any():
        return None
    rotation, center = ray_trajectories(problem.samples, unknowns)
    position = torch.arange(rotation.shape[1])
    frame = position + torch.tensor(cover.first_frame)[:, None]
    counts = (position < torch.tensor(cover.length)[:, None]) & problem.rays_count[:, None]
    return _Trajectories(rotation=rotation[counts], center=center[counts], frame=frame[counts])


def term_weights(samples: Samples, unknowns: Unknowns, settings: AlignmentSettings) -> TermWeights:
    """Weights of the pixel terms: each term is a mean over its samples."""

    def mean_of(weight: float, values: Tensor | None) -> float:
        return 0.0 if values is None else weight / max(int((values > 0).sum()), 1)

    return TermWeights(
        point=mean_of(settings.point_weight, samples.weights),
        disparity=mean_of(settings.disparity_weight, samples.disparity_weights),
        widths=_noise_widths(samples, unknowns),
        start=unknowns,
    )


def _noise_widths(samples: Samples, unknowns: Unknowns) -> NoiseWidths:
    """Median differences, as shares of depth and disparity, times `_NOISE_FACTOR`."""
    rays = samples.rays(unknowns.focal_px)
    points, disparity = [], []
    for frames in samples.chunks:
        part = frame_samples(samples, frames)
        matrix, offset = window_to_camera(unknowns, samples, frames)
        seen = einsum(part.points, matrix.to(rays), "f s p j, f s i j -> f s p i")
        depth = unknowns.depth[frames, None]
        away = depth[..., None] * rays - seen - offset.to(rays)[:, :, None]
        points.append((away.norm(dim=-1) / depth)[part.weights > 0])
        if part.disparity is not None and part.disparity_weights is not None:
            window = samples.cover.window[frames]
            scale = unknowns.disparity_scale[window].to(rays)[..., None]
            shift = unknowns.disparity_shift[window].to(rays)[..., None]
            error = (depth * (scale * part.disparity + shift) - 1).abs()
            disparity.append(error[part.disparity_weights > 0])

    def width(errors: list[Tensor]) -> float:
        joined = torch.cat(errors) if errors else torch.zeros(0)
        return max(_NOISE_FACTOR * float(joined.median()), _MIN_WIDTH) if len(joined) else 1.0

    return NoiseWidths(point=width(points), disparity=width(disparity))


def _window_centers(samples: Samples) -> Float[Tensor, "window 3"]:
    """Middle of each window's points, in its coordinates: windows turn and grow about it."""
    weights = samples.weights
    total = weights.sum((1, 2)).clamp_min(1e-12)
    middle = einsum(weights, samples.points, "w f p, w f p i -> w i") / total[:, None]
    return middle.cpu().double()


def _pivots_in_world(unknowns: Unknowns, pivots: Tensor) -> Float[Tensor, "window 3"]:
    turned = einsum(unknowns.window_rotation, pivots, "w i j, w j -> w i")
    return unknowns.window_scale[:, None] * turned + unknowns.window_translation


def _add_pixels(
    system: System, problem: _Problem, unknowns: Unknowns, sums: FrameSums, frames: slice
) -> None:
    """From the per-pixel basis to the unknowns: step in the basis = matrix @ step of unknowns."""
    window = problem.samples.cover.window[frames]
    by_camera, by_window = _basis_matrices(unknowns, window, frames, problem.pivots)
    num_slots = window.shape[1]
    camera = system.layout.camera[frames, None].expand(-1, num_slots, -1)
    index = torch.cat([camera, system.layout.window[window]], dim=-1)
    matrix = torch.cat([by_camera[..., :CAMERA_SIZE], by_window], dim=-1)
    normal = einsum(matrix, sums.normal, matrix, "f s c a, f s c r k, f r k b -> f s a r b")
    gradient = einsum(matrix, sums.gradient, "f s c a, f s c -> f s a")
    system.add(
        rearrange(index, "f s a -> f (s a)"),
        rearrange(normal, "f s a r b -> f (s a) (r b)"),
        rearrange(gradient, "f s a -> f (s a)"),
    )
    focal = by_camera[..., CAMERA_SIZE]
    column = einsum(matrix, sums.normal, focal, "f s c a, f s c r k, f r k -> f s a")
    system.add_border(index, column)
    system.corner += einsum(focal, sums.normal, focal, "f s c, f s c r k, f r k ->")
    system.corner_gradient += einsum(focal, sums.gradient, "f s c, f s c ->")


def _basis_matrices(
    unknowns: Unknowns, window: Tensor, frames: slice, pivots: Tensor
) -> tuple[Float[Tensor, "frame slot 10 7"], Float[Tensor, "frame slot 10 9"]]:
    """What a step of camera (and focal length) and of window is in the basis of `pixel_terms`."""
    camera = unknowns.world_to_camera[frames, None]
    turn = camera[..., :3, :3].expand(*window.shape, 3, 3)
    pivot = _pivots_in_world(unknowns, pivots)[window]
    pivot = einsum(turn, pivot, "f s i j, f s j -> f s i") + camera[..., :3, 3]
    by_camera = torch.zeros(*window.shape, COLUMNS, CAMERA_SIZE + 1, dtype=torch.float64)
    for column in range(CAMERA_SIZE):
        by_camera[..., column, column] = 1
    by_camera[..., 7, CAMERA_SIZE] = 1
    by_window = torch.zeros(*window.shape, COLUMNS, WINDOW_SIZE, dtype=torch.float64)
    # Growth about the pivot: -(fused - pivot); rotation about it: [fused - pivot]x R.
    by_window[..., 6, 0] = 1
    by_window[..., 3:6, 0] = -pivot
    by_window[..., 0:3, 1:4] = turn
    by_window[..., 3:6, 1:4] = cross_matrix(pivot) @ turn
    by_window[..., 3:6, 4:7] = turn
    # The predicted disparity, without its noise, is (1 / d - shift) / scale.
    scale, shift = unknowns.disparity_scale[window], unknowns.disparity_shift[window]
    by_window[..., 8, 7] = 1 / scale
    by_window[..., 9, 7] = -shift / scale
    by_window[..., 9, 8] = 1
    return by_camera, by_window


def _fix_world(system: System, samples: Samples, settings: AlignmentSettings) -> None:
    """The first window with points is the world; without points its disparity is the unit."""
    if settings.points:
        usable = (samples.weights > 0).flatten(1).any(1)
        first = int(usable.nonzero()[0, 0]) if usable.any() else 0
        system.fix(system.layout.window[first, :7])
    else:
        system.fix(system.layout.window[0, 7:])


def _moved(problem: _Problem, unknowns: Unknowns, step: Tensor, focal: Tensor) -> Unknowns:
    """Take a step."""
    layout, pivots = problem.layout, problem.pivots
    by_camera, by_window = step[layout.camera], step[layout.window]
    update = rigid(rotation_from_vector(by_camera[:, :3]), by_camera[:, 3:])
    turn, growth = rotation_from_vector(by_window[:, 1:4]), by_window[:, 0].exp()
    pivot = _pivots_in_world(unknowns, pivots)
    around = einsum(turn, unknowns.window_translation - pivot, "w i j, w j -> w i")
    scale = unknowns.disparity_scale
    return replace(
        unknowns,
        log_focal=(unknowns.log_focal + focal).clamp(*problem.log_focal_range),
        world_to_camera=update @ unknowns.world_to_camera,
        window_scale=unknowns.window_scale * growth,
        window_rotation=turn @ unknowns.window_rotation,
        window_translation=growth[:, None] * around + pivot + by_window[:, 4:7],
        # At most halved or doubled: a negative scale would turn the scene inside out.
        disparity_scale=torch.minimum(torch.maximum(scale + by_window[:, 7], scale / 2), scale * 2),
        disparity_shift=unknowns.disparity_shift + by_window[:, 8],
    )


def _step_size(step: Tensor, focal: Tensor, layout: Layout) -> float:
    """Largest movement of a camera, growth or turn of a window, or change of the focal length."""
    parts = [step[layout.camera].flatten(), step[layout.window[:, :4]].flatten(), focal[None]]
    return float(torch.cat(parts).abs().max())
