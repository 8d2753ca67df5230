"""The actors of the synthetic world: what they look like and what they do."""

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .motions import Motion, Vector
from .surfaces import Pattern, Shape, Texture


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticObject:
    """One object of a synthetic world."""

    name: str
    """What it is and does, such as `a striped box spins`; scenery has the bare noun."""

    shape: Shape
    """Unit primitive."""

    half_size_m: Vector
    """Stretches the primitive; a plane's third entry has no effect."""

    texture: Texture
    """Color over its surface."""

    motion: Motion
    """Pose over time."""


class Dice:
    """Draws from one seeded generator."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def between(self, low: float, high: float) -> float:
        """Uniform number."""
        unit = torch.rand((), generator=self._generator, dtype=torch.float64)
        return low + (high - low) * float(unit)

    def below(self, count: int) -> int:
        """Uniform integer, 0 to count - 1."""
        return int(torch.randint(count, (), generator=self._generator))

    def sign(self) -> float:
        """-1 or 1."""
        return 1.0 if self.below(2) else -1.0

    def order(self, count: int) -> list[int]:
        """Random permutation."""
        return torch.randperm(count, generator=self._generator).tolist()

    def vectors(self, count: int) -> Tensor:
        """Gaussian vectors, float64."""
        return torch.randn(count, 3, generator=self._generator, dtype=torch.float64)


def color(hue: float, saturation: float, value: float) -> Vector:
    """sRGB of a hue (in turns), saturation and value."""
    return colorsys.hsv_to_rgb(hue % 1, saturation, value)


PATTERNS = (Pattern.CHECKER, Pattern.STRIPES, Pattern.DOTS, Pattern.MARBLE)
"""What `vivid_texture` chooses from unless told."""


def vivid_texture(
    dice: Dice, hue: float, size_m: float, patterns: Sequence[Pattern] = PATTERNS
) -> Texture:
    """Two tones about a hue, with two to four waves across `size_m`."""
    pattern = patterns[dice.below(len(patterns))]
    other = hue + dice.between(0.06, 0.14) * dice.sign()
    waves = dice.between(1.2, 2.0) * (1.6 if pattern == Pattern.STRIPES else 1.0)
    return Texture(
        pattern=pattern,
        color_low=color(hue, dice.between(0.65, 0.85), dice.between(0.55, 0.75)),
        color_high=color(other, dice.between(0.2, 0.5), dice.between(0.92, 1.0)),
        frequency=2 * math.pi * waves / size_m,
        phase_rad=(dice.between(0, 6.3), dice.between(0, 6.3), dice.between(0, 6.3)),
        sharpness=3.0,
    )


def _slides(direction: Vector) -> Callable[[Dice, float], dict[str, Any]]:
    def fields(dice: Dice, duration_s: float) -> dict[str, Any]:
        speed = dice.between(1.0, 1.5) / duration_s
        return {"velocity": tuple(speed * x for x in direction)}

    return fields


def _oscillates(
    low_hz: float, high_hz: float, **fields: Any
) -> Callable[[Dice, float], dict[str, Any]]:
    def drawn(dice: Dice, duration_s: float) -> dict[str, Any]:
        rate = {"frequency_hz": dice.between(low_hz, high_hz), "phase_rad": dice.between(0, 6.3)}
        return rate | fields

    return drawn


MOTIONS: dict[str, Callable[[Dice, float], dict[str, Any]]] = {
    "stays still": lambda dice, duration_s: {},
    "moves left": _slides((-1.0, 0.0, 0.0)),
    "moves right": _slides((1.0, 0.0, 0.0)),
    "comes closer": _slides((0.0, 0.0, -0.8)),
    "moves away": _slides((0.0, 0.0, 1.0)),
    "turns left": lambda dice, duration_s: {"spin_rad_s": -dice.between(0.8, 2.2)},
    "turns right": lambda dice, duration_s: {"spin_rad_s": dice.between(0.8, 2.2)},
    "bounces": _oscillates(0.5, 0.8, bounce_m=0.7),
    "sways": _oscillates(0.25, 0.45, sway_m=(0.35, 0.0, 0.0)),
    "rocks": _oscillates(0.3, 0.5, swing_rad=0.3, axis=(0.0, 0.0, 1.0)),
    "grows": lambda dice, duration_s: {"growth_per_s": math.log(1.6) / duration_s},
    "shrinks": lambda dice, duration_s: {"growth_per_s": -math.log(1.6) / duration_s},
    "breathes": _oscillates(0.3, 0.5, pulse=0.15),
}
"""What a solid actor can do: name -> fields of `Motion`, for a clip of some length.

