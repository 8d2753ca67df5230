"""What can go wrong in an update, in sentences that say what to do."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .settings import RunSettings


class NotFiniteError(ArithmeticError):
    """A loss or a gradient is NaN or infinite; the message names the samples."""


class TrainingMemoryError(MemoryError):
    """The device is full; the message says what to change."""


def not_finite_message(per_sample: Tensor, names: Sequence[str], step: int) -> str:
    """Name the samples of this rank whose loss is not finite."""
    bad = [n for n, ok in zip(names, per_sample.isfinite().tolist(), strict=True) if not ok]
    whose = f"sample {', '.join(bad)}" if bad else "a sample on another rank (see its message)"
    return (
        f"The loss of {whose} is not finite in the update after step {step}. Nothing of it was "
        "applied. Look at the sample; if it is sound, lower optimizer.learning_rate and resume "
        "from the last checkpoint."
    )


@contextmanager
def explaining_out_of_memory(
    settings: RunSettings, *, sharded: bool, offloads: bool = False
) -> Iterator[None]:
    """Turn CUDA's out-of-memory error into one that says what to change.

    Raises:
        TrainingMemoryError: in its place.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as e:
        advice = memory_advice(settings, sharded=sharded, offloads=offloads)
        raise TrainingMemoryError(advice) from e


def memory_advice(settings: RunSettings, *, sharded: bool, offloads: bool = False) -> str:
    """Say which of batch, checkpointing, sharding and size to change, in that order of cost."""
    advice = []
    if settings.precision == "fp32":
        advice.append("set run.precision to bf16 (activations halve)")
    if not settings.gradient_checkpointing:
        advice.append("turn run.gradient_checkpointing on (a third slower, far less memory)")
    elif settings.kept_blocks > 0:
        advice.append(f"lower run.kept_blocks from {settings.kept_blocks} (slower)")
    if settings.batch_size > 1:
        parts = _smallest_factor(settings.batch_size)
        advice.append(
            f"lower run.batch_size from {settings.batch_size} to {settings.batch_size // parts} "
            f"and raise run.accumulation from {settings.accumulation} to "
            f"{parts * settings.accumulation} (the same batch per update; a run that has "
            "checkpoints keeps both: start a new one from its weights)"
        )
    if not sharded:
        advice.append(
            "split parameters and optimiser over several GPUs with `accelerate launch "
            "--config_file training/launch/fsdp.yaml` (16 bytes per trained parameter are "
            "divided by their number)"
        )
    else:
        offload = (
            ", or launch with the *_offload.yaml of the same engine in training/launch, which "
            "keeps the optimiser in main memory (slow)"
        )
        advice.append(
            "split over more GPUs (a new run, from the gathered weights)"
            + ("" if offloads else offload)
        )
    if settings.ema_decay is not None:
        advice.append("set run.ema_decay to None (4 bytes per trained parameter)")
    advice.append("train at a smaller data.size")
    return "The device is out of memory. In this order: " + "; ".join(advice) + "."


def _smallest_factor(number: int) -> int:
    return next(factor for factor in range(2, number + 1) if number % factor == 0)
