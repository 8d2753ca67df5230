"""The synthetic world's ray caster as two fused CUDA kernels: `_cast` and `_color` of RayCaster.

The plain torch code writes some eighty intermediate images per view; these kernels write only the
result, which is what lets training data be made beside the training. The formulas are those of
`synthetic/surfaces.py`, line by line; a test holds both together. Import this where triton is.
"""

# Triton's language is not Python's: what its operators take is not in its annotations.
# pyright: reportOperatorIssue=false

import inspect
from collections.abc import Callable
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Float, Int
from torch import Tensor

from ..geometry import transform_points
from .surfaces import Pattern, Shape, Surfaces

_BLOCK = 256
_PLANE, _SPHERE, _BOX = (tl.constexpr(int(s)) for s in (Shape.PLANE, Shape.SPHERE, Shape.BOX))
_CYLINDER = tl.constexpr(int(Shape.CYLINDER))
_CHECKER, _STRIPES, _DOTS, _NOISE = (
    tl.constexpr(int(p)) for p in (Pattern.CHECKER, Pattern.STRIPES, Pattern.DOTS, Pattern.NOISE)
)
_TINY = tl.constexpr(1e-30)
_INF = tl.constexpr(float("inf"))


def _jit(function: Callable[..., Any]) -> Any:
    """Compile what was written, without the annotation checks that tests wrap around it."""
    return triton.jit(inspect.unwrap(function))


def cast(
    shapes: Int[Tensor, "surface"],
    to_unit: Float[Tensor, "frame surface 4 4"],
    centers: Float[Tensor, "frame 3"],
    directions: Float[Tensor, "frame ray 3"],
) -> tuple[Float[Tensor, "frame ray"], Int[Tensor, "frame ray"]]:
    """See `RayCaster.cast`; the last surface is the sky, a dome around everything."""
    num_frames, num_rays = directions.shape[:2]
    num_surfaces = len(shapes)
    origins = transform_points(centers[:, None], to_unit)
    poses = torch.cat([to_unit[..., :3, :3].flatten(2), origins], dim=-1).contiguous()
    t = directions.new_empty(num_frames, num_rays)
    surface = torch.empty(t.shape, dtype=torch.int64, device=t.device)
    if t.numel():
        _cast_kernel[(triton.cdiv(num_rays, _BLOCK), num_frames)](
            directions.contiguous(), poses, shapes.int(), t, surface,
            num_rays, num_surfaces, BLOCK=_BLOCK,
        )  # fmt: skip
    return t, surface


def colors(
    surfaces: Surfaces,
    to_unit: Float[Tensor, "frame surface 4 4"],
    centers: Float[Tensor, "frame 3"],
    directions: Float[Tensor, "frame ray 3"],
    t: Float[Tensor, "frame ray"],
    surface: Int[Tensor, "frame ray"],
) -> Float[Tensor, "frame ray 3"]:
    """See `RayCaster.colors`."""
    num_frames, num_rays = t.shape
    rows = [surfaces.shapes[:, None], surfaces.half_size, surfaces.light, surfaces.ground]
    table = torch.cat([*rows, surfaces.textures[:, :13]], dim=1).contiguous()  # 24 columns
    rgb = torch.empty_like(directions, memory_format=torch.contiguous_format)
    if t.numel():
        _color_kernel[(triton.cdiv(num_rays, _BLOCK), num_frames)](
            directions.contiguous(), t.contiguous(), surface.contiguous(), centers.contiguous(),
            to_unit[..., :3, :].contiguous(), table, surfaces.waves.contiguous(), rgb,
            num_rays, len(table), len(surfaces.waves), BLOCK=_BLOCK,
        )  # fmt: skip
    return rgb


@_jit
def _slab(o, d):
    inverse = tl.div_rn(1.0, tl.where(d != 0, d, _TINY))
    middle = -o * inverse
    half = tl.abs(inverse)
    return middle - half, middle + half


@_jit
def _round(length2, middle, nearest2):
    """See `_inside_round`."""
    discriminant = 1 - nearest2
    half = tl.sqrt_rn(tl.maximum(tl.div_rn(discriminant, length2), 0.0))
    half = tl.where(discriminant > 0, half, -1.0)
    return middle - half, middle + half


