"""Random but tidy arrangements for the synthetic world: scenery, actors in lanes, a camera.

Stage axes: +x right, +y down, +z away from the first camera; the ground is y = 0.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry import invert_rigid, look_at
from .actors import MOTIONS, Dice, SyntheticObject, color, solid_actor, walker
from .motions import Motion, Vector
from .surfaces import Pattern, Shape, Texture

SETTINGS = ("room", "landscape")
"""Kinds of scenery."""

_NEAREST_M, _FARTHEST_M = 3.0, 6.2
"""Depths of the first and the last lane, one lane per actor, so that sliding actors never meet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraMotion:
    """The source camera: it keeps a point in the middle of the image while it travels straight."""

    position: Vector
    """Metres on the stage, at time 0."""

    target: Vector
    """Metres on the stage."""

    velocity: Vector = (0.0, 0.0, 0.0)
    """Metres per second on the stage."""

    fov_rad: float = math.radians(55)
    """Field of view across the image's longer side."""

    def stage_to_world(self) -> Float[Tensor, "4 4"]:
        """World is camera 0. float64."""
        return self._stage_to_camera(torch.zeros(1, dtype=torch.float64))[0]

    def world_to_camera(self, times_s: Float[Tensor, "frame"]) -> Float[Tensor, "frame 4 4"]:
        """Pose at each time; the identity at time 0. float64."""
        poses = self._stage_to_camera(times_s.double().cpu())
        return poses @ invert_rigid(self.stage_to_world())

    def _stage_to_camera(self, times_s: Tensor) -> Float[Tensor, "frame 4 4"]:
        position = times_s.new_tensor(self.position)
        position = position + times_s[:, None] * times_s.new_tensor(self.velocity)
        up = times_s.new_tensor([0.0, -1.0, 0.0])
        return look_at(position, times_s.new_tensor(self.target), up)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Everything random about a world; the fields are those of `SyntheticWorld`."""

    objects: tuple[SyntheticObject, ...]
    sky: Texture
    light: Vector
    waves: tuple[Vector, ...]
    camera_motion: CameraMotion


def random_layout(
    seed: int, setting: str | None, num_objects: int, duration_s: float, moving_camera: bool
) -> Layout:
    """Draw a world whose actors stay in view for `duration_s`.

    Raises:
        ValueError: unknown setting, negative number of objects, no seed of 64 bits.
    """
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed is {seed}; expected a number of at most 64 bits.")
    if setting not in (None, *SETTINGS):
        raise ValueError(f"setting is {setting!r}; expected one of {', '.join(SETTINGS)}, or None.")
    if num_objects < 0:
        raise ValueError(f"num_objects is {num_objects}; expected 0 or more.")
    dice = Dice(seed)
    setting = setting or SETTINGS[dice.below(len(SETTINGS))]
    base_hue = dice.between(0, 1)
    objects = room(dice, base_hue) if setting == "room" else landscape(dice)
    lanes, columns = dice.order(num_objects), dice.order(num_objects)
    for number in range(num_objects):
        z = _NEAREST_M + (_FARTHEST_M - _NEAREST_M) * (lanes[number] + 0.5) / num_objects
        reach = 0.4 * z  # a little less than the view's half width
        x = reach * (2 * (columns[number] + dice.between(0.25, 0.75)) / num_objects - 1)
        hue = base_hue + 0.31 + 0.618 * number
        if number == 1:
            objects += walker(dice, (x, z), hue, len(objects), duration_s)
        else:
            objects.append(_solid(dice, (x, z), hue, duration_s))
    light = torch.nn.functional.normalize(
        torch.tensor([dice.sign() * dice.between(0.4, 0.9), -1.0, -dice.between(0.3, 0.8)]), dim=0
    ).tolist()
    drift = (dice.sign() * dice.between(0.6, 1.0), dice.between(-0.3, 0.1), dice.between(0, 0.5))
    speed = (1.0 if moving_camera else 0.0) / duration_s
    return Layout(
        objects=tuple(objects),
        sky=sky_texture(dice),
        light=(light[0], light[1], light[2]),
        waves=marble_waves(dice),
        camera_motion=CameraMotion(
            position=(0.0, -1.55, 0.0),
            target=(0.0, -0.62, 4.6),
            velocity=(drift[0] * speed, drift[1] * speed, drift[2] * speed),
        ),
    )


def _solid(
    dice: Dice, place: tuple[float, float], hue: float, duration_s: float
) -> SyntheticObject:
    """Choose a motion that leads into the view, not out of it."""
    motion_name = list(MOTIONS)[dice.below(len(MOTIONS))]
    if motion_name in ("moves left", "moves right"):
        motion_name = "moves left" if place[0] > 0 else "moves right"
    return solid_actor(dice, motion_name, place, hue, duration_s)


def _turned(angle_rad: float, axis: int) -> tuple[float, float, float, float]:
    vector = [0.0, 0.0, 0.0]
    vector[axis] = math.sin(angle_rad / 2)
    return (math.cos(angle_rad / 2), vector[0], vector[1], vector[2])


_FACING = {
    "up": _turned(-math.pi / 2, 0),
    "down": _turned(math.pi / 2, 0),
    "near": _turned(0.0, 1),
    "far": _turned(math.pi, 1),
    "right": _turned(-math.pi / 2, 1),
    "left": _turned(math.pi / 2, 1),
}
"""Rotations of a plane, whose visible side is its -z side, by the way that side looks."""


def _plane(
    name: str, facing: str, position: Vector, half: tuple[float, float], texture: Texture
) -> SyntheticObject:
    return SyntheticObject(
        name=name,
        shape=Shape.PLANE,
        half_size_m=(*half, 1.0),
        texture=texture,
        motion=Motion(position=position, quaternion_wxyz=_FACING[facing]),
    )


def room(dice: Dice, hue: float) -> list[SyntheticObject]:
    """Six planes: a floor, a ceiling and four walls; at least 7.2 m wide and 3 m high."""
    half_width, height, near, far = dice.between(3.6, 4.4), dice.between(3.0, 3.4), -3.0, 8.0
    middle, half_length = (near + far) / 2, (far - near) / 2
    wall_hue = hue + dice.between(0.4, 0.6)
    wall = Texture(
        pattern=(Pattern.STRIPES, Pattern.MARBLE, Pattern.DOTS)[dice.below(3)],
        color_low=color(wall_hue, 0.32, 0.72),
        color_high=color(wall_hue + 0.05, 0.16, 0.9),
        frequency=dice.between(3.0, 4.5),
        sharpness=1.2,
    )
    floor = Texture(
        pattern=Pattern.CHECKER,
        color_low=color(hue, 0.35, 0.5),
        color_high=color(hue + 0.03, 0.15, 0.88),
        frequency=math.pi / dice.between(0.8, 1.1),
        sharpness=2.0,
        phase_rad=(0.7, 0.7, 0.0),
    )
    plain = Texture(
        pattern=Pattern.MARBLE,
        color_low=color(wall_hue, 0.1, 0.85),
        color_high=color(wall_hue, 0.04, 0.97),
        frequency=1.0,
        sharpness=1.0,
    )
    side, end = (half_length, height / 2), (half_width, height / 2)
    return [
        _plane("floor", "up", (0.0, 0.0, middle), (half_width, half_length), floor),
        _plane("ceiling", "down", (0.0, -height, middle), (half_width, half_length), plain),
        _plane("wall", "near", (0.0, -height / 2, far), end, wall),
        _plane("wall", "far", (0.0, -height / 2, near), end, wall),
        _plane("wall", "right", (-half_width, -height / 2, middle), side, wall),
        _plane("wall", "left", (half_width, -height / 2, middle), side, wall),
    ]


def landscape(dice: Dice) -> list[SyntheticObject]:
    """A ground and a ring of hills."""
    hue = dice.between(0.08, 0.36)
    ground = Texture(
        pattern=(Pattern.CHECKER, Pattern.MARBLE, Pattern.DOTS)[dice.below(3)],
        color_low=color(hue, 0.55, 0.5),
        color_high=color(hue - 0.04, 0.32, 0.88),
        frequency=dice.between(3.2, 4.2),
        phase_rad=(dice.between(0, 6.3), dice.between(0, 6.3), 0.0),
        fade_m=10.0,
    )
    objects = [_plane("ground", "up", (0.0, 0.0, 0.0), (38.0, 38.0), ground)]
    num_hills = 9
    for number in range(num_hills):
        # All round, so that a camera that orbits sees hills too; two rings, by turns.
        angle = 2 * math.pi * (number + dice.between(-0.25, 0.25)) / num_hills
        distance = 11.0 + 6.0 * (number % 2) + dice.between(-1, 1)
        width, height = dice.between(4.0, 6.5), dice.between(1.6, 3.2) + (number % 2)
        texture = Texture(
            pattern=(Pattern.MARBLE, Pattern.STRIPES)[dice.below(2)],
            color_low=color(hue + dice.between(-0.02, 0.1), 0.42, 0.46),
            color_high=color(hue + dice.between(-0.02, 0.1), 0.3, 0.72),
            frequency=dice.between(0.9, 1.5),
            phase_rad=(dice.between(0, 6.3), dice.between(0, 6.3), 0.0),
            sharpness=1.2,
        )
        place = (distance * math.sin(angle), 0.0, 4.0 + distance * math.cos(angle))
        objects.append(
            SyntheticObject(
                name="hill",
                shape=Shape.SPHERE,
                half_size_m=(width, height, width),
                texture=texture,
                motion=Motion(position=place, quaternion_wxyz=_turned(angle, 1)),
            )
        )
    return objects


def sky_texture(dice: Dice) -> Texture:
    """Clouds of one of four moods."""
    hue = (0.56, 0.6, 0.05, 0.75)[dice.below(4)]
    return Texture(
        pattern=Pattern.MARBLE,
        color_low=color(hue, 0.5, 0.9),
        color_high=color(hue, 0.08, 1.0),
        frequency=dice.between(5.0, 8.0),
        phase_rad=(dice.between(0, 6.3), dice.between(0, 6.3), 0.0),
        sharpness=1.5,
    )


def marble_waves(dice: Dice) -> tuple[Vector, ...]:
    """Three gentle waves that bend space, then six whose sum is the marble."""
    direction = torch.nn.functional.normalize(dice.vectors(9), dim=-1)
    length = direction.new_tensor([0.5, 0.6, 0.7, 0.5, 0.65, 0.8, 1.0, 1.25, 1.5])
    return tuple((x, y, z) for x, y, z in (direction * length[:, None]).tolist())
