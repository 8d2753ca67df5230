"""Closed-form motions of the synthetic world's objects: a pose for any time, from a few numbers.

Stage axes: +x right, +y down (gravity), +z away from the first camera; the ground is y = 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry import matrix_from_quaternion_wxyz, rigid

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """Motion of one object, rigid but for growth and stretching; at rest unless told.

    The pose at time t scales and rotates about `pivot` and puts that point at `position`, plus
    what moves the position. All oscillations of an object share `frequency_hz` and `phase_rad`.
    """

    position: Vector
    """Metres, on the stage, or in the parent's frame: where `pivot` is."""

    quaternion_wxyz: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    """Resting rotation."""

    pivot: Vector = (0.0, 0.0, 0.0)
    """Metres, in the object's own frame. Its feet, if it is to grow from the ground."""

    velocity: Vector = (0.0, 0.0, 0.0)
    """Metres per second."""

    sway_m: Vector = (0.0, 0.0, 0.0)
    """Amplitude of a sine about `position`."""

    bounce_m: float = 0.0
    """Height of parabolic jumps, `frequency_hz` of them per second."""

    axis: Vector = (0.0, -1.0, 0.0)
    """Unit axis of spin and swing, on the stage or in the parent's frame."""

    spin_rad_s: float = 0.0
    """Constant turning."""

    swing_rad: float = 0.0
    """Amplitude of a turning to and fro."""

    growth_per_s: float = 0.0
    """Size is multiplied by exp(growth_per_s * t)."""

    pulse: float = 0.0
    """Amplitude of a breathing of the logarithm of the size."""

    stretch: Vector = (0.0, 0.0, 0.0)
    """Amplitudes of a breathing of the logarithm of the size along the object's own axes: what
    makes it soft. Parts that it carries are stretched with it."""

    frequency_hz: float = 0.0
    """Of sway, bounce, swing, pulse and stretch."""

    phase_rad: float = 0.0
    """Where in the oscillation time 0 is."""

    parent: int = -1
    """Index of an earlier object that carries this one, or -1. So articulated bodies are made."""


def object_to_stage(
    motions: Sequence[Motion], times_s: Float[Tensor, "frame"]
) -> Float[Tensor, "frame object 4 4"]:
    """Pose of every object at every time: affine, without stretch a similarity. float64."""

    def stacked(name: str) -> Tensor:
        return torch.tensor([getattr(m, name) for m in motions], dtype=torch.float64)

    t = times_s.double().cpu()[:, None]
    frequency, phase = stacked("frequency_hz"), stacked("phase_rad")
    wave = torch.sin(2 * math.pi * frequency * t + phase)
    position = stacked("position") + stacked("velocity") * t[..., None]
    position = position + stacked("sway_m") * wave[..., None]
    jump = (frequency * t + phase / (2 * math.pi)) % 1
    up = position.new_tensor([0.0, -1.0, 0.0])
    position = position + up * (stacked("bounce_m") * 4 * jump * (1 - jump))[..., None]

    half_angle = ((stacked("spin_rad_s") * t + stacked("swing_rad") * wave) / 2)[..., None]
    turn = torch.cat([half_angle.cos(), stacked("axis") * half_angle.sin()], dim=-1)
    resting = matrix_from_quaternion_wxyz(stacked("quaternion_wxyz"))
    size = torch.exp(stacked("growth_per_s") * t + stacked("pulse") * wave)
    scaled = matrix_from_quaternion_wxyz(turn) @ resting * size[..., None, None]
    scaled = scaled * torch.exp(stacked("stretch") * wave[..., None])[..., None, :]
    local = rigid(scaled, position - torch.einsum("foij,oj->foi", scaled, stacked("pivot")))

    poses: list[Tensor] = []
    for own, motion in zip(local.unbind(1), motions, strict=True):
        poses.append(own if motion.parent < 0 else poses[motion.parent] @ own)
    return torch.stack(poses, dim=1)
