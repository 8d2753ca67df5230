"""Ray maps (Pluecker direction and moment per pixel) <-> cameras.

Weighted, robust, and vectorised over frames and windows. A window's coordinates are those of its
first camera, so there rotation 0 is the identity; its intrinsics are taken as constant.
"""

from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from ..geometry import invert_rigid, pixel_centers, rigid
from ..scene import Cameras
from .predictions import RayMaps

_ROUNDS = 8
"""Of reweighting; the cameras settle to 1e-4 of their noise within five."""
_EPSILON = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class RayCameras:
    """Cameras that ray maps tell."""

    rotation: Float[Tensor, "*batch frame 3 3"]
    """Camera to window; the identity for frame 0."""

    center: Float[Tensor, "*batch frame 3"]
    """Of the cameras, in the window's coordinates."""

    @property
    def world_to_camera(self) -> Float[Tensor, "*batch frame 4 4"]:
        """Window to camera, rigid."""
        return invert_rigid(rigid(self.rotation, self.center))


def rays_from_cameras(cameras: Cameras) -> RayMaps:
    """Return the rays through all pixel centres, in world coordinates, with unit directions."""
    like = cameras.intrinsics
    pixels = pixel_centers(cameras.height, cameras.width, device=like.device, dtype=like.dtype)
    pixels = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1)
    to_world = cameras.camera_to_world
    through = to_world[:, :3, :3] @ torch.linalg.inv(like)
    directions = einsum(through, pixels, "f i j, h w j -> f h w i")
    directions = torch.nn.functional.normalize(directions, dim=-1)
    centers = to_world[:, None, None, :3, 3].expand_as(directions)
    return RayMaps(directions=directions, moments=torch.linalg.cross(centers, directions))


def cameras_from_rays(
    directions: Float[Tensor, "*batch frame height width 3"],
    moments: Float[Tensor, "*batch frame height width 3"],
    weights: Float[Tensor, "*batch frame height width"] | None = None,
) -> RayCameras:
    """Find the centre and the rotation of each frame's camera.

    The centre is the point c with c x d = m for all rays, in least squares; the rotations are those
    that turn all frames' directions onto one bundle (generalised Procrustes: the bundle is the
    mean over frames, which has less noise than that of frame 0). Both are reweighted so that they
    minimise absolute, not squared, errors: single wrong rays do not move them. Intrinsics need not
    be known, only constant over the frames. Directions of 0 are not known and do not count.
    """
    directions, moments = directions.flatten(-3, -2).float(), moments.flatten(-3, -2).float()
    directions = torch.nn.functional.normalize(directions, dim=-1)
    if weights is None:
        given = torch.ones_like(directions[..., 0])
    else:
        given = weights.flatten(-2).to(directions)
    given = given * (directions != 0).any(-1)
    given = given / given.mean(-1, keepdim=True).clamp_min(_EPSILON)
    return RayCameras(
        rotation=_rotations(directions, given), center=_centers(directions, moments, given)
    )


def focal_from_rays(
    directions: Float[Tensor, "*batch height width 3"],
    weights: Float[Tensor, "*batch height width"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Find the focal length, in image widths, from ray directions in their own camera's axes.

    Square pixels, principal point in the middle. It is the weighted median over pixels of
    offset / slope (each pixel's own answer), which has no iteration and no bias by single pixels.
    """
    height, width = directions.shape[-3:-1]
    offset = pixel_centers(height, width, device=directions.device, dtype=directions.dtype)
    offset = offset - offset.new_tensor([width / 2, height / 2])
    # Along the pixel's own radius: the other component is noise.
    radius = offset.norm(dim=-1).clamp_min(_EPSILON)
    across = (directions[..., :2] * offset).sum(-1) / radius
    focal = radius * directions[..., 2] / across.where(across > 0, torch.inf)
    lever = across.clamp_min(0) * (1.0 if weights is None else weights)
    values, order = focal.flatten(-2).sort(dim=-1)
    cumulative = lever.flatten(-2).gather(-1, order).cumsum(-1)
    middle = (cumulative < cumulative[..., -1:] / 2).sum(-1, keepdim=True)
    return values.gather(-1, middle.clamp_max(values.shape[-1] - 1))[..., 0] / width


def _centers(directions: Tensor, moments: Tensor, given: Tensor) -> Tensor:
    weights = given
    center = torch.zeros_like(directions[..., 0, :])
    for _ in range(_ROUNDS):
        # sum (I - d d^T) c = sum d x m: the normal equations of c x d = m for unit d.
        total = weights.sum(-1)[..., None, None]
        outer = einsum(weights, directions, directions, "... p, ... p i, ... p j -> ... i j")
        eye = torch.eye(3, device=outer.device, dtype=outer.dtype)
        target = torch.linalg.cross(directions, moments)
        right = einsum(weights, target, "... p, ... p i -> ... i")
        # The ridge keeps the depth of the centre at 0 where all rays are parallel.
        matrix = total * eye - outer + (1e-6 * total + _EPSILON) * eye
        center = torch.linalg.solve(matrix.cpu().double(), right.cpu().double()).to(right)
        residual = torch.linalg.cross(center[..., None, :].expand_as(directions), directions)
        weights = given * _robust((residual - moments).norm(dim=-1), given)
    return center


def _rotations(directions: Tensor, given: Tensor) -> Tensor:
    weights = given
    bundle = directions[..., :1, :, :]
    rotation = torch.eye(3, device=directions.device, dtype=directions.dtype)
    for _ in range(_ROUNDS):
        covariance = einsum(weights, directions, bundle.expand_as(directions),
                            "... f p, ... f p i, ... f p j -> ... f i j")  # fmt: skip
        # Frames without any weight keep the identity.
        empty = (weights.sum(-1) <= _EPSILON)[..., None, None]
        eye = torch.eye(3, device=directions.device, dtype=directions.dtype)
        u, _, vh = torch.linalg.svd(torch.where(empty, eye, covariance).cpu().double())
        sign = torch.ones_like(u[..., 0])
        sign[..., 2] = torch.linalg.det(u) * torch.linalg.det(vh)  # refuse a mirrored solution
        rotation = (u @ (sign[..., None] * vh)).to(directions)
        turned_back = einsum(rotation, directions, "... f i j, ... f p i -> ... f p j")
        residual = (turned_back - bundle).norm(dim=-1)
        weights = given * _robust(residual, given)
        mean = einsum(weights, turned_back, "... f p, ... f p i -> ... p i")
        bundle = torch.nn.functional.normalize(mean, dim=-1)[..., None, :, :]
    # Against rotation 0 on the right: the bundle is then that of frame 0, in its own axes.
    return rotation @ rotation[..., :1, :, :].transpose(-1, -2)


def _robust(residual: Tensor, given: Tensor) -> Tensor:
    """Weights that make squares absolute, bounded below the typical residual."""
    typical = (given * residual).mean(-1, keepdim=True)
    return 1 / residual.clamp_min(0.1 * typical + _EPSILON) * typical
