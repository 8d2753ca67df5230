"""What procedural actors can do, in words that leave nothing but the speed unsaid.

Each word fixes direction, sense, phase and number of repetitions over the clip; only `strength`,
a factor about 1, is not in the caption. Sizes of motions are shares of the picture, so that near
and far things look alike once motion is divided by depth (see `more4d_backend.motion`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from more4d_backend.synthetic.motions import Vector

from ..data.samples import MotionFamily

LEFT, RIGHT = (-1.0, 0.0, 0.0), (1.0, 0.0, 0.0)
UP, DOWN = (0.0, -1.0, 0.0), (0.0, 1.0, 0.0)
NEAR, FAR = (0.0, 0.0, -1.0), (0.0, 0.0, 1.0)
_NOWHERE = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """What a motion is scaled by."""

    strength: float
    """Unsaid factor on speed and amplitude; 1 on average."""

    duration_s: float
    """Of the clip."""

    extent_m: Vector
    """Width and height of the picture at the actor's depth, and that depth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One thing to do."""

    phrase: str
    """As in a caption, after the actor's name."""

    family: MotionFamily
    """For evaluation and for balance."""

    direction: Vector
    """Unit, stage axes; see `SampleObject.direction`."""

    fields: Callable[[Amounts], dict[str, Any]]
    """Fields of `Motion`."""

    travel: Vector = _NOWHERE
    """Mean displacement at the end of the clip, in `Amounts.extent_m`."""


def _scaled(vector: Vector, factor: float) -> Vector:
    return (vector[0] * factor, vector[1] * factor, vector[2] * factor)


def _travels(phrase: str, direction: Vector, share: float) -> Word:
    travel = _scaled(direction, share)

    def fields(a: Amounts) -> dict[str, Any]:
        metres = [
            t * e * a.strength / a.duration_s for t, e in zip(travel, a.extent_m, strict=True)
        ]
        return {"velocity": tuple(metres)}

    return Word(
        phrase=phrase, family="translation", direction=direction, fields=fields, travel=travel
    )


def _spins(phrase: str, axis: Vector, total_rad: float) -> Word:
    return Word(
        phrase=phrase,
        family="spin",
        direction=axis,
        fields=lambda a: {"axis": axis, "spin_rad_s": total_rad * a.strength / a.duration_s},
    )


def _bounces(phrase: str, times: int, phase_rad: float = 0.0) -> Word:
    return Word(
        phrase=phrase,
        family="bounce",
        direction=DOWN if phase_rad else UP,
        fields=lambda a: {
            "bounce_m": 0.2 * a.extent_m[1] * a.strength,
            "frequency_hz": times / a.duration_s,
            "phase_rad": phase_rad,
        },
    )


def _oscillates(
    phrase: str, family: MotionFamily, name: str, amount: Any, direction: Vector = _NOWHERE
) -> Word:
    """One full period over the clip, from the middle; `amount` is a number or a vector."""

    def fields(a: Amounts) -> dict[str, Any]:
        vector = isinstance(amount, tuple)
        value = _scaled(amount, a.strength) if vector else amount * a.strength
        axis = {"axis": FAR} if name == "swing_rad" else {}
        return {"frequency_hz": 1 / a.duration_s, name: value} | axis

    return Word(phrase=phrase, family=family, direction=direction, fields=fields)


def _sways(phrase: str, direction: Vector) -> Word:
    def fields(a: Amounts) -> dict[str, Any]:
        amplitude = 0.1 * a.extent_m[0] * a.strength
        return {"frequency_hz": 1 / a.duration_s, "sway_m": _scaled(direction, amplitude)}

    return Word(phrase=phrase, family="swing", direction=direction, fields=fields)


def _grows(phrase: str, factor: float) -> Word:
    return Word(
        phrase=phrase,
        family="growth",
        direction=_NOWHERE,
        fields=lambda a: {"growth_per_s": math.log(factor) * a.strength / a.duration_s},
    )


def _deforms(phrase: str, stretch: Vector) -> Word:
    """Once, without coming back: the first quarter of a period."""
    return Word(
        phrase=phrase,
        family="deformation",
        direction=_NOWHERE,
        fields=lambda a: {
            "stretch": _scaled(stretch, a.strength),
            "frequency_hz": 0.25 / a.duration_s,
        },
    )


STILL = Word(phrase="stays still", family="still", direction=_NOWHERE, fields=lambda a: {})

_TALL, _FLAT = (-0.22, 0.42, -0.22), (0.25, -0.42, 0.25)

SOLID_WORDS: tuple[Word, ...] = (
    _travels("moves left", LEFT, 0.17),
    _travels("moves right", RIGHT, 0.17),
    _travels("moves up", UP, 0.2),
    _travels("moves down", DOWN, 0.2),
    _travels("comes closer", NEAR, 0.3),
    _travels("moves away", FAR, 0.4),
    # About +z, which leads away from the viewer, the right-hand rule turns clockwise.
    _spins("spins clockwise", FAR, 1.9),
    _spins("spins counterclockwise", NEAR, 1.9),
    _spins("turns left", DOWN, 1.4),
    _spins("turns right", UP, 1.4),
    _bounces("bounces once", 1),
    _bounces("bounces twice", 2),
    _bounces("falls and bounces back", 1, math.pi),
    _oscillates("swings, first left", "swing", "swing_rad", 0.6, LEFT),
    _oscillates("swings, first right", "swing", "swing_rad", -0.6, RIGHT),
    _sways("slides to and fro, first left", LEFT),
    _sways("slides to and fro, first right", RIGHT),
    _grows("grows", 1.6),
    _grows("shrinks", 1 / 1.6),
    _oscillates("pulses, first larger", "growth", "pulse", 0.35),
    _oscillates("pulses, first smaller", "growth", "pulse", -0.35),
    _deforms("stretches tall", _TALL),
    _deforms("squashes flat", _FLAT),
    _oscillates("wobbles, first tall", "deformation", "stretch", _TALL),
    _oscillates("wobbles, first flat", "deformation", "stretch", _FLAT),
)
"""For one primitive. Left, right and clockwise are the viewer's; a thing turns right when its
near side goes to the right."""

WALKS = (_travels("walks left", LEFT, 0.17), _travels("walks right", RIGHT, 0.17))
CRAWLS = (_travels("crawls left", LEFT, 0.15), _travels("crawls right", RIGHT, 0.15))
WAVES = (
    _oscillates("waves an arm, first left", "wave", "swing_rad", -0.6, LEFT),
    _oscillates("waves an arm, first right", "wave", "swing_rad", 0.6, RIGHT),
)
BENDS = (
    _oscillates("bends, first left", "wave", "swing_rad", -0.2, LEFT),
    _oscillates("bends, first right", "wave", "swing_rad", 0.2, RIGHT),
)

WORDS: dict[str, Word] = {
    word.phrase: word for word in (STILL, *SOLID_WORDS, *WALKS, *CRAWLS, *WAVES, *BENDS)
}
"""Every word by its phrase."""
