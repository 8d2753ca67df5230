"""Parameters that are split over ranks: by FSDP2, or by DeepSpeed's ZeRO.

Each engine keeps them in its own way. Here they all look alike: of every trained parameter a rank
holds a flat float32 fragment, and the fragments of all ranks, one after the other, are the
parameter (and then padding, for ZeRO-3).
"""

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, runtime_checkable

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .objectives import Objective
from .optimizers import trained_parameters
from .settings import SettingsError, TrainerSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

_log = logging.getLogger(__name__)

_BLOCK = "WanTransformerBlock"

Engine = Literal["fsdp", "zero2", "zero3"]
"""`zero2` stands for stages 1 and 2."""

WEIGHTS = "weights.json"
"""Beside the fragments: how many ranks, and the shape of every tensor."""


@runtime_checkable
class Fragments(Protocol):
    """The fragments of the trained parameters that this rank holds."""

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and float32 fragment, one after the other, in the same order every time."""
        ...

    def write(self, values: Mapping[str, Tensor]) -> None:
        """Put other values in their place, also where the network computes. All ranks together."""
        ...


@dataclass(frozen=True, slots=True)
class WholeParameters:
    """Of one rank alone, or of ranks that all hold everything."""

    parameters: Mapping[str, Tensor]
    """By name."""

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters themselves."""
        for name, parameter in self.parameters.items():
            yield name, parameter.detach()

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into the parameters."""
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])


@dataclass(frozen=True, slots=True)
class FsdpFragments:
    """Of FSDP2: rows of each parameter."""

    module: nn.Module
    """Prepared by accelerate."""

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield views of this rank's rows."""
        split_again(self.module)
        for name, parameter in trained_parameters(self.module).items():
            yield name, _rows(parameter).flatten()

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into this rank's rows."""
        split_again(self.module)
        for name, parameter in trained_parameters(self.module).items():
            rows = _rows(parameter)
            rows.copy_(values[name].view_as(rows))


def split_again(module: nn.Module) -> None:
    """Let go of parameters that FSDP2 has gathered.

    It keeps those outside of blocks after a forward pass without a backward one. They would be
    computed with once more, whatever has become of their rows.
    """
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@dataclass(frozen=True, slots=True)
class ZeroTwoFragments:
    """Of ZeRO-1 and -2: whole parameters for computing, and float32 fragments in the optimiser."""

    parameters: Mapping[str, nn.Parameter]
    """By name."""

    optimizer: Any
    """DeepSpeed's."""

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield views; empty where other ranks hold the whole of a parameter."""
        for name, parameter in self.parameters.items():
            mapping = cast(Any, parameter)._hp_mapping  # None: nothing of it is here
            yield name, torch.empty(0) if mapping is None else mapping.hp_fragment.detach()

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into the fragments, and gather from them what the network computes with."""
        for name, fragment in self.items():
            fragment.copy_(values[name])
        self.optimizer.update_lp_params()


@dataclass(frozen=True, slots=True)
class ZeroThreeFragments:
    """Of ZeRO-3: fragments of the network's parameters, and float32 ones in the optimiser."""

    parameters: Mapping[str, nn.Parameter]
    """By name; empty outside of a forward pass."""

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield fragments; copies on the GPU where the optimiser is offloaded."""
        from deepspeed.utils import safe_get_local_fp32_param

        for name, parameter in self.parameters.items():
            yield name, safe_get_local_fp32_param(parameter).detach()

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into both kinds of fragments."""
        from deepspeed.utils import safe_set_local_fp32_param

        for name, parameter in self.parameters.items():
            safe_set_local_fp32_param(parameter, values[name].to(parameter.device))
            cast(Any, parameter).ds_tensor.data.copy_(values[name])


def engine_of(accelerator: "Accelerator") -> Engine | None:
    """Return what splits parameters over ranks; None where nothing does."""
    from accelerate.utils import DistributedType

    if accelerator.distributed_type is DistributedType.FSDP:
        return "fsdp"
    if accelerator.distributed_type is DistributedType.DEEPSPEED:
        plugin: Any = accelerator.state.deepspeed_plugin
        return "zero3" if plugin.zero_stage == 3 else "zero2"
    return None


def fragments_of(engine: Engine | None, module: nn.Module, optimizer: Any) -> Fragments:
    """Return this rank's part of the trained parameters of a prepared module."""
    trained = trained_parameters(module)
    if engine == "fsdp":
        return FsdpFragments(module)
    if engine == "zero2":
        return ZeroTwoFragments(trained, optimizer.optimizer)
    if engine == "zero3":
        return ZeroThreeFragments(trained)
    return WholeParameters(trained)


def check_launch() -> None:
    """Refuse, before anything is loaded, a launch that cannot train split over ranks.

    Raises:
        SettingsError: DeepSpeed is not installed, or there is one process and nothing to gain.
    """
    import importlib.util

    use_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    use_fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if use_deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise SettingsError(
            "The launch configuration asks for DeepSpeed, which is not installed: "
            "pip install deepspeed. Or launch with training/launch/fsdp.yaml, which needs nothing."
        )
    offload = [
        os.environ.get(name, "none")
        for name in ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "FSDP_OFFLOAD_PARAMS")
    ]
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if (use_deepspeed or use_fsdp) and alone and not {"cpu", "nvme", "true"} & set(offload):
        raise SettingsError(
            "The launch configuration splits parameters over ranks, and there is one process. "
            "Launch with --num_processes of 2 or more, one of the *_offload.yaml configurations, "
            "or `python -m` without any."
        )