@_jit
def _ball(ox, oy, oz, dx, dy, dz):
    length2 = tl.maximum(dx * dx + dy * dy + dz * dz, _TINY)
    middle = tl.div_rn(-(ox * dx + oy * dy + oz * dz), length2)
    nx, ny, nz = ox + middle * dx, oy + middle * dy, oz + middle * dz
    return _round(length2, middle, nx * nx + ny * ny + nz * nz)


@_jit
def _closed(near, far):
    return tl.where((near < far) & (near > 0), near, _INF)


@_jit
def _cast_kernel(
    directions, poses, shapes, t_out, surface_out, num_rays, num_surfaces, BLOCK: tl.constexpr
):
    frame = tl.program_id(1).to(tl.int64)
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = ray < num_rays
    at = frame * num_rays + ray
    wx = tl.load(directions + 3 * at, mask=inside, other=0.0)
    wy = tl.load(directions + 3 * at + 1, mask=inside, other=0.0)
    wz = tl.load(directions + 3 * at + 2, mask=inside, other=1.0)
    best = tl.full([BLOCK], _INF, tl.float32)
    nearest = tl.full([BLOCK], 0, tl.int64) + (num_surfaces - 1)
    for number in range(num_surfaces):
        pose = poses + (frame * num_surfaces + number) * 12
        dx = tl.load(pose) * wx + tl.load(pose + 1) * wy + tl.load(pose + 2) * wz
        dy = tl.load(pose + 3) * wx + tl.load(pose + 4) * wy + tl.load(pose + 5) * wz
        dz = tl.load(pose + 6) * wx + tl.load(pose + 7) * wy + tl.load(pose + 8) * wz
        ox, oy, oz = tl.load(pose + 9), tl.load(pose + 10), tl.load(pose + 11)
        shape = tl.load(shapes + number)
        if number == num_surfaces - 1:  # the dome, only where nothing else is
            near, far = _ball(ox, oy, oz, dx, dy, dz)
            best = tl.where(best == _INF, far, best)
        else:
            if shape == _SPHERE:
                near, far = _ball(ox, oy, oz, dx, dy, dz)
                t = _closed(near, far)
            elif shape == _PLANE:
                t = tl.div_rn(-oz, tl.where(dz != 0, dz, _TINY))
                x, y = ox + t * dx, oy + t * dy
                hit = (dz > 0) & (t > 0) & (tl.abs(x) <= 1) & (tl.abs(y) <= 1)
                t = tl.where(hit, t, _INF)
            elif shape == _BOX:
                near, far = _slab(ox, dx)
                near_y, far_y = _slab(oy, dy)
                near_z, far_z = _slab(oz, dz)
                near = tl.maximum(near, tl.maximum(near_y, near_z))
                far = tl.minimum(far, tl.minimum(far_y, far_z))
                t = _closed(near, far)
            else:
                near, far = _ball(ox, 0.0, oz, dx, 0.0 * dy, dz)
                near_y, far_y = _slab(oy, dy)
                t = _closed(tl.maximum(near, near_y), tl.minimum(far, far_y))
            closer = t < best
            best = tl.where(closer, t, best)
            nearest = tl.where(closer, number, nearest)
    tl.store(t_out + at, best, mask=inside)
    tl.store(surface_out + at, nearest, mask=inside)


@_jit
def _tanh(x):
    e = tl.exp(-2 * tl.abs(x))
    value = tl.div_rn(1 - e, 1 + e)
    return tl.where(x < 0, -value, value)


@_jit
def _mean_of_waves(x, y, z, waves, num_waves):
    total = 0.0 * x
    for number in range(3, num_waves):
        wave = waves + 3 * number
        total += tl.sin(x * tl.load(wave) + y * tl.load(wave + 1) + z * tl.load(wave + 2))
    return total / (num_waves - 3)


