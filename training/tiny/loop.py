"""How the embedded parts are trained: a short loop that goes on where it was stopped.

A training may have a time as well as a number of updates. Then its course (learning rate, phases)
follows whichever is farther, so that it is whole when the time is over.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from more4d_backend.files import replacing

from ..procedural.dataset import PROCEDURAL_RECIPES
from ..procedural.generated import GeneratedBatches
from ..run.averaging import ParameterAverage
from ..run.errors import NotFiniteError

_log = logging.getLogger(__name__)

SEEDS_APART = 1_000_000
"""The samples of training seed s begin at s times this."""
_WARMUP_STEPS = 100
_SAVE_EVERY = 1000
_SAY_EVERY = 100


class DeadTrainingError(RuntimeError):
    """A training that does not learn; the message says what was expected when."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyTraining:
    """How one of the embedded parts is trained."""

    part: Literal["vae", "depth", "text"]
    """Which."""

    output: Path = Path("runs/tiny")
    """Folder for the weights."""

    start: Path | None = None
    """Folder of a training that has ended: this one goes on from what it wrote. VAEs alone."""

    steps: int
    """Updates, at most."""

    minutes: float | None = None
    """Time for them, from the first one on (later ones of a continued training count on). None: as
    long as they take."""

    batch_size: int
    """Pictures or captions of one update. The VAEs have sizes of their own."""

    learning_rate: float
    """At its highest; it rises in a line and falls to nothing along half a cosine."""

    seed: int = 1
    """Of parameters and data."""

    device: str = "cuda"
    """Where."""

    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the computation; parameters are float32."""

    workers: int = 8
    """Processes that draw samples."""

    pool_size: int
    """Videos or captions that are drawn before training. Pictures are read from `output`."""

    compile: bool = False
    """Compile the VAEs. They are half again as quick after some minutes."""

    must_fall: tuple[str, float, int] | None = None
    """(part of the loss, bound, updates): stop with an error where it is not below by then."""

    ema_decay: float = 0.995
    """Of the running mean of the parameters, which is what is written."""

    @property
    def unfinished(self) -> Path:
        """What a training that was stopped goes on with."""
        return self.output / f"{self.part}_unfinished.pt"

    @property
    def recipe(self) -> str:
        """What made the weights, for their files."""
        time = "" if self.minutes is None else f" --minutes {self.minutes:g}"
        start = "" if self.start is None else " --start (of another, see the card)"
        return (
            f"training.train_tiny {self.part}{start} --steps {self.steps}{time} --seed {self.seed} "
            f"--batch-size {self.batch_size} --learning-rate {self.learning_rate:g}"
        )

    def batches(self) -> GeneratedBatches:
        """Draw `pool_size` samples with videos, of other seeds than the pictures."""
        return GeneratedBatches(
            settings=PROCEDURAL_RECIPES["tiny"](),
            first_seed=self.seed * SEEDS_APART + SEEDS_APART // 2,
            batch_size=self.batch_size,
            num_batches=math.ceil(self.pool_size / self.batch_size),
            device=torch.device(self.device),
            num_workers=self.workers,
        )

    def progress(self, step: int, seconds: float) -> float:
        """Return the share of the training that is done, 0 to 1."""
        by_time = 0.0 if self.minutes is None else seconds / (60 * self.minutes)
        return min(1.0, max(step / self.steps, by_time))

    def learning_rate_at(self, step: int, progress: float) -> float:
        """Return the learning rate of the update after `step` updates."""
        rise = min(1.0, (step + 1) / min(_WARMUP_STEPS, max(1, self.steps // 4)))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * progress))

    def autocast(self) -> torch.autocast:
        """Compute in bfloat16 inside, where the settings say so."""
        device = torch.device(self.device).type
        return torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16")


Losses = Mapping[str, Tensor]
"""Parts of a loss by name; `loss` is what is made small."""


def train_tiny(
    model: nn.Module,
    losses: Callable[[float, ParameterAverage], Losses],
    training: TinyTraining,
    generator: torch.Generator,
) -> ParameterAverage:
    """Train, or go on with what was begun; return the running mean of the parameters.

    `losses` is given the share of the training that is done. Remove `training.unfinished` when the
    weights are written.

    Raises:
        NotFiniteError: a loss or a gradient is NaN or infinite.
        DeadTrainingError: see `TinyTraining.must_fall`.
    """
    parameters = dict(model.named_parameters())
    rate = training.learning_rate
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    average = ParameterAverage(parameters, training.ema_decay)
    unfinished = _Unfinished(model, optimizer, average, generator)
    path = training.unfinished
    step, seconds_before = unfinished.read(path) if path.exists() else (0, 0.0)
    start, said = time.perf_counter() - seconds_before, _Said(training)
    while (progress := training.progress(step, seconds := time.perf_counter() - start)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate_at(step, progress)
        with training.autocast():
            parts = losses(progress, average)
        parts["loss"].backward()
        norm = nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        step += 1
        said.add(step, seconds, {**parts, "gradient": norm})
        if step % _SAVE_EVERY == 0 and step < training.steps:
            unfinished.write(path, step, time.perf_counter() - start)
    _log.info("%s: %d updates in %.0f s", training.part, step, time.perf_counter() - start)
    # What comes now may fail too; the same command then goes on from here.
    unfinished.write(path, step, time.perf_counter() - start)
    return average


class _Said:
    """What a training tells, now and then: medians, because single batches differ much."""

    def __init__(self, training: TinyTraining) -> None:
        self._training = training
        self._recent: list[dict[str, Tensor]] = []

    def add(self, step: int, seconds: float, values: Mapping[str, Tensor]) -> None:
        """Take the values of an update in, without waiting for the device."""
        self._recent.append({name: value.detach() for name, value in values.items()})
        if step != 1 and step % _SAY_EVERY and step != self._training.steps:
            return
        medians = {
            name: float(torch.stack([r[name] for r in self._recent]).median()) for name in values
        }
        self._recent.clear()
        said = ", ".join(f"{name} {value:.4f}" for name, value in medians.items())
        _log.info("step %d, %.0f s: %s", step, seconds, said)
        if not all(map(math.isfinite, medians.values())):
            raise NotFiniteError(f"Loss or gradient is not finite by step {step}: {said}.")
        name, bound, by_step = self._training.must_fall or ("", 0.0, 0)
        if name and step in range(by_step, by_step + _SAY_EVERY) and not medians[name] < bound:
            raise DeadTrainingError(
                f"{self._training.part}: {name} is {medians[name]:.3f} after {step} updates; "
                f"expected less than {bound}. It does not learn, and is stopped to spare the rest."
            )


@dataclass(frozen=True, slots=True)
class _Unfinished:
    """What a training is continued from, in one file."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: ParameterAverage
    generator: torch.Generator

    def write(self, path: Path, step: int, seconds: float) -> None:
        """Write everything as it is after `step` updates."""
        state = {
            "step": step,
            "seconds": seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.mean,
            "averaged_updates": self.average.num_updates,
            "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state_all(),
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def read(self, path: Path) -> tuple[int, float]:
        """Take everything over; return the number of updates done, and how long they took."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, mean in state["average"].items():
            self.average.mean[name].copy_(mean)
        self.average.num_updates = state["averaged_updates"]
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        torch.cuda.set_rng_state_all(state["device_random"])
        _log.info("%s: %d updates are done", path, state["step"])
        return state["step"], state["seconds"]
