"""Small rotations: vectors (axis times angle in radians) and matrices."""

import torch
from jaxtyping import Float
from torch import Tensor


def cross_matrix(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Matrix m with m @ x = cross(vector, x)."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    rows = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1)
    return rows.unflatten(-1, (3, 3))


def rotation_from_vector(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Exponential map (Rodrigues)."""
    angle = vector.norm(dim=-1)[..., None, None]
    small = angle.clamp_min(1e-8)
    matrix = cross_matrix(vector)
    half = torch.sin(small / 2) / small
    eye = torch.eye(3, dtype=vector.dtype, device=vector.device)
    return eye + torch.sin(small) / small * matrix + 2 * half.square() * (matrix @ matrix)


def vector_from_rotation(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Logarithm, for angles below 180 degrees. Inverse of `rotation_from_vector`."""
    difference = rotation - rotation.transpose(-1, -2)
    axis = torch.stack(
        [difference[..., 2, 1], difference[..., 0, 2], difference[..., 1, 0]], dim=-1
    )
    sine2 = axis.norm(dim=-1)  # 2 sin(angle)
    trace = rotation.diagonal(dim1=-2, dim2=-1).sum(-1)
    angle = torch.atan2(sine2, trace - 1)
    factor = torch.where(sine2 > 1e-9, angle / sine2.clamp_min(1e-300), 0.5)
    return factor[..., None] * axis


def mean_rotation(
    matrices: Float[Tensor, "*batch item 3 3"], weights: Float[Tensor, "*batch item"]
) -> Float[Tensor, "*batch 3 3"]:
    """Rotation nearest to the weighted sum of matrices; the identity where all weights are 0."""
    total = (weights[..., None, None] * matrices).sum(-3)
    empty = (weights.sum(-1) <= 0)[..., None, None]
    total = torch.where(empty, torch.eye(3).to(total), total)
    # On the CPU: quick for such small matrices, and not every device has float64.
    u, _, vh = torch.linalg.svd(total.cpu().double())
    sign = torch.ones_like(u[..., 0])
    sign[..., 2] = torch.linalg.det(u) * torch.linalg.det(vh)
    return (u @ (sign[..., None] * vh)).to(total)
