"""Settings that all trainers share: the run, its data, its optimiser."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from ..data.samples import SampleSize

Tracker = Literal["tensorboard", "wandb", "none"]
Precision = Literal["bf16", "fp32"]


class SettingsError(ValueError):
    """A setting that cannot be; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How long and in which way to train."""

    output: Path
    """Folder of the run: config, checkpoints, metrics, validation, final weights."""

    num_steps: int
    """Updates in all."""

    batch_size: int
    """Samples per rank and forward pass."""

    accumulation: int = 1
    """Forward passes per update."""

    seed: int = 42
    """Of the order of the data, of the noise, and of new parameters."""

    precision: Precision = "bf16"
    """Of the computation. Trained parameters and the optimiser are always float32."""

    export_precision: Precision = "bf16"
    """Of the final weights."""

    gradient_checkpointing: bool = True
    """Compute activations twice instead of keeping them: a third slower, far less memory."""

    kept_blocks: float = 0.0
    """Share of a transformer's blocks that gradient checkpointing leaves out: where memory is left,
    it saves time."""

    compile_blocks: bool = False
    """Compile a transformer's blocks: a minute or two at the start, then faster on a GPU."""

    minutes: float | None = None
    """Time for the updates, all parts of a run that was stopped together. When it is over the run
    ends, as it does after `num_steps`. None: as long as they take."""

    ema_decay: float | None = None
    """Per update, of a running mean of the parameters that validation and the final weights use.
    None keeps none; it costs the memory of the parameters once more."""

    checkpoint_every: int = 200
    """Updates."""

    checkpoints_kept: int = 3
    """The newest ones."""

    validate_every: int = 200
    """Updates. 0: never."""

    resume: str = "latest"
    """`latest` continues the run in `output` if there is one; `never` refuses a folder with
    checkpoints; otherwise the path of a checkpoint."""

    tracker: Tracker = "tensorboard"
    """Where metrics go besides `metrics.jsonl`."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "accumulation", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise SettingsError(f"run.{name} is {getattr(self, name)}; expected at least 1.")
        if self.checkpoints_kept < 1 or self.validate_every < 0:
            raise SettingsError(
                f"run.checkpoints_kept is {self.checkpoints_kept} and run.validate_every is "
                f"{self.validate_every}; expected at least 1 and at least 0."
            )
        if not 0 <= self.kept_blocks <= 1:
            raise SettingsError(f"run.kept_blocks is {self.kept_blocks}; expected 0 to 1.")
        if self.minutes is not None and not self.minutes > 0:
            raise SettingsError(f"run.minutes is {self.minutes}; expected more than 0, or None.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise SettingsError(
                f"run.ema_decay is {self.ema_decay}; expected a number between 0 and 1, or None."
            )


EXPORT_DTYPES: dict[Precision, str] = {"bf16": "bfloat16", "fp32": "float32"}
"""torch's names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProceduralSource:
    """How samples are made where `data.train` or `data.validation` is `procedural`."""

    recipe: Literal["released", "tiny", "quick"] = "tiny"
    """What is drawn, as `python -m training.procedural` knows it; at `data.size`."""

    first_seed: int = 0
    """Of the samples to train on. Those of validation are others, always the same."""

    on_device: bool = True
    """Cast the rays on the device that trains, else on the CPU. Either is done by
    `data.num_workers` processes, or with 0 by the trainer itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """What to train on."""

    train: Path
    """Folder of shards, or `procedural`: made from seeds as they are needed."""

    size: SampleSize
    """Samples are cut to this."""

    validation: Path | None = None
    """Folder of shards that are not in `train`, or `procedural`. None: no validation."""

    num_validation_samples: int = 8
    """The first ones of `validation`."""

    num_workers: int = 8
    """Processes that read or make samples, per rank. 0: the trainer does."""

    max_samples: int | None = None
    """Use only the first ones of `train`."""

    encoded: Path | None = None
    """Folder that `python -m training.encode` made, in place of `train` (4D-STraG and 4D-ViSM): the
    frozen encoders then do nothing while one trains."""

    encoded_on_device: bool = False
    """Keep all encoded samples on the device that trains, instead of reading them as needed."""

    procedural: ProceduralSource = field(default_factory=ProceduralSource)
    """See `ProceduralSource`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """AdamW, its learning rate, and the limits on one update."""

    learning_rate: float
    """After the warm-up; see `decay`."""

    weight_decay: float
    """Decoupled; on every parameter, as published."""

    eps: float = 1e-8
    """Added to the root of the second moment."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Of the first and second moment."""

    decay: Literal["none", "cosine"] = "none"
    """`cosine`: from the highest learning rate to nothing at the end of the run, by its updates or
    by its time, whichever is farther."""

    warmup_steps: int = 0
    """Updates over which the learning rate rises from 0 in a line."""

    max_norm: float = 1.0
    """Longest gradient; a longer one is shortened to it."""

    max_norm_start: float | None = None
    """`max_norm` at the first update, from where it goes in a line. None: `max_norm` throughout."""

    max_norm_steps: int = 0
    """Updates over which it does so."""

    spike_ratio: float | None = None
    """After `max_norm_steps`, a gradient this many times too long is shortened further, by its
    ratio to `max_norm` but at most tenfold. None: not."""

    skip_above: float | None = None
    """An update whose mean loss is above is left out, after `skip_after_step`. None: none is."""

    skip_after_step: int = 50
    """See `skip_above`."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "max_norm", "eps"):
            if not getattr(self, name) > 0:
                raise SettingsError(
                    f"optimizer.{name} is {getattr(self, name)}; expected more than 0."
                )

    def learning_rate_at(self, step: int, progress: float = 0.0) -> float:
        """Return the learning rate of the update after `step` updates, a share of the run."""
        rise = min(1.0, (step + 1) / max(1, self.warmup_steps))
        fall = 0.5 * (1 + math.cos(math.pi * progress)) if self.decay == "cosine" else 1.0
        return self.learning_rate * rise * fall

    def max_norm_at(self, step: int) -> float:
        """Return the longest gradient of the update after `step` updates."""
        if self.max_norm_start is None or step >= self.max_norm_steps:
            return self.max_norm
        share = step / self.max_norm_steps
        return self.max_norm_start + share * (self.max_norm - self.max_norm_start)

    def skips(self, step: int, mean_loss: float) -> bool:
        """Whether an update with this loss is left out."""
        return self.skip_above is not None and (
            step > self.skip_after_step and mean_loss > self.skip_above
        )


@runtime_checkable
class TrainerSettings(Protocol):
    """What every trainer's config has."""

    @property
    def run(self) -> RunSettings:
        """See `RunSettings`."""
        ...

    @property
    def data(self) -> DataSettings:
        """See `DataSettings`."""
        ...

    @property
    def optimizer(self) -> OptimizerSettings:
        """See `OptimizerSettings`."""
        ...
