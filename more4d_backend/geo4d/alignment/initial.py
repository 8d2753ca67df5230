"""Where the adjustment starts: every unknown from closed forms, near enough for Gauss-Newton."""

from dataclasses import replace
from itertools import pairwise

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from ...geometry import invert_rigid, rigid
from .chaining import Similarities, align_trajectories, chain_cameras, chain_points
from .depths import NoiseWidths, robust_depth
from .disparities import fit_lines
from .rotations import rotation_from_vector, vector_from_rotation
from .samples import Samples
from .settings import AlignmentSettings
from .unknowns import Unknowns, frame_samples, window_to_camera
from .window_cameras import find_window_cameras

_LINE_SAMPLES = 10_000
"""Of a window's disparity: two numbers are sought."""

_FARTHEST = 0.1
"""Without points nothing tells where disparity 0 lies: it is put at 10 times the nearest depth."""


def start_from_points(samples: Samples) -> tuple[Unknowns, tuple[int, ...]]:
    """Cameras and windows from the point maps, depth from these; the disparity then follows.

    Also returns the windows before which the camera had to be kept still.
    """
    found = find_window_cameras(samples)
    windows = chain_points(samples, found.window_to_camera)
    unknowns = Unknowns(
        log_focal=torch.tensor(found.focal_px, dtype=torch.float64).log(),
        world_to_camera=_video_cameras(samples, found.window_to_camera, windows),
        window_scale=windows.scale,
        window_rotation=windows.rotation,
        window_translation=windows.translation,
        disparity_scale=torch.ones_like(windows.scale),
        disparity_shift=torch.zeros_like(windows.scale),
        depth=torch.ones(samples.cover.num_frames, len(samples.offsets_px)).to(samples.points),
    )
    unknowns = in_unit_depth(_with_depth(samples, unknowns), samples)
    return fit_disparities(samples, unknowns), windows.bridged


def start_without_points(samples: Samples) -> Unknowns:
    """Depth from the disparity alone, cameras from the ray maps or standing still.

    Disparity is affine in 1 / depth and nothing says how: that of the first window is taken as it
    is, from `_FARTHEST` to 1. Compare such depth up to scale and shift only.
    """
    assert samples.disparity is not None
    assert samples.disparity_weights is not None
    cover = samples.cover
    scale, shift = _chain_disparities(samples)
    num_windows = cover.num_windows
    world_to_camera = torch.eye(4, dtype=torch.float64).repeat(cover.num_frames, 1, 1)
    windows = Similarities(
        scale=torch.ones(num_windows, dtype=torch.float64),
        rotation=torch.eye(3, dtype=torch.float64).repeat(num_windows, 1, 1),
        translation=torch.zeros(num_windows, 3, dtype=torch.float64),
        bridged=(),
    )
    focal_px = 0.9 * max(samples.height, samples.width)
    if samples.ray_cameras is not None and samples.ray_focal_px is not None:
        rays = samples.ray_cameras
        windows = chain_cameras(rays.rotation, rays.center, cover)
        world_to_camera = _video_cameras(samples, rays.world_to_camera, windows)
        focal_px = float(samples.ray_focal_px.median())
    unknowns = Unknowns(
        log_focal=torch.tensor(focal_px, dtype=torch.float64).log(),
        world_to_camera=world_to_camera,
        window_scale=windows.scale,
        window_rotation=windows.rotation,
        window_translation=windows.translation,
        disparity_scale=scale,
        disparity_shift=shift,
        depth=torch.ones(cover.num_frames, len(samples.offsets_px)).to(samples.points),
    )
    return in_unit_depth(_with_depth(samples, unknowns, disparity=True), samples)


def in_unit_depth(unknowns: Unknowns, samples: Samples) -> Unknowns:
    """Make the median depth of all usable samples the unit of length."""
    depths = [unknowns.depth[f][_usable(samples, f)] for f in samples.chunks]
    depth = torch.cat(depths)
    if not len(depth):
        return unknowns
    return unknowns.scaled(1 / float(depth.median()))


