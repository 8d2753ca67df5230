"""The five camera paths that the MoRe4D reference implements, to the digit.

Camera-to-world in the axes of the input view, around `center`, the mean of all points. For frame
i of n, written from the formulas; `camera_paths/` puts them into the world.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry import invert_rigid, look_at

_Center = Float[Tensor, "3"]
_Poses = Float[Tensor, "frame 4 4"]


def _static(center: _Center, num_frames: int) -> _Poses:
    return torch.eye(4, dtype=center.dtype).repeat(num_frames, 1, 1)


def _forward_backward(center: _Center, num_frames: int) -> _Poses:
    """Forward, back through the start, and home: a triangle wave of 0.4 |z| per n frames."""
    frame = torch.arange(num_frames)
    time = frame.to(center.dtype) / num_frames
    wave = torch.where(frame < 3 * num_frames // 4, 0.5 - time, time - 1)
    wave = torch.where(frame < num_frames // 4, time, wave)
    poses = _static(center, num_frames)
    poses[:, 2, 3] = 0.4 * center[2].abs() * wave
    return poses


def _circle_rotating(center: _Center, num_frames: int) -> _Poses:
    """Helix of radius 0.05 |z|, looking at the centre. Frame 0 is one radius to the right."""
    time = torch.arange(num_frames, dtype=center.dtype) / num_frames
    angle_rad = 2 * math.pi * time
    helix = torch.stack([angle_rad.cos(), angle_rad.sin(), 3 * time], dim=-1)
    return _looking_at(center, 0.05 * center[2].abs() * helix)


def _surrounding(center: _Center, num_frames: int) -> _Poses:
    """Orbit of 45 degrees to the left. Frame 0 stands at x = 2 center x, in the plane y = 0."""
    time = torch.arange(num_frames, dtype=center.dtype) / num_frames
    angle_rad = -math.pi / 4 * time - torch.atan2(center[2], center[0])
    radius = torch.hypot(center[0], center[2])
    x, z = center[0] + radius * angle_rad.cos(), center[2] + radius * angle_rad.sin()
    return _looking_at(center, torch.stack([x, torch.zeros_like(x), z], dim=-1))


def _camera_rotate(center: _Center, num_frames: int) -> _Poses:
    """Roll about the optical axis, up to 30 degrees and back."""
    time = torch.arange(num_frames, dtype=center.dtype) / num_frames
    angle_rad = math.radians(30) * (math.pi * time).sin()
    poses = _static(center, num_frames)
    poses[:, 0, 0] = poses[:, 1, 1] = angle_rad.cos()
    poses[:, 1, 0], poses[:, 0, 1] = angle_rad.sin(), -angle_rad.sin()
    return poses


def _looking_at(center: _Center, positions: Float[Tensor, "frame 3"]) -> _Poses:
    up = center.new_tensor([0.0, -1.0, 0.0])
    return invert_rigid(look_at(positions, center, up))


REFERENCE_PATHS: dict[str, Callable[[_Center, int], _Poses]] = {
    "static": _static,
    "forward_backward": _forward_backward,
    "circle_rotating": _circle_rotating,
    "surrounding": _surrounding,
    "camera_rotate": _camera_rotate,
}
"""Name -> function (center, number of frames) -> camera-to-world."""

REFERENCE_DESCRIPTIONS: dict[str, str] = {
    "static": "Reference: stand still at the input view.",
    "forward_backward": "Reference: a tenth of the depth forward, as far back, and home.",
    "circle_rotating": "Reference: a small helix, looking at the mean of the points.",
    "surrounding": "Reference: orbit of 45 degrees to the left around the mean of the points.",
    "camera_rotate": "Reference: roll by 30 degrees and back.",
}
"""One line about each."""

REFERENCE_ALTERNATIVES: dict[str, str] = {
    "mix1": "spiral",
    "mix2": "push-in",
    "anti-surrounding": "orbit-right",
    "circular": "spiral",
    "y_moving": "up",
    "x_moving": "right",
}
"""Names that the reference lists without code -> the nearest of ours."""
