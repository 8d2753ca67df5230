"""What the machine offers: device, dtype, free memory."""

from dataclasses import dataclass

import torch


class DevicePlanError(ValueError):
    """A wish that the device cannot fulfil."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """What the machine offers at the moment of planning."""

    device: torch.device
    """Where to compute."""

    dtype: torch.dtype
    """The best dtype of computation there."""

    free: int
    """Free bytes of device memory."""

    host_free: int
    """Free bytes of host memory."""


def detect_device(requested: str | None = None, dtype: torch.dtype | None = None) -> DeviceState:
    """Look at the machine: cuda where there is one, else mps, else cpu, unless one is named.

    Raises:
        DevicePlanError: the named device is not there.
    """
    device = _device(requested or _best_device())
    _require(device)
    return DeviceState(
        device=device,
        dtype=dtype or _best_dtype(device),
        free=free_bytes(device),
        host_free=_host_free_bytes(),
    )


def free_bytes(device: torch.device) -> int:
    """Return what can still be allocated, counting what torch holds in reserve as free."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device)
        used = torch.cuda.memory_allocated(device)
        limit = total
        if hasattr(torch.cuda, "get_per_process_memory_fraction"):  # torch 2.7 and newer
            # Unlike the others this one takes no device without a number.
            index = torch.cuda.current_device() if device.index is None else device.index
            limit = int(torch.cuda.get_per_process_memory_fraction(index) * total)
        return max(min(free + held, limit) - used, 0)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return _host_free_bytes()


def _device(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as e:
        raise DevicePlanError(f"device is {name!r}; expected cuda, cuda:N, mps or cpu.") from e


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _require(device: torch.device) -> None:
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DevicePlanError(
                f"device is {device}, but torch sees {count} CUDA devices. Use cpu, or install a "
                "torch build for your GPU (https://pytorch.org/get-started)."
            )
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise DevicePlanError("device is mps, but this is no Mac with Metal. Use cpu.")
    elif device.type != "cpu":
        raise DevicePlanError(f"device is {device}; expected cuda, cuda:N, mps or cpu.")


def _best_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        # Before Ampere bf16 is emulated, and float16 overflows in the UMT5 encoder.
        ampere = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if ampere else torch.float32
    if device.type == "mps":
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float32
    return torch.float32


def _host_free_bytes() -> int:
    try:
        import psutil
    except ImportError as e:
        raise DevicePlanError("Planning memory needs psutil. Install it: pip install psutil") from e
    return psutil.virtual_memory().available
