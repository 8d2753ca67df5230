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
def explaining_out_of_memory(settings: RunSettings, *, sharded: bool) -> Iterator[None]:
    """Turn CUDA's out-of-memory error into one that says what to change.

    Raises:
        TrainingMemoryError: in its place.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as e:
        raise TrainingMemoryError(memory_advice(settings, sharded=sharded)) from e


def memory_advice(settings: RunSettings, *, sharded: bool) -> str:
    """Say which of batch, checkpointing, sharding and size to change, in that order of cost."""
    advice = []
    if settings.precision == "fp32":
        advice.append("set run.precision to bf16 (activations halve)")
    if not settings.gradient_checkpointing:
        advice.append("turn run.gradient_checkpointing on (a third slower, far less memory)")
    elif settings.kept_blocks > 0:
        advice.append(f"lower run.kept_blocks from {settings.kept_blocks} (slower)")
    if settings.batch_size > 1:
        advice.append(
            f"lower run.batch_size from {settings.batch_size} to {settings.batch_size // 2} and "
            f"raise run.accumulation from {settings.accumulation} to {2 * settings.accumulation} "
            "(the same batch per update)"
        )
    if not sharded:
        advice.append(
            "split parameters and optimiser over several GPUs with `accelerate launch "
            "--config_file training/launch/fsdp.yaml` (16 bytes per trained parameter are "
            "divided by their number)"
        )
    else:
        advice.append(
            "split over more GPUs, or launch with training/launch/fsdp_offload.yaml, which keeps "
            "parameters and optimiser in main memory (slow)"
        )
    if settings.ema_decay is not None:
        advice.append("set run.ema_decay to None (4 bytes per trained parameter)")
    advice.append("train at a smaller data.size")
    return "The device is out of memory. In this order: " + "; ".join(advice) + "."
