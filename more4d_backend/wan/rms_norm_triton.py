"""RMS norm over channels and SiLU, forwards and backwards. Import this where triton is.

A tile is all channels of some places, so that nothing but the activations is read and written.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

_NUMBERS_AT_ONCE = 4096
_SMALLEST = 1e-12
"""Of a norm that is divided by, as in torch's `normalize`."""


class NormSilu(torch.autograd.Function):
    """See `rms_norm.norm_silu`. Any number of channels; memory in order, or channels last."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, gamma: Tensor, dtype: torch.dtype) -> Tensor:
        """Normalise and activate; the input and gamma are kept for the gradient."""
        values = _dense(values)
        ctx.save_for_backward(values, gamma)
        result = torch.empty_like(values, dtype=dtype)
        grid, sizes, blocks = _launch(values)
        with torch.cuda.device_of(values):  # triton launches on the current device
            _forward_kernel[grid](values, gamma, result, *sizes, _SMALLEST, **blocks)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of values and gamma."""
        values, gamma = ctx.saved_tensors
        (gradient,) = gradients
        last = _is_channels_last(values)
        gradient = gradient.contiguous(
            memory_format=torch.channels_last_3d if last else torch.contiguous_format
        )
        of_values = torch.empty_like(values)
        grid, sizes, blocks = _launch(values)
        partial = torch.empty(grid[0] * grid[1], values.shape[1], device=values.device)
        with torch.cuda.device_of(values):
            _backward_kernel[grid](
                values, gamma, gradient, of_values, partial, *sizes, _SMALLEST, **blocks
            )
        return of_values, partial.sum(0).to(gamma), None


def _is_channels_last(values: Tensor) -> bool:
    return not values.is_contiguous() and values.is_contiguous(memory_format=torch.channels_last_3d)


def _dense(values: Tensor) -> Tensor:
    return values if _is_channels_last(values) else values.contiguous()


def _launch(values: Tensor) -> tuple[tuple[int, int], tuple[int, int, int], dict[str, int]]:
    samples, channels = values.shape[:2]
    places = values[0, 0].numel()
    of_channel, of_place = (1, channels) if _is_channels_last(values) else (places, 1)
    padded = triton.next_power_of_2(channels)
    at_once = max(16, _NUMBERS_AT_ONCE // padded)
    grid = (samples, triton.cdiv(places, at_once))
    return (
        grid,
        (places, of_channel, of_place),
        {"CHANNELS": channels, "PADDED": padded, "PLACES": at_once},
    )


def _jit(function: Callable[..., Any]) -> Any:
    """Compile what was written, without the annotation checks that tests wrap around it."""
    return triton.jit(inspect.unwrap(function))


@_jit
def _tile(
    gamma, places, channel_stride, place_stride,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """Where all channels of this program's places lie, which of them there are, and their gamma."""
    sample = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * PLACES + tl.arange(0, PLACES)
    channel = tl.arange(0, PADDED)
    inside = (channel[:, None] < CHANNELS) & (place[None, :] < places)
    at = sample * CHANNELS * places + channel[:, None] * channel_stride
    at += place[None, :] * place_stride
    factor = tl.load(gamma + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)
    return at, inside, factor


@_jit
def _forward_kernel(
    values, gamma, result, places, channel_stride, place_stride, smallest,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """All channels of some places of one sample."""
    at, inside, factor = _tile(
        gamma, places, channel_stride, place_stride, CHANNELS, PADDED, PLACES
    )
    value = tl.load(values + at, mask=inside, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(value * value, axis=0)), smallest)
    root = tl.sqrt(CHANNELS * 1.0)
    normed = value / length[None, :] * root * factor[:, None]
    normed = normed * tl.sigmoid(normed)
    tl.store(result + at, normed.to(result.dtype.element_ty), mask=inside)


@_jit
def _backward_kernel(
    values, gamma, gradient, of_values, partial, places, channel_stride, place_stride, smallest,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """The gradient of the same part, and what it adds to that of gamma."""
    at, inside, factor = _tile(
        gamma, places, channel_stride, place_stride, CHANNELS, PADDED, PLACES
    )
    channel = tl.arange(0, PADDED)
    value = tl.load(values + at, mask=inside, other=0.0).to(tl.float32)
    arriving = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(value * value, axis=0))
    divisor = tl.maximum(length, smallest)
    root = tl.sqrt(CHANNELS * 1.0)
    unit = value / divisor[None, :]
    normed = unit * root * factor[:, None]
    gate = tl.sigmoid(normed)
    slope = arriving * gate * (1.0 + normed * (1.0 - gate))
    row = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    told = tl.sum(slope * unit * root, axis=1)
    tl.store(partial + row.to(tl.int64) * CHANNELS + channel, told, mask=channel < CHANNELS)
    of_unit = slope * root * factor[:, None]
    # Where the norm is not what is divided by, it does not move.
    along = tl.where(length > smallest, tl.sum(of_unit * unit, axis=0), 0.0)
    moved = (of_unit - unit * along[None, :]) / divisor[None, :]
    tl.store(of_values + at, moved.to(of_values.dtype.element_ty), mask=inside)
