"""Projective and rigid geometry. Pure functions; conventions are in docs/conventions.md."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


class GeometryError(ValueError):
    """A matrix that is not what its name says: not a rotation, not intrinsics in pixels."""


def transform_points(
    points: Float[Tensor, "*#batch 3"], transforms: Float[Tensor, "*#batch 4 4"]
) -> Float[Tensor, "*batch 3"]:
    """Apply rigid (or similarity) transforms to points."""
    rotated = torch.einsum("...ij,...j->...i", transforms[..., :3, :3], points)
    return rotated + transforms[..., :3, 3]


def rigid(
    rotation: Float[Tensor, "*#batch 3 3"], translation: Float[Tensor, "*#batch 3"]
) -> Float[Tensor, "*batch 4 4"]:
    """Join a rotation and a translation into a 4x4 transform."""
    batch = torch.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])
    top = torch.cat(
        [rotation.expand(*batch, 3, 3), translation.expand(*batch, 3)[..., None]], dim=-1
    )
    bottom = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*batch, 1, 4)
    return torch.cat([top, bottom], dim=-2)


def invert_rigid(transforms: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Invert rigid transforms by transposing their rotation."""
    rotation = transforms[..., :3, :3].transpose(-1, -2)
    return rigid(rotation, -torch.einsum("...ij,...j->...i", rotation, transforms[..., :3, 3]))


def project(
    points: Float[Tensor, "*#batch 3"], intrinsics: Float[Tensor, "*#batch 3 3"]
) -> tuple[Float[Tensor, "*batch 2"], Float[Tensor, "*batch"]]:
    """Project camera-space points. Return (pixel xy, depth); xy means nothing for depth <= 0."""
    homogeneous = torch.einsum("...ij,...j->...i", intrinsics, points)
    depth = homogeneous[..., 2]
    return homogeneous[..., :2] / depth[..., None], depth


def unproject(
    pixels: Float[Tensor, "*#batch 2"],
    depth: Float[Tensor, "*#batch"],
    intrinsics: Float[Tensor, "*#batch 3 3"],
) -> Float[Tensor, "*batch 3"]:
    """Lift pixels to camera space at a depth (camera z). Inverse of `project` for depth > 0."""
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1)
    rays = torch.einsum("...ij,...j->...i", torch.linalg.inv(intrinsics), homogeneous)
    return rays * depth[..., None]


def pixel_centers(
    height: int,
    width: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "height width 2"]:
    """Pixel (row i, column j) has its centre at xy = (j + 0.5, i + 0.5)."""
    y = torch.arange(height, device=device, dtype=dtype) + 0.5
    x = torch.arange(width, device=device, dtype=dtype) + 0.5
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y], dim=-1)


def intrinsics_from_focal(
    focal_px: Float[Tensor, "*batch"], height: int, width: int
) -> Float[Tensor, "*batch 3 3"]:
    """Square-pixel intrinsics with the principal point in the middle of the image."""
    matrix = focal_px.new_zeros(*focal_px.shape, 3, 3)
    matrix[..., 0, 0] = matrix[..., 1, 1] = focal_px
    matrix[..., 0, 2], matrix[..., 1, 2], matrix[..., 2, 2] = width / 2, height / 2, 1.0
    return matrix


def focal_from_fov(fov_rad: float, size_px: float) -> float:
    """Focal length in pixels of a camera that sees `fov_rad` across `size_px` pixels."""
    if not 0 < fov_rad < math.pi:
        raise GeometryError(
            f"The field of view is {math.degrees(fov_rad):.4g} degrees; "
            "expected more than 0 and less than 180."
        )
    return size_px / (2 * math.tan(fov_rad / 2))


def fov_from_focal(focal_px: float, size_px: float) -> float:
    """Field of view in radians. Inverse of `focal_from_fov`."""
    return 2 * math.atan(size_px / (2 * focal_px))