@_jit
def _noise_of(x, y, z, waves, num_waves):
    total = _mean_of_waves(x, y, z, waves, num_waves)
    total += 0.75 * _mean_of_waves(z * 1.9 + 1, x * 1.9 + 1, y * 1.9 + 1, waves, num_waves)
    total += 0.5625 * _mean_of_waves(y * 3.61 + 2, z * 3.61 + 2, x * 3.61 + 2, waves, num_waves)
    total += 0.421875 * _mean_of_waves(
        x * 6.859 + 3, y * 6.859 + 3, z * 6.859 + 3, waves, num_waves
    )
    return total * 1.2


@_jit
def _normal(shape, x, y, z):
    size = tl.maximum(tl.abs(x), tl.maximum(tl.abs(y), tl.abs(z)))
    is_box, is_plane, is_cylinder = shape == _BOX, shape == _PLANE, shape == _CYLINDER
    is_cap = tl.abs(y) > tl.sqrt_rn(x * x + z * z)
    sx = tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))
    sy = tl.where(y > 0, 1.0, tl.where(y < 0, -1.0, 0.0))
    sz = tl.where(z > 0, 1.0, tl.where(z < 0, -1.0, 0.0))
    nx = tl.where(is_box, tl.where(tl.abs(x) == size, sx, 0.0), x)
    ny = tl.where(is_box, tl.where(tl.abs(y) == size, sy, 0.0), y)
    nz = tl.where(is_box, tl.where(tl.abs(z) == size, sz, 0.0), z)
    nx = tl.where(is_plane | (is_cylinder & is_cap), 0.0, nx)
    ny = tl.where(is_cylinder, tl.where(is_cap, sy, 0.0), ny)
    ny = tl.where(is_plane, 0.0, ny)
    nz = tl.where(is_cylinder & is_cap, 0.0, nz)
    return nx, ny, tl.where(is_plane, -1.0, nz)


@_jit
def _pattern_value(row, x, y, z, faces_x, faces_y, faces_z, waves, num_waves, inside):
    """The pattern at metres (x, y, z), from -1 to 1; faces are across which nothing varies."""
    pattern = tl.load(row + 11, mask=inside, other=0.0)
    frequency = tl.load(row + 18, mask=inside, other=0.0)
    qx = x * frequency + tl.load(row + 19, mask=inside, other=0.0)
    qy = y * frequency + tl.load(row + 20, mask=inside, other=0.0)
    qz = z * frequency + tl.load(row + 21, mask=inside, other=0.0)
    w = waves
    bx = tl.sin(qx * tl.load(w) + qy * tl.load(w + 1) + qz * tl.load(w + 2))
    by = tl.sin(qx * tl.load(w + 3) + qy * tl.load(w + 4) + qz * tl.load(w + 5))
    bz = tl.sin(qx * tl.load(w + 6) + qy * tl.load(w + 7) + qz * tl.load(w + 8))
    marble = 1.6 * _mean_of_waves(qx + 0.7 * bx, qy + 0.7 * by, qz + 0.7 * bz, waves, num_waves)
    product = tl.where(faces_x, 1.0, tl.sin(qx)) * tl.where(faces_y, 1.0, tl.sin(qy))
    product = product * tl.where(faces_z, 1.0, tl.sin(qz))
    raw = tl.where(pattern == _CHECKER, product * 1.5, marble)
    raw = tl.where(pattern == _STRIPES, tl.sin(0.8 * qx + 0.5 * qy + 0.33 * qz), raw)
    raw = tl.where(pattern == _DOTS, product * product * 3 - 1, raw)
    noisy = (pattern == _NOISE) & inside
    if tl.sum(noisy.to(tl.int32)) > 0:
        raw = tl.where(noisy, _noise_of(qx, qy, qz, waves, num_waves), raw)
    sharpness = tl.load(row + 22, mask=inside, other=1.0)
    fade_m = tl.load(row + 23, mask=inside, other=1.0)
    value = 0.85 * _tanh(raw * sharpness) + 0.15 * marble
    far = (x * x + y * y + z * z) / (fade_m * fade_m)
    return value / (1 + far * far)


