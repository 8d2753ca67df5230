"""The movements behind the names of `camera_paths/`.

Every preset is written in the axes of the input view (+x right, +y down, +z forward; the camera
stands at the origin), in float64, and in units of the pivot distance, so that one amplitude fits
a tabletop and a valley. At progress 0 each is the identity.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry import invert_rigid, look_at, matrix_from_quaternion_wxyz, rigid
from .edits import CameraPathError


@dataclass(frozen=True, slots=True, kw_only=True)
class PathShape:
    """A path in the axes of the input view."""

    camera_to_start: Float[Tensor, "frame 4 4"]
    """Rigid; the identity is the input view."""

    zoom: Float[Tensor, "frame"] | None = None
    """Focal length divided by the input view's. None: unchanged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What a preset is told: the settings of a path, with everything filled in."""

    progress: Float[Tensor, "frame"]
    """0 at the input view, 1 at the far end."""

    amplitude: float
    """Factor on all distances (`angle_rad` has it already)."""

    distance: float
    """Pivot distance, in world units."""

    pivot: Float[Tensor, "3"]
    """Point to turn around and to look at."""

    angle_rad: Float[Tensor, "frame"]
    """How far a turning path has turned."""

    seed: int
    """Chooses among random movements."""

    def shifted(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Float[Tensor, "frame 3"]:
        """Straight motion by (x, y, z) pivot distances."""
        direction = self.progress.new_tensor([x, y, z])
        return self.progress[:, None] * direction * (self.amplitude * self.distance)


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraPreset:
    """One entry of `CAMERA_PRESETS`."""

    description: str
    """One line, for lists and tooltips."""

    shape: Callable[[Move], PathShape]
    """The movement itself."""

    angle_deg: float | None = None
    """Default turn. None: the movement has no angle to set."""


def _turn(move: Move, axis: tuple[float, float, float]) -> PathShape:
    """Turn the whole camera about an axis through the pivot, which so keeps its pixel."""
    half = 0.5 * move.angle_rad[:, None]
    quaternion_wxyz = torch.cat([half.cos(), half.sin() * half.new_tensor(axis)], dim=-1)
    rotation = matrix_from_quaternion_wxyz(quaternion_wxyz)
    return PathShape(camera_to_start=rigid(rotation, move.pivot - rotation @ move.pivot))


def _arc(move: Move, side: float) -> PathShape:
    """Orbit to one side (+1 left) while rising by a third of the angle."""
    sideways = _turn(move, (0.0, side, 0.0)).camera_to_start
    upwards = _turn(replace(move, angle_rad=move.angle_rad / 3), (-1.0, 0.0, 0.0)).camera_to_start
    return PathShape(camera_to_start=sideways @ upwards)


def _straight(move: Move, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> PathShape:
    return PathShape(camera_to_start=rigid(torch.eye(3).double(), move.shifted(x, y, z)))


def _straight_facing(move: Move, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> PathShape:
    return _facing(move, move.shifted(x, y, z))


def _facing(move: Move, position: Float[Tensor, "frame 3"]) -> PathShape:
    """Look at the pivot from each position.

    The point looked at slides from the optical axis to the pivot, so that progress 0 is the
    input view also where the pivot is off the axis.
    """
    on_axis = torch.zeros_like(move.pivot)
    on_axis[2] = move.pivot.norm()
    target = torch.lerp(on_axis, move.pivot, move.progress[:, None])
    up = position.new_tensor([0.0, -1.0, 0.0])
    return PathShape(camera_to_start=invert_rigid(look_at(position, target, up)))


def _push_in(move: Move) -> PathShape:
    """Go half of the way to the pivot."""
    if 0.5 * move.amplitude >= 0.95:
        raise CameraPathError(
            f"push-in with amplitude {move.amplitude:g} runs into the pivot; "
            "expected less than 1.9."
        )
    return _facing(move, 0.5 * move.amplitude * move.progress[:, None] * move.pivot)


def _dolly_zoom(move: Move) -> PathShape:
    """Retreat while the focal length grows in proportion to the pivot's depth."""
    back = 0.5 * move.amplitude * move.progress * move.distance
    depth = move.pivot[2]
    if depth <= 0 or not (depth + back > 0.05 * depth).all():
        raise CameraPathError(
            f"dolly-zoom with amplitude {move.amplitude:g} and the pivot at depth {depth:g} "
            "would need a focal length of 0 or less. Expected a pivot in front of the camera and "
            "an amplitude above -1.9."
        )
    position = torch.stack([torch.zeros_like(back), torch.zeros_like(back), -back], dim=-1)
    return PathShape(
        camera_to_start=rigid(torch.eye(3).double(), position), zoom=(depth + back) / depth
    )


def _spiral(move: Move) -> PathShape:
    """Widening circles with a slow advance."""
    radius = 0.2 * move.amplitude * move.distance * move.progress
    x, y = radius * move.angle_rad.sin(), -radius * move.angle_rad.cos()
    circle = torch.stack([x, y, torch.zeros_like(x)], dim=-1)
    return _facing(move, circle + move.shifted(z=0.2))


def _handheld(move: Move) -> PathShape:
    """Sums of sines with whole numbers of cycles, so that the sway is smooth and closes."""
    slowest = max(1, round(len(move.progress) / 24))  # 1 to 3 s at the usual frame rates
    # Numbers of cycles without a common factor, so that nothing repeats before the end.
    cycles = torch.tensor([slowest, slowest + 1, 2 * slowest + 1, 3 * slowest + 1]).double()
    generator = torch.Generator().manual_seed(move.seed)
    phase = 2 * math.pi * torch.rand(6, 4, generator=generator, dtype=torch.float64)
    angle = 2 * math.pi * move.progress[:, None, None] * cycles + phase
    sway = ((angle.sin() - phase.sin()) * (slowest / cycles) ** 1.5).sum(-1)
    shift, turn = (move.amplitude * sway).split(3, dim=-1)
    # For small angles a quaternion is (1, half of the rotation vector).
    quaternion_wxyz = torch.cat([torch.ones_like(turn[:, :1]), 0.004 * turn], dim=-1)
    rotation = matrix_from_quaternion_wxyz(quaternion_wxyz)
    return PathShape(camera_to_start=rigid(rotation, 0.01 * move.distance * shift))


CAMERA_PRESETS: dict[str, CameraPreset] = {
    "orbit-left": CameraPreset(
        description="Circle to the left around the pivot, a quarter turn (the paper's 90 degrees).",
        shape=partial(_turn, axis=(0.0, 1.0, 0.0)),
        angle_deg=90.0,
    ),
    "orbit-right": CameraPreset(
        description="Circle to the right around the pivot, a quarter turn.",
        shape=partial(_turn, axis=(0.0, -1.0, 0.0)),
        angle_deg=90.0,
    ),
    "arc-left": CameraPreset(
        description="Swing 45 degrees to the left around the pivot while rising by 15.",
        shape=partial(_arc, side=1.0),
        angle_deg=45.0,
    ),
    "arc-right": CameraPreset(
        description="Swing 45 degrees to the right around the pivot while rising by 15.",
        shape=partial(_arc, side=-1.0),
        angle_deg=45.0,
    ),
    "dolly-in": CameraPreset(
        description="Move straight forward by 0.4 pivot distances, without turning.",
        shape=partial(_straight, z=0.4),
    ),
    "dolly-out": CameraPreset(
        description="Move straight back by 0.4 pivot distances, without turning.",
        shape=partial(_straight, z=-0.4),
    ),
    "truck-left": CameraPreset(
        description="Slide to the left by 0.3 pivot distances, without turning.",
        shape=partial(_straight, x=-0.3),
    ),
    "truck-right": CameraPreset(
        description="Slide to the right by 0.3 pivot distances, without turning.",
        shape=partial(_straight, x=0.3),
    ),
    "crane-up": CameraPreset(
        description="Rise 30 degrees on a circle over the pivot, looking down at it.",
        shape=partial(_turn, axis=(-1.0, 0.0, 0.0)),
        angle_deg=30.0,
    ),
    "crane-down": CameraPreset(
        description="Sink 30 degrees on a circle below the pivot, looking up at it.",
        shape=partial(_turn, axis=(1.0, 0.0, 0.0)),
        angle_deg=30.0,
    ),
    "push-in": CameraPreset(
        description="Go half of the way to the pivot, turning until it is in the middle.",
        shape=_push_in,
    ),
    "dolly-zoom": CameraPreset(
        description="Move back while zooming in: the pivot keeps its size, the background grows.",
        shape=_dolly_zoom,
    ),
    "spiral": CameraPreset(
        description="Two widening circles while advancing, looking at the pivot.",
        shape=_spiral,
        angle_deg=720.0,
    ),
    "handheld": CameraPreset(
        description="Stand still with the sway of a hand-held camera, chosen by the seed.",
        shape=_handheld,
    ),
    "up": CameraPreset(
        description="Rise by 0.3 pivot distances, looking at the pivot.",
        shape=partial(_straight_facing, y=-0.3),
    ),
    "down": CameraPreset(
        description="Sink by 0.3 pivot distances, looking at the pivot.",
        shape=partial(_straight_facing, y=0.3),
    ),
    "left": CameraPreset(
        description="Move to the left by 0.3 pivot distances, looking at the pivot.",
        shape=partial(_straight_facing, x=-0.3),
    ),
    "right": CameraPreset(
        description="Move to the right by 0.3 pivot distances, looking at the pivot.",
        shape=partial(_straight_facing, x=0.3),
    ),
    "forward": CameraPreset(
        description="Move forward by 0.3 pivot distances, looking at the pivot.",
        shape=partial(_straight_facing, z=0.3),
    ),
}
"""Our paths. The paper shows up, down, left, right and forward without formulas; these are ours."""
