"""Group norm and SiLU with channels last, as three kernels. Import this where triton is.

The first reads the activations and sums them and their squares, per channel and chunk of places;
the second turns the sums into one scale and one shift per channel; the third applies them.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

_CHANNELS_AT_ONCE = 64
_PLACES_AT_ONCE = 64
_TILES_PER_CHUNK = 8
_CHUNKS_AT_ONCE = 64


def group_norm(
    values: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool
) -> Tensor:
    """See `group_norm.group_norm`."""
    values = values.contiguous()
    samples, channels = len(values), values.shape[-1]
    places = values.numel() // (samples * channels)
    chunks = triton.cdiv(places, _PLACES_AT_ONCE * _TILES_PER_CHUNK)
    channel_blocks = triton.cdiv(channels, _CHANNELS_AT_ONCE)
    sums = torch.empty(samples, chunks, 2, channels, device=values.device)
    affine = torch.empty(samples, 2, channels, device=values.device)
    result = torch.empty_like(values)
    with torch.cuda.device_of(values):  # triton launches on the current device
        _sum_kernel[(samples, chunks, channel_blocks)](
            values, sums, places, channels, chunks,
            PLACES=_PLACES_AT_ONCE, CHANNELS=_CHANNELS_AT_ONCE, TILES=_TILES_PER_CHUNK,
        )  # fmt: skip
        _affine_kernel[(samples, groups)](
            sums, weight, bias, affine, places, channels, chunks, eps,
            WIDTH=channels // groups, PADDED=triton.next_power_of_2(channels // groups),
            CHUNKS=_CHUNKS_AT_ONCE,
        )  # fmt: skip
        _apply_kernel[(samples, chunks, channel_blocks)](
            values, affine, result, places, channels,
            SILU=silu,
            PLACES=_PLACES_AT_ONCE, CHANNELS=_CHANNELS_AT_ONCE, TILES=_TILES_PER_CHUNK,
        )  # fmt: skip
    return result


def _jit(function: Callable[..., Any]) -> Any:
    """Compile what was written, without the annotation checks that tests wrap around it."""
    return triton.jit(inspect.unwrap(function))


@_jit
def _sum_kernel(
    values, sums, places, channels, chunks,
    PLACES: tl.constexpr, CHANNELS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Sums and sums of squares of some channels over one chunk of places."""
    sample = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([CHANNELS], dtype=tl.float32)
    squares = tl.zeros([CHANNELS], dtype=tl.float32)
    for tile in range(TILES):
        place = (chunk * TILES + tile) * PLACES + tl.arange(0, PLACES)
        inside = (place[:, None] < places) & (channel[None, :] < channels)
        at = (sample * places + place[:, None]) * channels + channel[None, :]
        value = tl.load(values + at, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(value, axis=0)
        squares += tl.sum(value * value, axis=0)
    row = sums + (sample * chunks + chunk) * 2 * channels + channel
    tl.store(row, total, mask=channel < channels)
    tl.store(row + channels, squares, mask=channel < channels)


@_jit
def _affine_kernel(
    sums, weight, bias, affine, places, channels, chunks, eps,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Mean and variance of one group, as the scale and shift of each of its channels."""
    sample = tl.program_id(0).to(tl.int64)
    within = tl.arange(0, PADDED)
    channel = tl.program_id(1) * WIDTH + within
    total = tl.zeros([PADDED], dtype=tl.float32)
    squares = tl.zeros([PADDED], dtype=tl.float32)
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        inside = (chunk[:, None] < chunks) & (within[None, :] < WIDTH)
        row = (sample * chunks + chunk[:, None]) * 2 * channels + channel[None, :]
        total += tl.sum(tl.load(sums + row, mask=inside, other=0.0), axis=0)
        squares += tl.sum(tl.load(sums + row + channels, mask=inside, other=0.0), axis=0)
    count = places * WIDTH
    mean = tl.sum(total, axis=0) / count
    variance = tl.maximum(tl.sum(squares, axis=0) / count - mean * mean, 0.0)
    inverse = 1.0 / tl.sqrt(variance + eps)
    scale = tl.load(weight + channel, mask=within < WIDTH, other=0.0).to(tl.float32) * inverse
    offset = tl.load(bias + channel, mask=within < WIDTH, other=0.0).to(tl.float32)
    row = affine + sample * 2 * channels + channel
    tl.store(row, scale, mask=within < WIDTH)
    tl.store(row + channels, offset - mean * scale, mask=within < WIDTH)


@_jit
def _apply_kernel(
    values, affine, result, places, channels,
    SILU: tl.constexpr, PLACES: tl.constexpr, CHANNELS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Scale, shift and SiLU of some channels over one chunk of places."""
    sample = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    row = affine + sample * 2 * channels + channel
    scale = tl.load(row, mask=channel < channels, other=0.0)[None, :]
    shift = tl.load(row + channels, mask=channel < channels, other=0.0)[None, :]
    for tile in range(TILES):
        place = (tl.program_id(1) * TILES + tile) * PLACES + tl.arange(0, PLACES)
        inside = (place[:, None] < places) & (channel[None, :] < channels)
        at = (sample * places + place[:, None]) * channels + channel[None, :]
        value = tl.load(values + at, mask=inside, other=0.0).to(tl.float32) * scale + shift
        if SILU:
            value = value * tl.sigmoid(value)
        tl.store(result + at, value.to(result.dtype.element_ty), mask=inside)
