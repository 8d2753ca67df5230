"""Actors of procedural samples: solids, and bodies of several parts, that do what a word says."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from more4d_backend.synthetic.actors import Dice, SyntheticObject, color
from more4d_backend.synthetic.motions import Motion, Vector
from more4d_backend.synthetic.surfaces import Pattern, Shape, Texture

from .words import BENDS, CRAWLS, SOLID_WORDS, WALKS, WAVES, Amounts, Word

COLORS = {
    "red": 0.0,
    "orange": 0.075,
    "yellow": 0.15,
    "green": 0.35,
    "cyan": 0.5,
    "blue": 0.62,
    "purple": 0.76,
    "pink": 0.9,
}
"""Names and hues; two actors of a scene never share one."""

PATTERNS = {
    "checkered": Pattern.CHECKER,
    "striped": Pattern.STRIPES,
    "dotted": Pattern.DOTS,
    "marbled": Pattern.MARBLE,
    "speckled": Pattern.NOISE,
}
"""Words for textures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an actor is at time 0."""

    feet: Vector
    """Stage, metres: the middle of its lower end."""

    size_m: float
    """Half of its height or width, whichever is larger, within a third."""

    parent_index: int
    """Index that its first part will have among the world's objects."""


def actor_texture(dice: Dice, color_name: str, pattern_name: str, size_m: float) -> Texture:
    """Two tones of a named colour, with one to two waves across `size_m`."""
    hue = COLORS[color_name] + dice.between(-0.015, 0.015)
    pattern = PATTERNS[pattern_name]
    waves = dice.between(1.1, 1.9) * (1.6 if pattern == Pattern.STRIPES else 1.0)
    return Texture(
        pattern=pattern,
        color_low=color(hue, dice.between(0.75, 0.9), dice.between(0.5, 0.7)),
        color_high=color(hue + dice.between(-0.03, 0.03), dice.between(0.25, 0.55), 1.0),
        frequency=2 * math.pi * waves / size_m,
        phase_rad=(dice.between(0, 6.3), dice.between(0, 6.3), dice.between(0, 6.3)),
        sharpness=3.0,
    )


