"""Training split over ranks: what may be launched, and what FSDP2 and DeepSpeed must be told."""

import importlib.metadata
import json
import logging
import math
import os
import time
import uuid
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from .objectives import Objective
from .settings import RunSettings, SettingsError, TrainerSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

_log = logging.getLogger(__name__)

_BLOCKS = ("WanTransformerBlock", "ResBlock", "SpatialTransformer", "TemporalTransformer")
"""Classes whose modules FSDP2 gathers one by one: those of Wan, and of Geo4D's denoiser."""

Engine = Literal["fsdp", "zero2", "zero3"]
"""`zero2` stands for stages 1 and 2."""

RANKS_WAIT = timedelta(hours=2)
"""For each other. The usual ten minutes are over before 17 billion parameters are gathered from a
slow disk."""
_FOLDER_WAIT_S = 90.0
"""What a network file system may need to show a new file on another machine (NFS: a minute)."""
_FSDP2_VERSIONS = {"accelerate": (1, 8), "torch": (2, 6)}


@runtime_checkable
class Ranks(Protocol):
    """Processes that work together: an `Accelerator`, or accelerate's `PartialState`."""

    @property
    def num_processes(self) -> int:
        """How many."""
        ...

    @property
    def is_main_process(self) -> bool:
        """Whether this is the first one."""
        ...


def new_accelerator(settings: RunSettings) -> "Accelerator":
    """Join the other ranks as the launch configuration says."""
    from accelerate import Accelerator
    from accelerate.utils import (
        GradientAccumulationPlugin,
        InitProcessGroupKwargs,
        ProjectConfiguration,
    )

    return Accelerator(
        mixed_precision="bf16" if settings.precision == "bf16" else "no",
        # The argument of that name would give way to what a launch configuration says.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            settings.accumulation,
            # Until they are summed up, every rank has the gradients of all parameters whole.
            sync_each_batch=_uses("FSDP"),
        ),
        log_with=None if settings.tracker == "none" else settings.tracker,
        project_config=ProjectConfiguration(str(settings.output), str(settings.output / "logs")),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=RANKS_WAIT)],
    )


def _uses(engine: Literal["FSDP", "DEEPSPEED"]) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{engine}") == "true"


def engine_of(accelerator: "Accelerator") -> Engine | None:
    """Return what splits parameters over ranks; None where nothing does."""
    from accelerate.utils import DistributedType

    if accelerator.distributed_type is DistributedType.FSDP:
        return "fsdp"
    if accelerator.distributed_type is DistributedType.DEEPSPEED:
        plugin: Any = accelerator.state.deepspeed_plugin
        return "zero3" if plugin.zero_stage == 3 else "zero2"
    return None


def offloaded(accelerator: "Accelerator") -> dict[str, str]:
    """Return what an engine keeps off the GPU -> where."""
    state: Any = accelerator.state
    engine = engine_of(accelerator)
    if engine is None:
        return {}
    if engine == "fsdp":
        from torch.distributed.fsdp import CPUOffloadPolicy

        is_off = isinstance(state.fsdp_plugin.cpu_offload, CPUOffloadPolicy)
        return {"parameters": "cpu"} if is_off else {}
    plugin = state.deepspeed_plugin
    places = {
        "optimizer": plugin.offload_optimizer_device,
        "parameters": plugin.offload_param_device,
    }
    return {what: str(place) for what, place in places.items() if place not in (None, "none")}


def check_launch() -> None:
    """Refuse, before anything is loaded, a launch that cannot train split over ranks.

    Raises:
        SettingsError: DeepSpeed is not installed, FSDP is of version 1, accelerate or torch is too
            old for version 2, or there is one process and nothing to gain.
    """
    import importlib.util

    use_deepspeed, use_fsdp = _uses("DEEPSPEED"), _uses("FSDP")
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
    if use_fsdp:
        _check_versions()
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


def _check_versions() -> None:
    for package, needed in _FSDP2_VERSIONS.items():
        version = importlib.metadata.version(package)
        if tuple(int(part) for part in version.split(".")[:2]) < needed:
            wanted = ".".join(map(str, needed))
            raise SettingsError(
                f"FSDP2 needs {package} {wanted} or newer, and {version} is installed: "
                f'pip install "{package}>={wanted}". Or launch with a DeepSpeed configuration.'
            )


def launch_of(accelerator: "Accelerator") -> dict[str, Any]:
    """Return what all ranks must have been launched with alike."""
    engine, state = engine_of(accelerator), cast(Any, accelerator.state)
    return {
        "engine": engine or "none",
        "zero_stage": state.deepspeed_plugin.zero_stage if engine in ("zero2", "zero3") else None,
        "offload": offloaded(accelerator),
    }


def check_shared_folder(ranks: Ranks, folder: Path) -> None:
    """Make the output folder, and refuse one that the ranks do not share.

    Raises:
        SettingsError: on every rank; says which ranks do not see what the first one writes.
    """
    if ranks.num_processes == 1:
        return
    from accelerate.utils import broadcast_object_list, gather_object

    told: list[Any] = [None, f".shared-{uuid.uuid4().hex}"]
    if ranks.is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / told[1]).touch()
        except OSError as e:
            told[0] = str(e)
    broadcast_object_list(told)
    if told[0] is not None:
        raise SettingsError(f"{folder} cannot be written: {told[0]}.")
    seen = gather_object([_appears(folder / told[1])])
    if ranks.is_main_process:
        (folder / told[1]).unlink()
    if not all(seen):
        blind = ", ".join(str(rank) for rank, sees in enumerate(seen) if not sees)
        raise SettingsError(
            f"{folder} is not shared by all ranks: rank {blind} does not see what rank 0 writes "
            "there. Every rank writes its part of a checkpoint: give one folder that all machines "
            "see, and start all ranks in the same folder or name it absolutely."
        )


def _appears(path: Path) -> bool:
    end = time.monotonic() + _FOLDER_WAIT_S
    # Not path.exists(): a network file system remembers longer that a file was not there.
    while not (path.parent.is_dir() and path.name in os.listdir(path.parent)):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def check_same_config(ranks: Ranks, config: Mapping[str, Any]) -> None:
    """Refuse ranks that were started with different settings.

    Raises:
        SettingsError: on every rank; names the settings.
    """
    if ranks.num_processes == 1:
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
            "them, on every machine, with the same command line and launch configuration."
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
