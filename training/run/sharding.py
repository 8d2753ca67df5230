"""Training split over ranks: what may be launched, and what FSDP2 and DeepSpeed must be told."""

import json
import logging
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from .objectives import Objective
from .settings import SettingsError, TrainerSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

_log = logging.getLogger(__name__)

_BLOCKS = ("WanTransformerBlock", "ResBlock", "SpatialTransformer", "TemporalTransformer")
"""Classes whose modules FSDP2 gathers one by one: those of Wan, and of Geo4D's denoiser."""

Engine = Literal["fsdp", "zero2", "zero3"]
"""`zero2` stands for stages 1 and 2."""


def engine_of(accelerator: "Accelerator") -> Engine | None:
    """Return what splits parameters over ranks; None where nothing does."""
    from accelerate.utils import DistributedType

    if accelerator.distributed_type is DistributedType.FSDP:
        return "fsdp"
    if accelerator.distributed_type is DistributedType.DEEPSPEED:
        plugin: Any = accelerator.state.deepspeed_plugin
        return "zero3" if plugin.zero_stage == 3 else "zero2"
    return None


def check_launch() -> None:
    """Refuse, before anything is loaded, a launch that cannot train split over ranks.

    Raises:
        SettingsError: DeepSpeed is not installed, FSDP is of version 1, or there is one process and
            nothing to gain.
    """
    import importlib.util

    use_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    use_fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if use_deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise SettingsError(
            "The launch configuration asks for DeepSpeed, which is not installed: "
            'pip install "deepspeed>=0.19". Or launch with training/launch/fsdp.yaml, which needs '
            "nothing."
        )
    if use_fsdp and os.environ.get("FSDP_VERSION", "1") != "2":
        raise SettingsError(
            "The launch configuration asks for the first version of FSDP. Add fsdp_version: 2 to "
            "its fsdp_config, or launch with training/launch/fsdp.yaml."
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
        SettingsError: the objective or the recipe cannot be trained so.
    """
    if not isinstance(objective, Objective):
        raise SettingsError(
            "This trainer keeps all parameters on every rank. Launch it without FSDP and DeepSpeed."
        )
    if config.run.precision == "bf16":
        objective.autocast_to = torch.bfloat16  # neither engine computes in accelerate's autocast
    if engine_of(accelerator) == "fsdp":
        _set_fsdp_up(accelerator.state.fsdp_plugin, objective, config)
    else:
        _set_deepspeed_up(accelerator.state.deepspeed_plugin, config)


def _set_fsdp_up(plugin: Any, objective: Objective, config: TrainerSettings) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    there = {type(part).__name__ for part in objective.modules()}
    plugin.transformer_cls_names_to_wrap = [name for name in _BLOCKS if name in there]
    if config.run.precision == "bf16":
        # accelerate's policy would also round what blocks are given (noise levels, rotations)
        # and the loss, and sum gradients in bfloat16.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )


def _set_deepspeed_up(plugin: Any, config: TrainerSettings) -> None:
    _check_deepspeed(config, plugin.zero_stage)
    settings = plugin.deepspeed_config
    settings["train_micro_batch_size_per_gpu"] = config.run.batch_size
    settings["gradient_accumulation_steps"] = config.run.accumulation
    # A small parameter that is always kept whole would miss what `write` does.
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    if config.run.precision == "bf16":
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}


def _check_deepspeed(config: TrainerSettings, zero_stage: int) -> None:
    optimizer = config.optimizer
    if zero_stage == 3 and config.run.compile_blocks:
        raise SettingsError(
            "run.compile_blocks is set: DeepSpeed ZeRO-3 gathers parameters layer by layer, which "
            "compiled blocks have no place for. Unset it, or launch with fsdp.yaml or zero2.yaml."
        )
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
