"""Carry out a device plan: put networks where it says, and bring them in while they are used."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import DevicePlan, DevicePlanError, RunSizes

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

_log = logging.getLogger(__name__)

_STEP_BYTES_PER_CHANNEL = 26
"""Live bytes per token and channel at the peak of a Wan block in bf16: the float32 norm,
modulation and residual, the three projections, and rotary embedding's temporaries."""

_VAE_BYTES_PER_PIXEL = 8_000
"""Live bytes per pixel of a frame at the peak of decoding, at 96 channels and 16 bits: the decoder
makes four frames at a time, and holds input, output, norm and the cached frames of a layer; its
last upsampling has 192 channels in float32."""

_ADAPTER_MAPS = 4.5
"""Feature maps that a residual block of a motion adapter holds at its peak."""

_TILE_PIXELS = 256 * 256
"""diffusers' default tile."""


def run_sizes(
    *,
    denoiser: nn.Module,
    vae: nn.Module | None = None,
    encoders: Sequence[nn.Module] = (),
    num_tokens: int,
    size_hw: tuple[int, int],
    dtype: torch.dtype,
) -> RunSizes:
    """Estimate what a run needs. Works on modules without values (meta device) too.

    `num_tokens`: of the transformer, reference frame included. `size_hw`: of the video in pixels.
    """
    item = torch.empty((), dtype=dtype).element_size()
    blocks = [_bytes(block, item) for block in _blocks(denoiser)]
    weights = _bytes(denoiser, item)
    encoder_bytes = [_bytes(encoder, item) for encoder in encoders]
    layers = [
        _bytes(layer, item) for e in encoders for layer in e.modules() if not any(layer.children())
    ]
    pixels = size_hw[0] * size_hw[1]
    per_pixel = 0 if vae is None else _VAE_BYTES_PER_PIXEL * item // 2
    adapters = 0 if vae is None else _adapter_bytes_per_pixel(vae, item) * pixels
    return RunSizes(
        denoiser=weights,
        block=max(blocks, default=weights),
        outside_blocks=weights - sum(blocks),
        vae=0 if vae is None else _bytes(vae, item),
        encoders=sum(encoder_bytes),
        largest_encoder=max(encoder_bytes, default=0),
        largest_encoder_layer=max(layers, default=0),
        step_activations=2 * num_tokens * _width(denoiser) * _STEP_BYTES_PER_CHANNEL * item // 2,
        vae_activations=max(pixels * per_pixel, adapters),
        vae_tile_activations=max(min(pixels, _TILE_PIXELS) * per_pixel, adapters),
    )


class Placement:
    """The networks of a run, placed as a plan says.

    `with placement.using(vae):` has the VAE on the device; outside, it is where the plan keeps it.
    """

    def __init__(self, plan: DevicePlan, streamed: Sequence[nn.Module] = ()) -> None:
        """Take over modules that are placed already; `streamed` bring in their parts themselves."""
        self.plan = plan
        self._streamed = {id(part) for module in streamed for part in _streamed_parts(module)}

    @contextmanager
    def using(self, *modules: nn.Module) -> Iterator[None]:
        """Have modules, or parts of them, on the device inside the block.

        Weights are not copied back: the block must not change them.
        """
        home: list[tuple[torch.Tensor, torch.Tensor]] = []
        try:
            for tensor in self._to_move(modules):
                home.append((tensor, tensor.data))
                tensor.data = _copied(tensor.data, self.plan.device)
            yield
        finally:
            for tensor, data in reversed(home):
                tensor.data = data

    def _to_move(self, modules: Sequence[nn.Module]) -> Iterator[torch.Tensor]:
        if self.plan.memory_mode == "resident":
            return
        for module in modules:
            if id(module) in self._streamed:
                continue
            yield from module.parameters(recurse=False)
            yield from module.buffers(recurse=False)
            yield from self._to_move(list(module.children()))


