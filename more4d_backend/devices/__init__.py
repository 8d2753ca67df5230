"""Device, dtype, memory mode and attention: chosen once, from what is free, with the reason logged.

| mode | on the device at one time | price |
|---|---|---|
| resident | everything | none |
| model-offload | one network | moving each network once per stage |
| block-offload | a few blocks, streamed | host memory for all weights, transfers each step |
| fp8 | one network, the transformer in 8 bits | rounded weights; never chosen silently |

Modes before fp8 do not change a single number. On Windows the driver may hand out host memory when
the device is full, which is slow rather than an error: a mode that fits is faster there too. On mps
host and device share one memory, so offloading frees nothing and only `resident` exists.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from .state import DevicePlanError as DevicePlanError
from .state import DeviceState as DeviceState
from .state import detect_device as detect_device
from .state import free_bytes as free_bytes

_log = logging.getLogger(__name__)

MemoryMode = Literal["resident", "model-offload", "block-offload", "fp8"]
"""Where weights live between uses; see the module's table."""

Attention = Literal[
    "native", "_native_cudnn", "_native_flash", "_native_efficient", "sage", "flash"
]
"""Names of diffusers' attention backends; `native` leaves the choice to torch."""

_EXACT_MODES: tuple[MemoryMode, ...] = ("resident", "model-offload", "block-offload")
"""Modes that change no number, from the fastest to the one that needs least."""

_STREAMED_BLOCKS = 3
"""One block computes, the next one arrives, and the last one's memory is not yet free."""
_FP8_SHARE = 0.51
"""Of the transformer's bf16 bytes: norms, embeddings and modulation keep their dtype."""
_USABLE_SHARE = 0.96
_CONTEXT_BYTES = 300 << 20
"""Libraries' workspaces and fragmentation, kept out of every plan."""