@_jit
def _color_kernel(
    directions, t_in, surface_in, centers, to_unit, table, waves, rgb,
    num_rays, num_surfaces, num_waves, BLOCK: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(1).to(tl.int64)
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = ray < num_rays
    at = frame * num_rays + ray
    t = tl.load(t_in + at, mask=inside, other=1.0)
    surface = tl.load(surface_in + at, mask=inside, other=0)
    wx = tl.load(centers + 3 * frame) + t * tl.load(directions + 3 * at, mask=inside, other=0.0)
    wy = tl.load(centers + 3 * frame + 1)
    wy = wy + t * tl.load(directions + 3 * at + 1, mask=inside, other=0.0)
    wz = tl.load(centers + 3 * frame + 2)
    wz = wz + t * tl.load(directions + 3 * at + 2, mask=inside, other=0.0)
    pose = to_unit + (frame * num_surfaces + surface) * 12
    row = table + surface * 24
    x, y, z = _unit_point(pose, wx, wy, wz, inside)
    shape = tl.load(row, mask=inside, other=0.0)
    nx, ny, nz = _normal(shape, x, y, z)
    hx = tl.load(row + 1, mask=inside, other=1.0)
    hy = tl.load(row + 2, mask=inside, other=1.0)
    hz = tl.load(row + 3, mask=inside, other=1.0)
    x, y, z = x * hx, y * hy, z * hz
    nx, ny, nz = tl.div_rn(nx, hx), tl.div_rn(ny, hy), tl.div_rn(nz, hz)
    length = tl.maximum(tl.sqrt_rn(nx * nx + ny * ny + nz * nz), 1e-12)
    nx, ny, nz = tl.div_rn(nx, length), tl.div_rn(ny, length), tl.div_rn(nz, length)
    flat = (shape == _BOX) | (shape == _PLANE)
    value = _pattern_value(
        row, x, y, z, flat & (tl.abs(nx) > 0.99), flat & (tl.abs(ny) > 0.99),
        flat & (tl.abs(nz) > 0.99), waves, num_waves, inside,
    )  # fmt: skip
    facing = nx * tl.load(row + 4, mask=inside, other=0.0)
    facing += ny * tl.load(row + 5, mask=inside, other=0.0)
    facing += nz * tl.load(row + 6, mask=inside, other=0.0)
    ux = tl.load(row + 7, mask=inside, other=0.0)
    uy = tl.load(row + 8, mask=inside, other=0.0)
    uz = tl.load(row + 9, mask=inside, other=0.0)
    height = x * ux + y * uy + z * uz + tl.load(row + 10, mask=inside, other=0.0)
    upward = tl.minimum(tl.maximum(nx * ux + ny * uy + nz * uz, 0.0), 1.0)
    half_facing = tl.maximum(0.5 + 0.5 * facing, 0.0)
    lit = 0.45 + 0.6 * half_facing * tl.sqrt_rn(half_facing)
    lit = lit * (1 - 0.4 * (1 - upward) * tl.exp(-5 * tl.maximum(height, 0.0)))
    lit = tl.where(surface == num_surfaces - 1, 1.0, lit)
    for channel in range(3):
        low = tl.load(row + 12 + channel, mask=inside, other=0.0)
        high = tl.load(row + 15 + channel, mask=inside, other=0.0)
        seen = (low + (high - low) * (0.5 + 0.5 * value)) * lit
        tl.store(rgb + 3 * at + channel, tl.minimum(tl.maximum(seen, 0.0), 1.0), mask=inside)


@_jit
def _unit_point(pose, wx, wy, wz, inside):
    x = tl.load(pose, mask=inside, other=0.0) * wx + tl.load(pose + 3, mask=inside, other=0.0)
    x += tl.load(pose + 1, mask=inside, other=0.0) * wy
    x += tl.load(pose + 2, mask=inside, other=0.0) * wz
    y = tl.load(pose + 4, mask=inside, other=0.0) * wx + tl.load(pose + 7, mask=inside, other=0.0)
    y += tl.load(pose + 5, mask=inside, other=0.0) * wy
    y += tl.load(pose + 6, mask=inside, other=0.0) * wz
    z = tl.load(pose + 8, mask=inside, other=0.0) * wx + tl.load(pose + 11, mask=inside, other=0.0)
    z += tl.load(pose + 9, mask=inside, other=0.0) * wy
    z += tl.load(pose + 10, mask=inside, other=0.0) * wz
    return x, y, z