def apply_plan(
    plan: DevicePlan,
    *,
    denoisers: Sequence["ModelMixin"] = (),
    vaes: Sequence[nn.Module] = (),
    encoders: Sequence[nn.Module] = (),
) -> Placement:
    """Place loaded networks, and set tiling, attention backend, hooks and weight storage.

    `denoisers` are diffusers transformers; `vaes` may be wrappers, the diffusers VAE inside is
    found; `encoders` are called through `forward` only. Weights are expected at their final dtype,
    on the CPU for every mode but resident.

    Raises:
        DevicePlanError: the attention backend is not usable on this machine.
    """
    streamed: list[nn.Module] = []
    for denoiser in denoisers:
        _set_attention(denoiser, plan)
        if plan.memory_mode == "fp8":
            denoiser.enable_layerwise_casting(torch.float8_e4m3fn, plan.dtype)
        elif plan.memory_mode == "block-offload":
            _stream(denoiser, plan, "block_level")
            streamed.append(denoiser)
    if plan.memory_mode == "block-offload":
        for encoder in encoders:
            _stream(encoder, plan, "leaf_level")
            # Seen from outside it is on the CPU, so what it makes should be there too.
            encoder.register_forward_hook(_to_cpu)
            streamed.append(encoder)
    if plan.vae_tiling:
        for vae in vaes:
            _tile(vae)
    if plan.memory_mode == "resident":
        for module in (*denoisers, *vaes, *encoders):
            nn.Module.to(module, plan.device)  # diffusers' own `to` has no type
    return Placement(plan, streamed)


def _copied(data: torch.Tensor, device: torch.device) -> torch.Tensor:
    return data.to(device, non_blocking=True)


def _to_cpu(_module: nn.Module, _arguments: Any, output: Any) -> Any:
    from accelerate.utils import send_to_device

    return send_to_device(output, torch.device("cpu"))


def _tile(vae: nn.Module) -> None:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    for part in vae.modules():
        if isinstance(part, AutoencoderKLWan):
            part.enable_tiling()


def _streamed_parts(module: nn.Module) -> Sequence[nn.Module]:
    """What brings in its own weights: a transformer's blocks, or all of an encoder."""
    return _blocks(module) or [module]


def _stream(module: nn.Module, plan: DevicePlan, offload_type: str) -> None:
    from diffusers.hooks import HookRegistry, apply_group_offloading

    apply_group_offloading(
        module,
        onload_device=plan.device,
        offload_device=torch.device("cpu"),
        offload_type=offload_type,
        num_blocks_per_group=1 if offload_type == "block_level" else None,
        # Only CUDA has streams on which the next block can arrive while this one computes.
        use_stream=plan.device.type == "cuda",
    )
    if offload_type == "block_level":
        # What is in no block would be copied here and back at every step, without a stream.
        # `Placement.using` brings it once; without a leader nothing takes it away in between.
        registry = HookRegistry.check_if_exists_or_initialize(module)
        outside: Any = registry.get_hook("group_offloading")
        outside.group.offload_leader = None


def _set_attention(denoiser: "ModelMixin", plan: DevicePlan) -> None:
    if plan.attention == "native":
        return
    from diffusers.models.attention_dispatch import attention_backend

    try:
        # diffusers makes the backend of one model that of the whole process, in ComfyUI that of
        # other packs' models too; on leaving, this puts back what was there.
        with attention_backend():
            denoiser.set_attention_backend(plan.attention)
    except (ImportError, RuntimeError, ValueError) as e:
        raise DevicePlanError(
            f"The attention backend {plan.attention!r} cannot be used here: {e} Use native."
        ) from e


def _blocks(denoiser: nn.Module) -> Sequence[nn.Module]:
    blocks = getattr(denoiser, "blocks", None)
    return list(blocks) if isinstance(blocks, nn.ModuleList) else []


def _width(denoiser: nn.Module) -> int:
    config = getattr(denoiser, "config", None)
    if config is None:
        return 0
    return config["num_attention_heads"] * config["attention_head_dim"]


def _adapter_bytes_per_pixel(vae: nn.Module, item: int) -> int:
    """Of the motion VAE's adapters, which no tiling bounds."""
    from ..strag.motion_vae import FRAMES_PER_CALL, DecoderAdapter

    widths = [m.conv_in.out_channels for m in vae.modules() if isinstance(m, DecoderAdapter)]
    return int(_ADAPTER_MAPS * FRAMES_PER_CALL * max(widths, default=0) * item)


def _bytes(module: nn.Module, item: int) -> int:
    return item * sum(p.numel() for p in module.parameters())