class DeviceMemoryError(MemoryError):
    """The device ran out of memory; the message says what would fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSizes:
    """What a run needs, in bytes at the compute dtype. `memory_modes.run_sizes` makes it."""

    denoiser: int
    """Weights of the transformer."""

    block: int
    """Weights of its largest block."""

    outside_blocks: int
    """Its weights that are in no block; block-offload holds them during a step."""

    vae: int = 0
    """Weights of the VAE and its adapters."""

    encoders: int = 0
    """Weights of all text and image encoders together."""

    largest_encoder: int = 0
    """Weights of the largest of them."""

    largest_encoder_layer: int = 0
    """Its largest layer; block-offload streams encoders layer by layer."""

    step_activations: int
    """Peak of one transformer call with both halves of classifier-free guidance in a batch."""

    vae_activations: int = 0
    """Peak of decoding without tiles."""

    vae_tile_activations: int = 0
    """Peak of decoding tile by tile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRequest:
    """What the user wants; None leaves the choice to the plan."""

    device: str | None = None
    """Such as `cuda`, `cuda:1`, `mps`, `cpu`."""

    dtype: torch.dtype | None = None
    """Of computation."""

    memory_mode: MemoryMode | None = None
    """See the module's table."""

    attention: Attention = "native"
    """Changed only on request: the default was the fastest where it was measured."""

    vae_tiling: bool | None = None
    """Decode and encode in tiles."""

    sequential_cfg: bool | None = None
    """Run the two halves of classifier-free guidance one after the other."""

    def __post_init__(self) -> None:
        if self.memory_mode is not None and self.memory_mode not in get_args(MemoryMode):
            raise DevicePlanError(
                f"memory_mode is {self.memory_mode!r}; expected one of "
                f"{', '.join(get_args(MemoryMode))}, or nothing for automatic."
            )
        if self.attention not in get_args(Attention):
            known = ", ".join(get_args(Attention))
            raise DevicePlanError(f"attention is {self.attention!r}; expected one of {known}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """Every choice about where and how the networks run."""

    device: torch.device
    """Where they compute."""

    dtype: torch.dtype
    """Of computation."""

    memory_mode: MemoryMode
    """See the module's table."""

    attention: Attention
    """A diffusers attention backend."""

    vae_tiling: bool
    """Whether the VAE works in tiles."""

    sequential_cfg: bool
    """Whether the two halves of classifier-free guidance run one after the other."""

    reason: str
    """Why, in full sentences, for the log and for run.json."""


def plan_devices(
    state: DeviceState, sizes: RunSizes, requested: DeviceRequest | None = None
) -> DevicePlan:
    """Choose the fastest exact way that fits, or check what was requested. Pure: changes nothing.

    The order: resident, model-offload, block-offload, and in each first with both halves of
    guidance in one batch. fp8 comes last, and only if host memory is too small for offloading.

    Raises:
        DevicePlanError: the request contradicts the device.
    """
    requested = requested or DeviceRequest()
    modes = _allowed_modes(state, sizes, requested.memory_mode)
    usable = usable_bytes(state.free)
    halves = (False, True) if requested.sequential_cfg is None else (requested.sequential_cfg,)
    candidates: list[tuple[MemoryMode, bool]] = [(m, half) for m in modes for half in halves]
    mode, sequential = next(
        (c for c in candidates if required_bytes(c[0], sizes, sequential_cfg=c[1]) <= usable),
        candidates[-1],
    )
    tiling = requested.vae_tiling
    if tiling is None:
        tiling = _vae_phase(mode, sizes, sizes.vae_activations) > usable
    needed = required_bytes(mode, sizes, sequential_cfg=sequential, vae_tiling=tiling)
    plan = DevicePlan(
        device=state.device,
        dtype=requested.dtype or state.dtype,
        memory_mode=mode,
        attention=requested.attention,
        vae_tiling=tiling,
        sequential_cfg=sequential,
        reason=_reason(state, sizes, requested, mode, needed),
    )
    rounds_unasked = mode == "fp8" and requested.memory_mode is None
    log = _log.warning if needed > usable or rounds_unasked else _log.info
    log("%s", describe(plan))
    return plan


def required_bytes(
    mode: MemoryMode, sizes: RunSizes, *, sequential_cfg: bool = False, vae_tiling: bool = True
) -> int:
    """Return the estimated peak of device memory over all stages of a run."""
    activations = sizes.step_activations // (2 if sequential_cfg else 1)
    vae_activations = sizes.vae_tile_activations if vae_tiling else sizes.vae_activations
    vae_phase = _vae_phase(mode, sizes, vae_activations)
    step_weights = {
        "resident": sizes.denoiser + sizes.vae + sizes.encoders,
        "model-offload": sizes.denoiser,
        "block-offload": sizes.outside_blocks + _STREAMED_BLOCKS * sizes.block,
        "fp8": int(_FP8_SHARE * sizes.denoiser) + 2 * sizes.block // 4,
    }[mode]
    encoder_weights = {
        "resident": 0,
        "model-offload": sizes.largest_encoder,
        "block-offload": 2 * sizes.largest_encoder_layer,
        "fp8": sizes.largest_encoder,
    }[mode]
    return max(step_weights + activations, vae_phase, encoder_weights)


def usable_bytes(free: int) -> int:
    """Return how much of the free memory a plan may count on."""
    return max(int(_USABLE_SHARE * free) - _CONTEXT_BYTES, 0)


def describe(plan: DevicePlan) -> str:
    """Return one line for the log."""
    switches = [
        "VAE tiling" if plan.vae_tiling else "",
        "sequential guidance" if plan.sequential_cfg else "",
    ]
    extra = "".join(f", {s}" for s in switches if s)
    dtype = str(plan.dtype).removeprefix("torch.")
    return (
        f"Device {plan.device}, {dtype}, {plan.memory_mode}{extra}, attention {plan.attention}: "
        f"{plan.reason}"
    )


@contextmanager
def explaining_out_of_memory(plan: DevicePlan, sizes: RunSizes) -> Iterator[None]:
    """Turn an out-of-memory error of any backend into one that says which mode would fit.

    Raises:
        DeviceMemoryError: in place of the backend's error.
    """
    try:
        yield
    except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as e:
        if isinstance(e, DeviceMemoryError) or not is_out_of_memory(e):
            raise
        raise DeviceMemoryError(out_of_memory_message(plan, sizes, free_bytes(plan.device))) from e


def out_of_memory_message(plan: DevicePlan, sizes: RunSizes, free: int) -> str:
    """Say what the plan needed by estimate, and which smaller ones need how much."""
    needed = required_bytes(
        plan.memory_mode,
        sizes,
        sequential_cfg=plan.sequential_cfg,
        vae_tiling=plan.vae_tiling,
    )
    told = (
        f"{plan.device} ran out of memory in mode {plan.memory_mode}, which needs about "
        f"{_gib(needed)}; {_gib(free)} could still be allocated."
    )
    if plan.device.type != "cuda":
        return f"{told} Use fewer frames or a smaller size; {plan.device.type} has no other mode."
    smaller = []
    for mode in (*_EXACT_MODES, "fp8"):
        for sequential in (False, True):
            estimate = required_bytes(mode, sizes, sequential_cfg=sequential)
            if estimate < 0.97 * needed and (mode, sequential) != (
                plan.memory_mode,
                plan.sequential_cfg,
            ):
                words = f"{mode} with sequential guidance" if sequential else mode
                smaller.append(f"{words} ({_gib(estimate)})")
    if not smaller:
        return f"{told} No mode needs less: use fewer frames or a smaller size."
    return f"{told} These need less: {', '.join(smaller)}. Close other programs, or choose one."


def check_memory_mode(mode: MemoryMode | None, device: torch.device) -> None:
    """Refuse a mode that a device cannot have; `plan_devices` does, but after loading.

    Raises:
        DevicePlanError: offloading was asked for where host and device share one memory.
    """
    if device.type != "cuda" and mode not in (None, "resident"):
        raise DevicePlanError(
            f"memory_mode is {mode!r}, but {device.type} computes in the host's "
            "memory: there is nothing to offload to. Use resident."
        )


def _allowed_modes(
    state: DeviceState, sizes: RunSizes, requested: MemoryMode | None
) -> tuple[MemoryMode, ...]:
    check_memory_mode(requested, state.device)
    if state.device.type != "cuda":
        return ("resident",)
    if requested is not None:
        return (requested,)
    # Pinned host copies of every weight are what offloading streams from.
    if sizes.denoiser + sizes.vae + sizes.encoders > state.host_free:
        return ("resident", "fp8")
    return _EXACT_MODES


def _vae_phase(mode: MemoryMode, sizes: RunSizes, activations: int) -> int:
    others = sizes.denoiser + sizes.encoders if mode == "resident" else 0
    return others + sizes.vae + activations


def _reason(
    state: DeviceState,
    sizes: RunSizes,
    requested: DeviceRequest,
    mode: MemoryMode,
    needed: int,
) -> str:
    free = f"{_gib(state.free)} are free"
    if state.device.type != "cuda":
        why = f"{state.device.type} has only the mode resident; about {_gib(needed)} are needed"
    elif requested.memory_mode is not None:
        why = f"{mode} was asked for and needs about {_gib(needed)}"
    elif mode == "fp8":
        why = (
            f"the weights fit neither the device nor {_gib(state.host_free)} of host memory, so "
            f"they are ROUNDED to 8 bits; about {_gib(needed)} are needed"
        )
    else:
        why = f"{mode} is the fastest exact mode that fits, with about {_gib(needed)}"
    if needed > usable_bytes(state.free):
        why += ". By this estimate it does NOT fit; it is tried all the same"
    return f"{free}; {why}."


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error tells that memory ran out, on the device or on the host."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return "out of memory" in text or "can't allocate memory" in text


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"