Left and right are the viewer's; a thing turns right when its near side goes to the right.
"""

_NOUNS = {
    Shape.SPHERE: "ball",
    Shape.BOX: "box",
    Shape.CYLINDER: "drum",
}


def solid_actor(
    dice: Dice, motion_name: str, place: tuple[float, float], hue: float, duration_s: float
) -> SyntheticObject:
    """One primitive that stands on the ground at `place` (x, z) and does what is named."""
    shape = (Shape.SPHERE, Shape.BOX, Shape.CYLINDER)[dice.below(3)]
    radius = dice.between(0.3, 0.46)
    tall = 1.0 if shape == Shape.SPHERE else dice.between(0.8, 1.35)
    half_size = (radius, radius * tall, radius)
    yaw = dice.between(-0.7, 0.7)
    moves = MOTIONS[motion_name](dice, duration_s)
    return SyntheticObject(
        name=f"a {_NOUNS[shape]} {motion_name}",
        shape=shape,
        half_size_m=half_size,
        texture=vivid_texture(dice, hue, 2 * radius),
        motion=Motion(
            position=(place[0], 0.0, place[1]),
            pivot=(0.0, half_size[1], 0.0),
            quaternion_wxyz=(math.cos(yaw / 2), 0.0, math.sin(yaw / 2), 0.0),
            **moves,
        ),
    )


def walker(
    dice: Dice, place: tuple[float, float], hue: float, first_index: int, duration_s: float
) -> list[SyntheticObject]:
    """A jointed figure that walks across the view: a trunk that carries head, arms and legs."""
    side = -1.0 if place[0] > 0 else 1.0
    name = f"a figure walks {'right' if side > 0 else 'left'}"
    shirt, skin = vivid_texture(dice, hue, 0.5), vivid_texture(dice, hue + 0.45, 0.6)
    skin = replace(skin, pattern=Pattern.MARBLE)
    yaw = -side * math.pi / 2  # its front is its -z side
    step = Motion(position=(0, 0, 0), frequency_hz=dice.between(0.7, 1.0), axis=(1.0, 0.0, 0.0))

    def limb(half_size: Vector, joint: Vector, swing: float, texture: Texture) -> SyntheticObject:
        is_head = joint[0] == 0
        pivot = (0.0, half_size[1] * (0.8 if is_head else -0.85), 0.0)
        motion = replace(step, position=joint, pivot=pivot, swing_rad=swing, parent=first_index)
        return SyntheticObject(
            name=name, shape=Shape.SPHERE, half_size_m=half_size, texture=texture, motion=motion
        )

    trunk = SyntheticObject(
        name=name,
        shape=Shape.SPHERE,
        half_size_m=(0.24, 0.4, 0.17),
        texture=shirt,
        motion=Motion(
            position=(place[0], -1.12, place[1]),
            quaternion_wxyz=(math.cos(yaw / 2), 0.0, math.sin(yaw / 2), 0.0),
            velocity=(side * dice.between(1.6, 2.2) / duration_s, 0.0, 0.0),
        ),
    )
    leg, arm = (0.105, 0.46, 0.105), (0.075, 0.36, 0.075)
    return [
        trunk,
        limb((0.19, 0.21, 0.19), (0.0, -0.42, 0.0), 0.0, skin),
        limb(arm, (0.27, -0.27, 0.0), 0.6, skin),
        limb(arm, (-0.27, -0.27, 0.0), -0.6, skin),
        limb(leg, (0.12, 0.27, 0.0), -0.55, shirt),
        limb(leg, (-0.12, 0.27, 0.0), 0.55, shirt),
    ]
