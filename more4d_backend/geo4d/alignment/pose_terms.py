"""Camera and smoothness terms: cameras against those of the ray maps, and against their neighbours.

A camera's step is (rotation, translation) in its own axes: world_to_camera becomes
exp(rotation) world_to_camera, plus the translation; its centre then moves by -R^T translation. The
difference of two rotations in the Frobenius norm is sqrt(2) times its angle, for small angles.
"""

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from .block_solver import System
from .rotations import vector_from_rotation
from .unknowns import Unknowns

_FLOOR = 1e-3
"""Radians, or median depths, below which a difference is squared instead of absolute."""


def add_camera_term(
    system: System,
    unknowns: Unknowns,
    rotation: Float[Tensor, "camera 3 3"],
    center: Float[Tensor, "camera 3"],
    frame: Int[Tensor, "camera"],
    weight: float,
) -> float:
    """Add `weight` times the sum of differences to the ray cameras (camera to world).

    Returns the value of the term. `frame` is the frame of the video that each belongs to.
    """
    camera = unknowns.world_to_camera[frame, :3, :3]
    turn = 2**0.5 * vector_from_rotation(camera @ rotation)
    away = unknowns.centers[frame] - center
    by_turn, by_away = (_weights(r, weight, max(_FLOOR, _median(r))) for r in (turn, away))
    matrix = torch.zeros(len(frame), 6, 6, dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    # The centre's derivative, -R^T, is orthogonal: its square is the identity too.
    matrix[:, :3, :3] = 2 * by_turn[:, None, None] * eye
    matrix[:, 3:, 3:] = by_away[:, None, None] * eye
    gradient = torch.cat(
        [
            2**0.5 * by_turn[:, None] * turn,
            -by_away[:, None] * einsum(camera, away, "n i j, n j -> n i"),
        ],
        dim=-1,
    )
    system.add(system.layout.camera[frame], matrix, gradient)
    return weight * float(turn.norm(dim=-1).sum() + away.norm(dim=-1).sum())


def add_smoothness_term(system: System, unknowns: Unknowns, weight: float, kind: str) -> float:
    """Add `weight` times the sum of differences from frame to frame; return its value.

    `kind` "still": of rotations and places, as in the paper. "steady": of these differences.
    """
    camera, centers = unknowns.world_to_camera[:, :3, :3], unknowns.centers
    if len(camera) < (2 if kind == "still" else 3):
        return 0.0
    relative = camera[:-1] @ camera[1:].transpose(-1, -2)
    turn, away = 2**0.5 * vector_from_rotation(relative), centers[1:] - centers[:-1]
    # turn changes by sqrt(2) (w_i - Q w_j), away by R_i^T t_i - R_j^T t_j.
    eye = torch.eye(3, dtype=torch.float64).expand_as(relative)
    zero = torch.zeros_like(eye)
    back, back_next = camera[:-1].transpose(-1, -2), camera[1:].transpose(-1, -2)
    by_turn = 2**0.5 * torch.cat([eye, zero, -relative, zero], dim=-1)
    by_away = torch.cat([zero, back, zero, -back_next], dim=-1)
    index = torch.cat([system.layout.camera[:-1], system.layout.camera[1:]], dim=-1)
    if kind == "steady":
        turn, away = turn[1:] - turn[:-1], away[1:] - away[:-1]
        by_turn = _difference(by_turn)
        by_away = _difference(by_away)
        index = torch.cat([index[:-1], system.layout.camera[2:]], dim=-1)
    loss = 0.0
    for residual, jacobian in ((turn, by_turn), (away, by_away)):
        weights = _weights(residual, weight)
        matrix = einsum(weights, jacobian, jacobian, "n, n i a, n i b -> n a b")
        gradient = einsum(weights, jacobian, residual, "n, n i a, n i -> n a")
        system.add(index, matrix, gradient)
        loss += weight * float(residual.norm(dim=-1).sum())
    return loss


def _difference(jacobian: Float[Tensor, "pair 3 12"]) -> Float[Tensor, "triple 3 18"]:
    """Of two pairs' residuals, by the steps of their three cameras."""
    later = torch.nn.functional.pad(jacobian[1:], (6, 0))
    return later - torch.nn.functional.pad(jacobian[:-1], (0, 6))


def _weights(residual: Tensor, weight: float, width: float = _FLOOR) -> Tensor:
    """Differences below `width` are squared, larger ones absolute."""
    return weight / residual.norm(dim=-1).clamp_min(width)


def _median(residual: Tensor) -> float:
    """What ray cameras differ by as a rule is their noise."""
    return float(residual.norm(dim=-1).median())
