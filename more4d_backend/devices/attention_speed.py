"""Measure attention backends at a run's own size, and switch only to one that is clearly faster.

Which kernel is fastest depends on the GPU, the driver and the length: on one H200, forcing cuDNN or
flash through diffusers made a step slower than torch's own choice.
"""

import logging
import time
from collections.abc import Callable, Mapping

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from . import Attention

_log = logging.getLogger(__name__)

_KERNELS: dict[Attention, list[SDPBackend]] = {
    "_native_flash": [SDPBackend.FLASH_ATTENTION],
    "_native_efficient": [SDPBackend.EFFICIENT_ATTENTION],
}
if hasattr(SDPBackend, "CUDNN_ATTENTION"):  # torch 2.5 and newer
    _KERNELS["_native_cudnn"] = [SDPBackend.CUDNN_ATTENTION]
_MARGIN = 0.03
"""A backend must save this share of the default's time; less is noise."""
_REPEATS = 5


def fastest_attention(
    *,
    device: torch.device,
    dtype: torch.dtype,
    num_tokens: int,
    num_heads: int,
    head_dim: int = 128,
    batch: int = 2,
) -> Attention:
    """Time self-attention of one block with every backend of torch, and return the one to use.

    Backends that refuse this size or device are left out, with a log line. Takes well under a
    second at full size on a GPU. A CPU has one fused kernel whatever the backend is called, so
    nothing is measured there: noise would decide.
    """
    if device.type == "cpu":
        _log.info("Attention: native, because a CPU has no other kernel to measure it against.")
        return "native"
    seconds = measure_attention(
        device=device,
        dtype=dtype,
        num_tokens=num_tokens,
        num_heads=num_heads,
        head_dim=head_dim,
        batch=batch,
    )
    choice = choose_attention(seconds)
    told = ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in seconds.items())
    _log.info("Attention over %d tokens: %s. Using %s.", num_tokens, told, choice)
    return choice


def choose_attention(seconds: Mapping[Attention, float]) -> Attention:
    """Return the fastest backend, or `native` unless one saves at least 3 % of its time."""
    fastest = min(seconds, key=lambda name: seconds[name])
    return fastest if seconds[fastest] < (1 - _MARGIN) * seconds["native"] else "native"


def measure_attention(
    *,
    device: torch.device,
    dtype: torch.dtype,
    num_tokens: int,
    num_heads: int,
    head_dim: int,
    batch: int,
) -> dict[Attention, float]:
    """Return seconds per call of every backend that accepts this size; `native` always does."""
    shape = (batch, num_heads, num_tokens, head_dim)
    query, key, value = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))

    def attend() -> torch.Tensor:
        return scaled_dot_product_attention(query, key, value)

    seconds: dict[Attention, float] = {"native": seconds_of(attend, device)}
    for name, kernels in _KERNELS.items():
        try:
            with torch.no_grad(), sdpa_kernel(kernels):
                seconds[name] = seconds_of(attend, device)
        except RuntimeError as e:
            _log.info("Attention backend %s cannot be used here: %s", name, e)
    return seconds


def seconds_of(work: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Best of a few timings, each of one call, after one that is not counted."""
    times = []
    for _ in range(_REPEATS + 1):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