def matrix_from_quaternion_wxyz(
    quaternion_wxyz: Float[Tensor, "*batch 4"],
) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrix of a quaternion (w, x, y, z) of any non-zero length."""
    w, x, y, z = torch.nn.functional.normalize(quaternion_wxyz, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def quaternion_wxyz_from_matrix(
    rotation: Float[Tensor, "*batch 3 3"],
) -> Float[Tensor, "*batch 4"]:
    """Unit quaternion (w, x, y, z), w >= 0. Inverse of `matrix_from_quaternion_wxyz`.

    Each row of `candidates` is the quaternion times one of its own components; the row of the
    largest component loses no digits (Shepperd 1978).
    """
    m = rotation
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = (m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0],
                  m[..., 1, 0] - m[..., 0, 1])  # fmt: skip
    xy, xz, yz = (m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0],
                  m[..., 2, 1] + m[..., 1, 2])  # fmt: skip
    rows = [
        [1 + xx + yy + zz, wx, wy, wz],
        [wx, 1 + xx - yy - zz, xy, xz],
        [wy, xy, 1 - xx + yy - zz, yz],
        [wz, xz, yz, 1 - xx - yy + zz],
    ]
    candidates = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    largest = candidates.diagonal(dim1=-2, dim2=-1).argmax(-1)
    index = largest[..., None, None].expand(*largest.shape, 1, 4)
    quaternion = torch.nn.functional.normalize(candidates.gather(-2, index).squeeze(-2), dim=-1)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def look_at(
    position: Float[Tensor, "*#batch 3"],
    target: Float[Tensor, "*#batch 3"],
    up: Float[Tensor, "*#batch 3"],
) -> Float[Tensor, "*batch 4 4"]:
    """World-to-camera of a camera at `position` whose +z meets `target`; `up` shows upwards.

    Raises:
        GeometryError: the target is the position, or `up` is parallel to the view.
    """
    normalize = torch.nn.functional.normalize
    forward = target - position
    right = torch.linalg.cross(*torch.broadcast_tensors(forward, up))
    if (right.norm(dim=-1) <= 1e-6 * forward.norm(dim=-1) * up.norm(dim=-1)).any():
        raise GeometryError(
            "look_at has no answer: the target is at the camera's position, or the up "
            "direction is parallel to the view. Move the target or choose another up."
        )
    forward, right = normalize(forward, dim=-1), normalize(right, dim=-1)
    down = torch.linalg.cross(*torch.broadcast_tensors(forward, right))
    rotation = torch.stack(torch.broadcast_tensors(right, down, forward), dim=-2)
    return rigid(rotation, -torch.einsum("...ij,...j->...i", rotation, position))


def align_similarity(
    source: Float[Tensor, "*batch point 3"],
    target: Float[Tensor, "*batch point 3"],
    weights: Float[Tensor, "*batch point"] | None = None,
    *,
    with_scale: bool = True,
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch 3 3"], Float[Tensor, "*batch 3"]]:
    """Least-squares (scale, rotation, translation) with target = scale * rotation @ source + t.

    Weighted and closed form (Umeyama 1991). With `with_scale=False` the scale is 1 (Kabsch).
    """
    if weights is None:
        weights = torch.ones_like(source[..., 0])
    w = (weights / weights.sum(-1, keepdim=True).clamp_min(1e-12))[..., None]
    source_mean = (w * source).sum(-2, keepdim=True)
    target_mean = (w * target).sum(-2, keepdim=True)
    source_centered, target_centered = source - source_mean, target - target_mean
    covariance = (w * target_centered).transpose(-1, -2) @ source_centered
    u, s, vh = torch.linalg.svd(covariance)
    sign = torch.ones_like(s)
    sign[..., 2] = torch.linalg.det(u) * torch.linalg.det(vh)  # refuse a mirrored solution
    rotation = u @ (sign[..., None] * vh)
    variance = (w * source_centered.square()).sum((-1, -2))
    scale = (s * sign).sum(-1) / variance.clamp_min(1e-12)
    if not with_scale:
        scale = torch.ones_like(scale)
    moved = scale[..., None] * torch.einsum("...ij,...j->...i", rotation, source_mean[..., 0, :])
    return scale, rotation, target_mean[..., 0, :] - moved


def check_rigid(transforms: Float[Tensor, "*batch 4 4"], name: str) -> None:
    """Refuse matrices that are not rotation + translation.

    Raises:
        GeometryError: names the first frame at fault and what is wrong with it.
    """
    flat = transforms.detach().reshape(-1, 4, 4).cpu().double()
    if not flat.isfinite().all():
        raise GeometryError(f"{name} has a NaN or infinite entry; expected finite numbers.")
    gram = flat[:, :3, :3] @ flat[:, :3, :3].transpose(1, 2)
    off_rotation = (gram - torch.eye(3, dtype=torch.float64)).abs().amax((1, 2))
    off_row = (flat[:, 3] - torch.tensor([0, 0, 0, 1.0], dtype=torch.float64)).abs().amax(1)
    mirrored = torch.linalg.det(flat[:, :3, :3]) < 0
    bad = (off_rotation > 1e-3) | mirrored | (off_row > 1e-6)
    if not bad.any():
        return
    frame = int(bad.nonzero()[0, 0])
    if off_row[frame] > 1e-6:
        what = f"its last row is {flat[frame, 3].tolist()}, not 0 0 0 1"
    elif mirrored[frame]:
        what = "its 3x3 part mirrors (determinant below 0)"
    else:
        what = f"its 3x3 part differs from a rotation by {off_rotation[frame]:.2g}"
    raise GeometryError(
        f"{name} of frame {frame} is not rigid: {what}. Expected a rotation and a translation."
    )


def check_intrinsics(intrinsics: Float[Tensor, "*batch 3 3"], height: int, width: int) -> None:
    """Refuse matrices that are not pinhole intrinsics in pixels.

    Raises:
        GeometryError: says which frame, and what the matrix looks like instead.
    """
    flat = intrinsics.detach().reshape(-1, 3, 3).cpu().double()
    for frame, K in enumerate(flat):
        if frame == 0 or not torch.equal(K, flat[frame - 1]):
            _check_one_intrinsics(K, height, width, frame)


def _check_one_intrinsics(K: Float[Tensor, "3 3"], height: int, width: int, frame: int) -> None:
    rows = K.tolist()
    fx, fy, cx, cy = rows[0][0], rows[1][1], rows[0][2], rows[1][2]
    if not K.isfinite().all():
        what = "has a NaN or infinite entry"
    elif fx == 0 or fy == 0:
        what = "is singular (a focal length is 0)"
    elif max(abs(rows[2][0]), abs(rows[2][1]), abs(rows[1][0]), abs(rows[2][2] - 1)) > 1e-6:
        what = "is not upper triangular with a last row 0 0 1 (is it transposed?)"
    elif fx < 0 or fy < 0:
        what = "has a negative focal length (an OpenGL or Blender convention?)"
    elif max(height, width) > 16 and max(fx, fy) <= 10 and 0 <= cx <= 1 and 0 <= cy <= 1:
        what = (
            "looks normalised by the image size; multiply its first row by the width "
            f"({width}) and its second by the height ({height})"
        )
    else:
        return
    raise GeometryError(
        f"intrinsics (camera {frame}) {what}: fx={fx:.4g}, fy={fy:.4g}, cx={cx:.4g}, cy={cy:.4g}. "
        f"Expected a 3x3 pinhole matrix in pixels for a {height}x{width} image."
    )
