"""Where a ray meets the objects of the synthetic world, and which colour it finds there.

Every object is a unit primitive, stretched by its half size (metres) and moved by its pose.
Colour is a function of the object-space point alone, so it never changes over time or with the
view. Axes: frame, object, ray (a pixel or a point).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .motions import Vector

_TINY = 1e-30
"""Stands for 0 where a ray is parallel to a face or to a cylinder: its interval is then endless."""


class Shape(IntEnum):
    """Unit primitives. All but PLANE are closed and convex."""

    PLANE = 0
    """z = 0, |x| and |y| <= 1. One-sided: seen only from its -z side, so that a camera that
    leaves a room still sees into it."""
    SPHERE = 1
    """Radius 1."""
    BOX = 2
    """|x|, |y|, |z| <= 1."""
    CYLINDER = 3
    """Radius 1 about y, |y| <= 1."""


class Pattern(IntEnum):
    """Procedural textures, smooth functions of the object-space point."""

    CHECKER = 0
    STRIPES = 1
    DOTS = 2
    MARBLE = 3
    NOISE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Texture:
    """Color over a surface, by position in metres on it."""

    pattern: Pattern
    """Runs from -1 to 1."""

    color_low: Vector
    """sRGB where the pattern is -1."""

    color_high: Vector
    """sRGB where the pattern is 1."""

    frequency: float
    """Radians per metre."""

    phase_rad: Vector = (0.0, 0.0, 0.0)
    """Shifts the pattern."""

    sharpness: float = 2.5
    """Steepness of soft edges, which are about 1 / (frequency * sharpness) wide."""

    fade_m: float = 1e6
    """Distance from the object's origin at which half of the contrast is gone, so that a ground
    that goes to the horizon stays free of aliasing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surfaces:
    """All shapes and textures of a world as tensors, for one call. The last row is the sky's."""

    shapes: Int[Tensor, "surface"]
    half_size: Float[Tensor, "surface 3"]
    light: Float[Tensor, "surface 3"]
    """Direction to the light, in object space at time 0: shading is baked in."""
    ground: Float[Tensor, "surface 4"]
    """Height above the ground at time 0 of an object-space point: ground[:3] @ point + [3]."""
    textures: Float[Tensor, "surface 15"]
    """See `pack_textures`."""
    waves: Float[Tensor, "wave 3"]
    """Wave vectors of the marble; the first three bend space."""


def pack_textures(textures: Sequence[Texture]) -> Float[Tensor, "surface 15"]:
    """Rows of pattern, low and high colour, frequency, phase, sharpness, fade; zero padded."""
    rows = [
        [float(t.pattern), *t.color_low, *t.color_high, t.frequency, *t.phase_rad,
         t.sharpness, t.fade_m, 0.0, 0.0]
        for t in textures
    ]  # fmt: skip
    return torch.tensor(rows, dtype=torch.float64)


def intersect(
    shape: Shape, origin: Float[Tensor, "*#batch 3"], direction: Float[Tensor, "*#batch 3"]
) -> Float[Tensor, "*batch"]:
    """Smallest t > 0 at which origin + t * direction meets the primitive; inf where none.

    A closed primitive is not seen from inside.
    """
    if shape == Shape.PLANE:
        t = -origin[..., 2] / direction[..., 2]
        x = origin[..., 0] + t * direction[..., 0]
        y = origin[..., 1] + t * direction[..., 1]
        hit = (direction[..., 2] > 0) & (t > 0) & (x.abs() <= 1) & (y.abs() <= 1)
        return t.where(hit, t.new_tensor(torch.inf))
    if shape == Shape.SPHERE:
        near, far = _inside_round(origin, direction, (0, 1, 2))
    elif shape == Shape.BOX:
        near, far = _inside_slab(origin, direction, 0)
        for axis in (1, 2):
            other_near, other_far = _inside_slab(origin, direction, axis)
            near, far = torch.maximum(near, other_near), torch.minimum(far, other_far)
    else:
        near, far = _inside_round(origin, direction, (0, 2))
        cap_near, cap_far = _inside_slab(origin, direction, 1)
        near, far = torch.maximum(near, cap_near), torch.minimum(far, cap_far)
    return near.where((near < far) & (near > 0), near.new_tensor(torch.inf))


def leave_sphere(
    origin: Float[Tensor, "*#batch 3"], direction: Float[Tensor, "*#batch 3"]
) -> Float[Tensor, "*batch"]:
    """The t at which a ray from inside the unit sphere leaves it."""
    return _inside_round(origin, direction, (0, 1, 2))[1]