Builder = Callable[[Dice, Word, Amounts, Place, Texture], list[SyntheticObject]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of actor."""

    noun: str
    """In captions."""

    words: tuple[Word, ...]
    """What it can do besides staying still."""

    build: Builder
    """Makes its parts; a part's parent is its own kind's business."""

    jointed: bool = False
    """Of several parts, which would be too thin when small."""


def _turned(axis: int, angle_rad: float) -> tuple[float, float, float, float]:
    vector = [0.0, 0.0, 0.0]
    vector[axis] = math.sin(angle_rad / 2)
    return (math.cos(angle_rad / 2), vector[0], vector[1], vector[2])


def _solid(shape: Shape) -> Builder:
    def build(dice: Dice, word: Word, amounts: Amounts, place: Place, texture: Texture):
        half = place.size_m * (1.0 if shape == Shape.SPHERE else 0.85)
        wide = half * (1.0 if shape == Shape.SPHERE else dice.between(0.75, 1.0))
        x, y, z = place.feet
        fields = word.fields(amounts)
        # Grows and deforms from its feet, hangs from a point above, and else turns on itself.
        pivot_y = 0.0
        if word.family in ("growth", "deformation"):
            pivot_y = half
        elif "swing_rad" in fields:
            pivot_y = -2.2 * half
        return [
            SyntheticObject(
                name="solid",
                shape=shape,
                half_size_m=(wide, half, wide),
                texture=texture,
                motion=Motion(
                    position=(x, y - half + pivot_y, z),
                    pivot=(0.0, pivot_y, 0.0),
                    quaternion_wxyz=_turned(1, dice.between(-0.7, 0.7)),
                    **fields,
                ),
            )
        ]

    return build


def _figure(
    dice: Dice, word: Word, amounts: Amounts, place: Place, texture: Texture
) -> list[SyntheticObject]:
    """Trunk, head, arms and legs. It walks sideways, or faces the viewer and waves an arm."""
    unit = place.size_m / 0.92  # the figure below is 1.84 m tall
    fields = word.fields(amounts)
    walking, waving = word in WALKS, word in WAVES
    yaw = -math.copysign(math.pi / 2, word.direction[0]) if walking else 0.0
    # It starts in mid-stride, so the picture shows which leg goes which way.
    hertz, phase = (2 / amounts.duration_s, math.pi / 2) if walking else (0.0, 0.0)
    skin = replace(texture, color_low=(0.62, 0.42, 0.3), color_high=(0.95, 0.78, 0.62))
    x, y, z = place.feet

    def part(half_size: Vector, texture: Texture, motion: Motion) -> SyntheticObject:
        position, pivot = _times(motion.position, unit), _times(motion.pivot, unit)
        return SyntheticObject(
            name="figure",
            shape=Shape.SPHERE,
            half_size_m=_times(half_size, unit),
            texture=texture,
            motion=replace(motion, position=position, pivot=pivot),
        )

    def limb(half_size: Vector, joint: Vector, swing: float, texture: Texture) -> SyntheticObject:
        motion = Motion(
            position=joint,
            pivot=(0.0, -0.85 * half_size[1], 0.0),
            parent=place.parent_index,
            axis=(1.0, 0.0, 0.0),
            swing_rad=swing if walking else 0.0,
            frequency_hz=hertz,
            phase_rad=phase,
        )
        if waving and half_size == arm and joint[0] > 0:
            raised = _turned(2, -2.5)
            motion = replace(motion, quaternion_wxyz=raised, phase_rad=0.0, **fields)
        return part(half_size, texture, motion)

    arm, leg = (0.085, 0.38, 0.085), (0.115, 0.5, 0.115)
    head = Motion(position=(0.0, -0.4, 0.0), pivot=(0.0, 0.19, 0.0), parent=place.parent_index)
    trunk = part((0.26, 0.44, 0.19), texture, Motion(position=(0.0, 0.0, 0.0)))
    standing = replace(
        trunk.motion,
        position=(x, y - 1.16 * unit, z),
        quaternion_wxyz=_turned(1, yaw),
        velocity=fields.get("velocity", (0.0, 0.0, 0.0)),
    )
    return [
        replace(trunk, motion=standing),
        part((0.21, 0.23, 0.21), skin, head),
        limb(arm, (0.27, -0.27, 0.0), 0.6, skin),
        limb(arm, (-0.27, -0.27, 0.0), -0.6, skin),
        limb(leg, (0.13, 0.28, 0.0), -0.5, texture),
        limb(leg, (-0.13, 0.28, 0.0), 0.5, texture),
    ]


def _worm(
    dice: Dice, word: Word, amounts: Amounts, place: Place, texture: Texture
) -> list[SyntheticObject]:
    """Five balls in a row along which a wave runs from head to tail."""
    radius = place.size_m * 0.36
    side = math.copysign(1.0, word.direction[0])
    x, y, z = place.feet
    moving = word in CRAWLS
    return [
        SyntheticObject(
            name="worm",
            shape=Shape.SPHERE,
            half_size_m=_times((1.0, 1.0, 1.0), radius * (1.0 if number else 1.2)),
            texture=texture,
            motion=Motion(
                position=(x + side * radius * 1.25 * (2 - number), y - 1.5 * radius, z),
                sway_m=(0.0, -0.45 * radius if moving else 0.0, 0.0),
                frequency_hz=2 / amounts.duration_s,
                phase_rad=-1.3 * number,
                **word.fields(amounts),
            ),
        )
        for number in range(5)
    ]


def _stalk(
    dice: Dice, word: Word, amounts: Amounts, place: Place, texture: Texture
) -> list[SyntheticObject]:
    """Five segments, each hinged on the one below; the bend runs up to the tip."""
    half = place.size_m / 5
    fields = word.fields(amounts)
    parts = []
    for number in range(5):
        thick = half * (1.15 - 0.1 * number)
        motion = Motion(
            position=place.feet if number == 0 else (0.0, -half, 0.0),
            pivot=(0.0, half, 0.0),
            parent=place.parent_index + number - 1 if number else -1,
            phase_rad=-0.35 * number,
            **fields,
        )
        parts.append(
            SyntheticObject(
                name="stalk",
                shape=Shape.SPHERE,
                half_size_m=(thick, 1.3 * half, thick),
                texture=texture,
                motion=motion,
            )
        )
    return parts


def _times(vector: Vector, factor: float) -> Vector:
    return (vector[0] * factor, vector[1] * factor, vector[2] * factor)


KINDS: dict[str, Kind] = {
    "ball": Kind(noun="ball", words=SOLID_WORDS, build=_solid(Shape.SPHERE)),
    "box": Kind(noun="box", words=SOLID_WORDS, build=_solid(Shape.BOX)),
    "drum": Kind(noun="drum", words=SOLID_WORDS, build=_solid(Shape.CYLINDER)),
    "figure": Kind(noun="figure", words=(*WALKS, *WAVES), build=_figure, jointed=True),
    "worm": Kind(noun="worm", words=CRAWLS, build=_worm, jointed=True),
    "stalk": Kind(noun="stalk", words=BENDS, build=_stalk, jointed=True),
}
"""Kinds by noun. Every kind can also stay still (`STILL`)."""