def fit_disparities(samples: Samples, unknowns: Unknowns) -> Unknowns:
    """Scale and shift of every window's disparity, from the depth of the frames that it covers."""
    if samples.disparity is None or samples.disparity_weights is None:
        return unknowns
    known = window_depths(samples, unknowns).reciprocal().flatten(1)
    predicted, weights = samples.disparity.flatten(1), samples.disparity_weights.flatten(1)
    some = slice(None, None, max(1, known.shape[1] // _LINE_SAMPLES))
    scale, shift = fit_lines(predicted[:, some], known[:, some], weights[:, some])
    return replace(
        unknowns, disparity_scale=scale.cpu().double(), disparity_shift=shift.cpu().double()
    )


def window_depths(samples: Samples, unknowns: Unknowns) -> Float[Tensor, "window position pixel"]:
    """Depth of the samples, window by window; the last frame repeated where padded."""
    frame = torch.arange(samples.weights.shape[1])
    frame = frame + torch.tensor(samples.cover.first_frame)[:, None]
    return unknowns.depth[frame.clamp_max(samples.cover.num_frames - 1).to(unknowns.depth.device)]


def with_relative_weights(
    samples: Samples, unknowns: Unknowns, settings: AlignmentSettings
) -> tuple[Samples, list[float | None]]:
    """Weigh samples by the relative error that sigma tells, now that the depth is known.

    Also returns the median of sigma / depth of every window; None without sigma.
    """
    relative = samples.sigma / window_depths(samples, unknowns)
    disparity_weights = samples.disparity_weights
    usable = samples.weights > 0
    if disparity_weights is not None:
        usable = usable | (disparity_weights > 0)
    confidence, medians = torch.ones_like(relative), []
    for window, known in enumerate(samples.sigma_known.tolist()):
        values = relative[window][usable[window]]
        median = float(values.median()) if known and len(values) else None
        medians.append(median)
        if median is not None:
            confidence[window] = median / relative[window]
    confidence = confidence.clamp_max(settings.max_confidence_ratio)
    weighted = replace(
        samples,
        weights=confidence * (samples.weights > 0),
        disparity_weights=None
        if disparity_weights is None
        else confidence * (disparity_weights > 0),
    )
    return weighted, medians


def _usable(samples: Samples, frames: slice) -> Tensor:
    part = frame_samples(samples, frames)
    usable = (part.weights > 0).any(1)
    if part.disparity_weights is not None:
        usable |= (part.disparity_weights > 0).any(1)
    return usable


def _with_depth(samples: Samples, unknowns: Unknowns, disparity: bool = False) -> Unknowns:
    rays = samples.rays(unknowns.focal_px)
    depth = []
    for frames in samples.chunks:
        part = frame_samples(samples, frames)
        matrix, offset = window_to_camera(unknowns, samples, frames)
        points = einsum(matrix.to(rays), part.points, "f s i j, f s p j -> f s p i")
        window = samples.cover.window[frames]
        seen = weights = None
        if disparity and part.disparity is not None:
            scale = unknowns.disparity_scale[window].to(rays)[..., None]
            shift = unknowns.disparity_shift[window].to(rays)[..., None]
            seen, weights = scale * part.disparity + shift, part.disparity_weights
        depth.append(
            robust_depth(
                points + offset.to(rays)[:, :, None],
                part.weights,
                rays,
                NoiseWidths(),
                disparity=seen,
                disparity_weights=weights,
            )
        )
    return replace(unknowns, depth=torch.cat(depth))


def _video_cameras(
    samples: Samples, cameras: Float[Tensor, "window position 4 4"], windows: Similarities
) -> Float[Tensor, "frame 4 4"]:
    """World-to-camera per frame, out of the window that knows most of the frame.

    Frames of which no window knows anything get the camera of the nearest frame.
    """
    cover = samples.cover
    known = (samples.weights.sum(-1) + _disparity_weight(samples)).cpu()
    known = known[cover.window, cover.position] * cover.filled
    best = known.argmax(1, keepdim=True)
    window = cover.window.gather(1, best)[:, 0]
    position = cover.position.gather(1, best)[:, 0]
    camera = cameras[window, position]
    turn, scale = windows.rotation[window], windows.scale[window]
    rotation = camera[:, :3, :3] @ turn.transpose(-1, -2)
    center = invert_rigid(camera)[:, :3, 3]
    center = scale[:, None] * einsum(turn, center, "f i j, f j -> f i")
    center = center + windows.translation[window]
    poses = rigid(rotation, -einsum(rotation, center, "f i j, f j -> f i"))
    usable = (known.amax(1) > 0).nonzero()[:, 0]
    if not len(usable):
        return poses
    nearest = (torch.arange(cover.num_frames)[:, None] - usable).abs().argmin(1)
    return _exact_rotations(poses[usable[nearest]])


def _exact_rotations(poses: Tensor) -> Tensor:
    vector = vector_from_rotation(poses[:, :3, :3])
    return rigid(rotation_from_vector(vector), poses[:, :3, 3])


def _disparity_weight(samples: Samples) -> Tensor | float:
    return 0.0 if samples.disparity_weights is None else samples.disparity_weights.sum(-1)


def _chain_disparities(
    samples: Samples,
) -> tuple[Float[Tensor, "window"], Float[Tensor, "window"]]:
    """Scale and shift of every window's disparity, each on the one before, in shared frames."""
    cover = samples.cover
    assert samples.disparity is not None
    assert samples.disparity_weights is not None
    order = sorted(range(cover.num_windows), key=lambda w: cover.first_frame[w])
    scale = torch.full((cover.num_windows,), 1 - _FARTHEST, dtype=torch.float64)
    shift = torch.full((cover.num_windows,), _FARTHEST, dtype=torch.float64)
    for before, after in pairwise(order):
        start = cover.first_frame[after] - cover.first_frame[before]
        count = max(0, min(cover.length[before] - start, cover.length[after]))
        here, there = slice(start, start + count), slice(0, count)
        weights = samples.disparity_weights[before, here] * samples.disparity_weights[after, there]
        slope, offset = fit_lines(
            samples.disparity[after, there].flatten()[None],
            samples.disparity[before, here].flatten()[None],
            weights.flatten()[None],
        )
        # 1 / depth = scale (slope x + offset) + shift
        scale[after] = scale[before] * float(slope)
        shift[after] = scale[before] * float(offset) + shift[before]
    return scale, shift


def ray_trajectories(
    samples: Samples, unknowns: Unknowns
) -> tuple[Float[Tensor, "window position 3 3"], Float[Tensor, "window position 3"]]:
    """Lay each window's ray cameras (camera to world) on the cameras of the video."""
    assert samples.ray_cameras is not None
    cover = samples.cover
    frame = torch.arange(samples.weights.shape[1]) + torch.tensor(cover.first_frame)[:, None]
    inside = torch.arange(samples.weights.shape[1]) < torch.tensor(cover.length)[:, None]
    to_world = invert_rigid(unknowns.world_to_camera)[frame.clamp_max(cover.num_frames - 1)]
    scale, turn, move = align_trajectories(
        samples.ray_cameras.rotation,
        samples.ray_cameras.center,
        to_world[..., :3, :3],
        to_world[..., :3, 3],
        unknowns.window_scale,
        inside.double(),
    )
    center = einsum(turn, samples.ray_cameras.center, "w i j, w f j -> w f i")
    center = scale[:, None, None] * center + move[:, None]
    return turn[:, None] @ samples.ray_cameras.rotation, center