def check_same_config(accelerator: "Accelerator", config: Mapping[str, Any]) -> None:
    """Refuse ranks that were started with different settings.

    Raises:
        SettingsError: on every rank; names the settings.
    """
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import gather_object

    everyone = [json.loads(text) for text in gather_object([json.dumps(config)])]
    differing = {
        f"{part}.{name}"
        for other in everyone
        for part in config
        for name in _names(config[part], other.get(part))
    }
    if differing:
        raise SettingsError(
            f"The ranks have different settings: {', '.join(sorted(differing))}. Start all of "
            "them, on every machine, with the same command line."
        )


def _names(here: Any, there: Any) -> list[str]:
    if not (isinstance(here, dict) and isinstance(there, dict)):
        return [] if here == there else ["all of it"]
    return [k for k in sorted(here.keys() | there.keys()) if here.get(k) != there.get(k)]


def set_engine_up(
    accelerator: "Accelerator", objective: nn.Module, config: TrainerSettings
) -> None:
    """Tell the engine what only the trainer knows, before it is given the objective.

    Raises:
        SettingsError: DeepSpeed cannot do what the recipe says.
    """
    if engine_of(accelerator) == "fsdp":
        plugin: Any = accelerator.state.fsdp_plugin
        there = any(type(part).__name__ == _BLOCK for part in objective.modules())
        plugin.transformer_cls_names_to_wrap = [_BLOCK] if there else []
        return
    _check_deepspeed(config)
    plugin = accelerator.state.deepspeed_plugin
    settings = plugin.deepspeed_config
    settings["train_micro_batch_size_per_gpu"] = config.run.batch_size
    settings["gradient_accumulation_steps"] = config.run.accumulation
    # A small parameter that is always kept whole would miss what `write` does.
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    if config.run.precision == "bf16":
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
        if isinstance(objective, Objective):  # DeepSpeed turns off the autocast it is called in
            objective.autocast_to = torch.bfloat16


def _check_deepspeed(config: TrainerSettings) -> None:
    optimizer = config.optimizer
    if optimizer.skip_above is not None and config.run.accumulation > 1:
        raise SettingsError(
            "optimizer.skip_above is set and run.accumulation is over 1: DeepSpeed cannot drop "
            "gradients that it has begun to sum up. Set optimizer.skip_above to None."
        )
    if optimizer.spike_ratio is not None:
        _log.warning(
            "DeepSpeed clips and steps at once: optimizer.spike_ratio is left out, as in the "
            "reference; gradients are shortened to max_norm alone."
        )


def deepspeed_backward(engine: Any, loss: Tensor, *, ends_update: bool) -> None:
    """Add to the gradients. accelerate's own call would step at once, before anyone can look."""
    engine.set_gradient_accumulation_boundary(ends_update)
    engine.backward(loss)


def deepspeed_step(engine: Any, max_norm: float) -> float:
    """Clip and step; return the norm of the gradient, NaN where nothing was done because of it."""
    engine.optimizer.clip_grad = max_norm
    engine.step()
    norm = engine.get_global_grad_norm()
    return math.nan if engine.optimizer.overflow or norm is None else float(norm)


def save_fragments(
    folder: Path, fragments: Fragments, module: nn.Module, *, rank: int, frozen: bool
) -> None:
    """Write this rank's part of the weights: `weights-<rank>.safetensors`.

    With `frozen` also of what is not trained.
    """
    tensors = {name: _stored(fragment) for name, fragment in fragments.items()}
    if frozen:
        tensors |= {name: _stored(part) for name, part in _frozen(module, rank)}
    save_file(tensors, folder / f"weights-{rank}.safetensors")


def shapes_of(module: nn.Module, *, frozen: bool) -> dict[str, list[int]]:
    """Return the whole shape of every tensor that `save_fragments` writes parts of."""
    named = {n: p for n, p in module.named_parameters() if frozen or p.requires_grad}
    shapes = {n: list(getattr(p, "ds_shape", p.shape)) for n, p in named.items()}
    return shapes | ({n: list(b.shape) for n, b in _buffers(module)} if frozen else {})


def _frozen(module: nn.Module, rank: int) -> Iterator[tuple[str, Tensor]]:
    from torch.distributed.tensor import DTensor

    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_tensor"):
            yield name, cast(Any, parameter).ds_tensor
        elif isinstance(parameter, DTensor):
            yield name, _rows(parameter)
        elif rank == 0:
            yield name, parameter
    if rank == 0:
        yield from _buffers(module)


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    kept = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if name in kept:
            yield name, buffer


def _rows(parameter: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    return cast(Any, parameter.detach()).to_local()


def _stored(fragment: Tensor) -> Tensor:
    return fragment.detach().flatten().cpu().contiguous()