def _inside_slab(origin: Tensor, direction: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Interval of t with |coordinate| <= 1."""
    along = direction[..., axis]
    inverse = 1 / along.where(along != 0, along.new_tensor(_TINY))
    middle, half = -origin[..., axis] * inverse, inverse.abs()
    return middle - half, middle + half


def _inside_round(
    origin: Tensor, direction: Tensor, axes: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Interval of t inside the unit sphere (3 axes) or the endless unit cylinder (2 axes).

    Measured from the point of the ray nearest the centre, which keeps float32 exact for small
    objects far away (Haines et al., Ray Tracing Gems, chapter 7).
    """
    d = [direction[..., axis] for axis in axes]
    o = [origin[..., axis] for axis in axes]
    length2 = _dot(d, d).clamp_min(_TINY)
    middle = -_dot(o, d) / length2
    nearest = [a + middle * b for a, b in zip(o, d, strict=True)]
    discriminant = 1 - _dot(nearest, nearest)
    half = (discriminant / length2).clamp_min(0).sqrt()
    half = half.where(discriminant > 0, half.new_tensor(-1.0))  # an empty interval
    return middle - half, middle + half


def _dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Dot product by component, which needs no tensor three times the size."""
    products = [x * y for x, y in zip(a, b, strict=True)]
    return sum(products[1:], start=products[0])


def normals(
    shapes: Int[Tensor, "*batch"], points: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 3"]:
    """Outward normals, of any length, of unit primitives at points on them."""
    size = points.abs()
    face = torch.where(size == size.amax(-1, keepdim=True), points.sign(), 0.0)
    upright = points.new_tensor([0.0, 1.0, 0.0])
    is_cap = (size[..., 1] > points[..., ::2].norm(dim=-1))[..., None]
    side = torch.where(is_cap, points.sign() * upright, points * (1 - upright))
    kind = shapes[..., None]
    normal = torch.where(kind == Shape.BOX, face, points)
    normal = torch.where(kind == Shape.CYLINDER, side, normal)
    return torch.where(kind == Shape.PLANE, points.new_tensor([0.0, 0.0, -1.0]), normal)


def shade(
    surfaces: Surfaces, surface: Int[Tensor, "*batch"], points: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 3"]:
    """sRGB of points (unit-primitive coordinates) on the surfaces with these numbers."""
    shapes, half_size = surfaces.shapes[surface], surfaces.half_size[surface]
    metres = points * half_size
    normal = torch.nn.functional.normalize(normals(shapes, points) / half_size, dim=-1)
    has_faces = ((shapes == Shape.BOX) | (shapes == Shape.PLANE))[..., None]
    across_face = has_faces & (normal.abs() > 0.99)
    albedo = _albedo(surfaces.textures[surface], metres, across_face, surfaces.waves)

    facing = (normal * surfaces.light[surface]).sum(-1, keepdim=True)
    up, offset = surfaces.ground[surface].split([3, 1], dim=-1)
    height = (metres * up).sum(-1, keepdim=True) + offset
    upward = (normal * up).sum(-1, keepdim=True).clamp(0, 1)
    # Half-Lambert (never black on the far side), darker where something stands on the ground.
    lit = 0.45 + 0.6 * (0.5 + 0.5 * facing) ** 1.5
    lit = lit * (1 - 0.4 * (1 - upward) * torch.exp(-height.clamp_min(0) / 0.2))
    is_sky = (surface == len(surfaces.shapes) - 1)[..., None]
    return torch.where(is_sky, albedo, albedo * lit).clamp(0, 1)


def _albedo(
    texture: Float[Tensor, "*batch 15"], metres: Tensor, across_face: Tensor, waves: Tensor
) -> Float[Tensor, "*batch 3"]:
    pattern, low, high, frequency, phase, sharpness, fade_m, _ = texture.split(
        [1, 3, 3, 1, 3, 1, 1, 2], dim=-1
    )
    q = metres * frequency + phase
    # On a flat face the wave across it is constant and might be 0: leave it out.
    sines = torch.where(across_face, 1.0, q.sin())
    bend = (q @ waves[:3].T).sin()
    marble = ((q + 0.7 * bend) @ waves[3:].T).sin().mean(-1, keepdim=True) * 1.6
    raw = marble
    raw = torch.where(pattern == Pattern.CHECKER, sines.prod(-1, keepdim=True) * 1.5, raw)
    slant = q.new_tensor([0.8, 0.5, 0.33])
    raw = torch.where(pattern == Pattern.STRIPES, (q @ slant)[..., None].sin(), raw)
    raw = torch.where(pattern == Pattern.DOTS, sines.square().prod(-1, keepdim=True) * 3 - 1, raw)
    noisy = pattern[..., 0] == Pattern.NOISE  # dear, and rare
    raw[noisy] = _noise(q[noisy], waves[3:])
    value = 0.85 * torch.tanh(raw * sharpness) + 0.15 * marble
    value = value / (1 + (metres.norm(dim=-1, keepdim=True) / fade_m) ** 4)
    return torch.lerp(low, high, 0.5 + 0.5 * value)


def _noise(q: Float[Tensor, "*batch 3"], waves: Tensor) -> Float[Tensor, "*batch 1"]:
    """Four octaves of the marble's waves, each in other axes: irregular, without direction."""
    total = torch.zeros_like(q[..., :1])
    for octave in range(4):
        turned = q.roll(octave, dims=-1) * 1.9**octave + octave
        total = total + (turned @ waves.T).sin().mean(-1, keepdim=True) * 0.75**octave
    return total * 1.2
