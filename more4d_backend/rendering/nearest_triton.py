"""`nearest` as two fused kernels: points into a z-buffer, and its winners into pictures.

Plain torch writes every point's projection, pixel and key to memory and reads them back; these
kernels read the points, and write the z-buffer and the pictures. What is computed, and how it is
rounded, is what plain torch computes on CUDA (`view.project_points`, `reference.nearest_plain`,
`zbuffer.PackedZBuffer`, `shading.at_points`), so that the result is the same to the last bit.
Import this where triton is.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from ..scene import Cameras
from .settings import RenderOutput
from .view import PointFrames, projection_rows
from .zbuffer import PackedZBuffer

_POINTS_AT_ONCE = 512
_VALUES_AT_ONCE = 1024


def nearest(points: PointFrames, cameras: Cameras) -> RenderOutput:
    """See `reference.nearest_plain`."""
    device = points.positions.device
    frames, height, width = cameras.num_frames, cameras.height, cameras.width
    buffer = PackedZBuffer(frames * height * width, device)
    rgb = torch.empty(frames, height, width, 3, device=device)
    depth, alpha = (torch.empty(frames, height, width, device=device) for _ in range(2))
    with torch.cuda.device_of(rgb):  # triton launches on the current device, torch on the tensor's
        _draw(buffer, points, cameras)
        # A pixel's three values lie one after another, and so do the threads that write them.
        _shade_kernel[(triton.cdiv(3 * height * width, _VALUES_AT_ONCE), frames)](
            buffer.keys, points.colors.contiguous(), rgb, depth, alpha,
            height * width, points.num_points if len(points.colors) > 1 else 0,
            BLOCK=_VALUES_AT_ONCE,
        )  # fmt: skip
    return RenderOutput(rgb=rgb, depth=depth, alpha=alpha)


def _draw(buffer: PackedZBuffer, points: PointFrames, cameras: Cameras) -> None:
    if points.num_points == 0:
        return
    rows = projection_rows(cameras, points.positions.device).contiguous()
    _draw_kernel[(triton.cdiv(points.num_points, _POINTS_AT_ONCE), cameras.num_frames)](
        points.positions.contiguous(), points.usable.contiguous().view(torch.uint8), rows,
        buffer.keys, points.num_points, points.num_points if points.num_frames > 1 else 0,
        cameras.num_frames, cameras.height, cameras.width, BLOCK=_POINTS_AT_ONCE,
    )  # fmt: skip


def _jit(function: Callable[..., Any]) -> Any:
    """Compile what was written, without the annotation checks that tests wrap around it."""
    return triton.jit(inspect.unwrap(function))


@_jit
def _times_row(row, x, y, z):
    """One row of the projection; every step rounds once, as `addcmul` does on CUDA."""
    value = tl.fma(x, tl.load(row), tl.load(row + 3))
    return tl.fma(z, tl.load(row + 2), tl.fma(y, tl.load(row + 1), value))


@_jit
def _draw_kernel(
    positions, usable, rows, keys,
    num_points, points_apart, num_frames, height, width, BLOCK: tl.constexpr,
):  # fmt: skip
    """A point in a thread; `points_apart` is 0 where all the cameras see one frame of points."""
    frame = tl.program_id(1).to(tl.int64)
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = frame * points_apart + point
    drawn = tl.load(usable + at, mask=point < num_points, other=0) != 0
    world_x = tl.load(positions + 3 * at, mask=drawn, other=0.0)
    world_y = tl.load(positions + 3 * at + 1, mask=drawn, other=0.0)
    world_z = tl.load(positions + 3 * at + 2, mask=drawn, other=0.0)
    row = rows + 4 * frame
    depth = _times_row(row + 8 * num_frames, world_x, world_y, world_z)
    x = tl.div_rn(_times_row(row, world_x, world_y, world_z), depth)
    y = tl.div_rn(_times_row(row + 4 * num_frames, world_x, world_y, world_z), depth)
    # NaN, which infinite and NaN positions become, is inside of nothing.
    drawn = drawn & (depth > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    column, line = tl.where(drawn, x, 0.0).to(tl.int32), tl.where(drawn, y, 0.0).to(tl.int32)
    key = (depth.to(tl.int32, bitcast=True).to(tl.int64) << 32) | (point + 1)
    pixel = frame * (height * width) + line * width + column
    tl.atomic_min(keys + pixel, key, mask=drawn, sem="relaxed")


@_jit
def _shade_kernel(
    keys, colors, rgb, depth, alpha, num_pixels, colors_apart, BLOCK: tl.constexpr
):  # fmt: skip
    """A channel of a pixel in a thread; the first channel's threads write depth and alpha."""
    frame = tl.program_id(1).to(tl.int64)
    value = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = value < 3 * num_pixels
    channel = value % 3
    at = frame * num_pixels + value // 3
    key = tl.load(keys + at, mask=inside, other=0)
    number = key.to(tl.int32)  # the low half: 1 + point, or 0
    seen = number > 0
    source = colors + 3 * (frame * colors_apart + number - 1) + channel
    tl.store(rgb + 3 * (frame * num_pixels) + value, tl.load(source, mask=seen, other=0.0), inside)
    camera_z = (key >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    once = inside & (channel == 0)
    tl.store(depth + at, tl.where(seen, camera_z, 0.0), mask=once)
    tl.store(alpha + at, tl.where(seen, 1.0, 0.0), mask=once)
