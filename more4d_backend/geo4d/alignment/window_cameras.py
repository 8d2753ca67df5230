"""Cameras of each window's frames, found in the window's own coordinates: focal length, then PnP.

Vectorised over windows. A window's camera 0 has no rotation and lies on the z axis, at a place
that is not known; all others have six unknowns each.
"""

import logging
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from ...geometry import rigid
from .pixel_terms import point_gradient, point_normal_matrix
from .rotations import rotation_from_vector
from .samples import Samples

_log = logging.getLogger(__name__)

_ROUNDS = 10
_PNP_STEPS, _FINAL_STEPS = 5, 4
_PNP_PIXELS = 700
_EPSILON = 1e-12
_DEFAULT_FOCAL = 0.9
"""In longer image sides: 58 degrees, for scenes from which no focal length can be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowCameras:
    """Float64, on the CPU."""

    focal_px: float
    """One for all windows."""

    window_to_camera: Float[Tensor, "window position 4 4"]
    """Rigid, in box units; the last camera repeated where padded or without points."""


def find_window_cameras(samples: Samples) -> WindowCameras:
    """Focal length in closed form, then every frame's camera by robust Gauss-Newton.

    Each frame starts at the camera of the frame before; at the end all are refined together.
    """
    focal_px, shift = _focal_and_shift(samples)
    rays = samples.rays(focal_px)
    step = max(1, len(rays) // _PNP_PIXELS)
    some = slice(step // 2, None, step)
    num_windows, num_frames = samples.weights.shape[:2]
    pose = torch.eye(4, dtype=rays.dtype, device=rays.device).repeat(num_windows, 1, 1)
    pose[:, 2, 3] = shift
    poses = []
    for frame in range(num_frames):
        points, weights = samples.points[:, frame, some], samples.weights[:, frame, some]
        for _ in range(_PNP_STEPS if frame else 1):
            pose = _pnp_step(pose, points, weights, rays[some])
        poses.append(pose)
    pose = torch.stack(poses, dim=1).flatten(0, 1)
    points, weights = samples.points.flatten(0, 1), samples.weights.flatten(0, 1)
    for _ in range(_FINAL_STEPS):
        pose = _pnp_step(pose, points, weights, rays)
    pose = pose.unflatten(0, (num_windows, num_frames)).cpu().double()
    return WindowCameras(focal_px=focal_px, window_to_camera=_orthogonal(pose))


def focal_range_px(samples: Samples) -> tuple[float, float]:
    """Focal lengths that are believed: fields of view of 136 to 6 degrees."""
    longest = max(samples.height, samples.width)
    return 0.2 * longest, 10.0 * longest


def _focal_and_shift(samples: Samples) -> tuple[float, Float[Tensor, "window"]]:
    """Focal length for all windows, and per window how far camera 0 stands before the box.

    In frame 0 of a window (X, Y) = (u, v) (Z + shift) / f. With a = 1 / f and b = shift / f that is
    linear: X = a u Z + b u. The noise of X and Y, not that of u, is what is minimised.
    """
    points, weights = samples.points[:, 0], samples.weights[:, 0]
    radius2 = samples.offsets_px.square().sum(-1)
    # In window 0's units nothing is known of the others': make all lengths relative.
    mean_weight = weights.sum(-1).clamp_min(_EPSILON)
    size = (weights * points[..., 2].abs()).sum(-1) / mean_weight
    points = points / size.clamp_min(_EPSILON)[:, None, None]
    across = einsum(points[..., :2], samples.offsets_px, "w p i, p i -> w p")
    usable = weights
    inverse_focal, offset = points.new_zeros(()), points.new_zeros(len(points))
    for _ in range(_ROUNDS):
        lever = usable * radius2
        total = lever.sum(-1).clamp_min(_EPSILON)
        mean_z = (lever * points[..., 2]).sum(-1) / total
        mean_x = (usable * across).sum(-1) / total
        z = points[..., 2] - mean_z[:, None]
        covariance = (usable * across * z).sum()
        inverse_focal = covariance / (lever * z.square()).sum().clamp_min(_EPSILON)
        offset = mean_x - inverse_focal * mean_z
        expected = (inverse_focal * points[..., 2] + offset[:, None])[..., None]
        residual = (points[..., :2] - expected * samples.offsets_px).norm(dim=-1)
        usable = weights / residual.clamp_min(1e-3)
    longest = max(samples.height, samples.width)
    focal_px = 1 / max(float(inverse_focal), _EPSILON)
    low, high = focal_range_px(samples)
    if not low < focal_px < high:
        focal_px = _other_focal(samples, longest)
        inverse_focal = points.new_tensor(1 / focal_px)
        # f is given now: what is left is the shift that puts the points on their rays.
        lever = weights * radius2
        total = lever.sum(-1).clamp_min(_EPSILON)
        expected = inverse_focal * points[..., 2] * radius2
        offset = (weights * (across - expected)).sum(-1) / total
    return focal_px, offset / inverse_focal * size


def _other_focal(samples: Samples, longest: int) -> float:
    if samples.ray_focal_px is not None:
        focal_px = float(samples.ray_focal_px.median())
        low, high = focal_range_px(samples)
        if low < focal_px < high:
            _log.info("Focal length %.1f px from the ray maps: the points tell none.", focal_px)
            return focal_px
    _log.warning("No focal length can be told from the video; taking a field of view of 58 degrees")
    return _DEFAULT_FOCAL * longest


def _pnp_step(
    pose: Float[Tensor, "camera 4 4"],
    points: Float[Tensor, "camera pixel 3"],
    weights: Float[Tensor, "camera pixel"],
    rays: Float[Tensor, "pixel 3"],
) -> Float[Tensor, "camera 4 4"]:
    """One reweighted Gauss-Newton step on the distance of points from their pixels' rays."""
    seen = einsum(pose[:, :3, :3], points, "c i j, c p j -> c p i") + pose[:, None, :3, 3]
    length2 = rays.square().sum(-1)
    depth = einsum(seen, rays, "c p i, p i -> c p") / length2
    # The foot on the ray, and as depth where it lies behind the camera, its distance.
    depth = depth.where(depth > 0, seen.norm(dim=-1)).clamp_min(1e-6)
    foot = depth[..., None] * rays
    residual = foot - seen
    # In angle: errors of points grow with depth, and the scale of the window is not known.
    relative = 1 / depth
    weight = weights * relative.square() / (residual.norm(dim=-1) * relative).clamp_min(1e-3)
    # Basis as in `pixel_terms`: rotation and translation; the part along the ray is eliminated.
    moment = torch.cat([foot, torch.ones_like(depth)[..., None]], dim=-1)
    gram = point_normal_matrix((weight[..., None] * moment).transpose(1, 2) @ moment)[..., :6, :6]
    along = torch.nn.functional.normalize(rays, dim=-1)
    gram[:, 3:, 3:] -= einsum(weight, along[:, :, None] * along[:, None], "c p, p i j -> c i j")
    right = point_gradient((weight[..., None] * residual).transpose(1, 2) @ moment)[..., :6]
    damping = 1e-6 * gram.diagonal(dim1=-2, dim2=-1).amax(-1) + _EPSILON
    gram = gram + damping[:, None, None] * torch.eye(6).to(gram)
    delta = -torch.linalg.solve(gram, right)
    # At most about 30 degrees, and half the median depth, in one step.
    turn = delta[:, :3] / (delta[:, :3].norm(dim=-1, keepdim=True) / 0.5).clamp_min(1)
    reach = 0.5 * depth.median(dim=-1).values[:, None].clamp_min(1e-6)
    move = delta[:, 3:] / (delta[:, 3:].norm(dim=-1, keepdim=True) / reach).clamp_min(1)
    update = rigid(rotation_from_vector(turn), move)
    return update @ pose


def _orthogonal(pose: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Take float32 rounding out of rotations."""
    u, _, vh = torch.linalg.svd(pose[..., :3, :3])
    return rigid(u @ vh, pose[..., :3, 3])
