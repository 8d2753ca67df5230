"""How the embedded parts are trained: a short loop that goes on where it was stopped."""

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

from .averaging import ParameterAverage
from .generated import GeneratedBatches
from .procedural import PROCEDURAL_RECIPES
from .run_errors import NotFiniteError

_log = logging.getLogger(__name__)

SEEDS_APART = 1_000_000
"""The samples of training seed s begin at s times this."""
_WARMUP_STEPS = 100
_SAVE_EVERY = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyTraining:
    """How one of the embedded parts is trained."""

    part: Literal["vae", "depth"]
    """Which."""

    output: Path = Path("runs/tiny")
    """Folder for the weights."""

    steps: int
    """Updates."""

    batch_size: int
    """Samples of one update."""

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
    """Samples that are drawn, before training."""

    compile: bool = False
    """Compile the VAEs. They are half again as quick after some minutes."""

    ema_decay: float = 0.995
    """Of the running mean of the parameters, which is what is written."""

    def batches(self, *, first: int, count: int) -> GeneratedBatches:
        """Draw `count` batches, from sample `first` of this training's seed on."""
        return GeneratedBatches(
            settings=PROCEDURAL_RECIPES["tiny"](),
            first_seed=self.seed * SEEDS_APART + first,
            batch_size=self.batch_size,
            num_batches=count,
            device=torch.device(self.device),
            num_workers=self.workers,
        )

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of the update after `step` updates."""
        rise = min(1.0, (step + 1) / min(_WARMUP_STEPS, max(1, self.steps // 4)))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def autocast(self) -> torch.autocast:
        """Compute in bfloat16 inside, where the settings say so."""
        device = torch.device(self.device).type
        return torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16")


Losses = Mapping[str, Tensor]
"""Parts of a loss by name; `loss` is what is made small."""


def train_tiny(
    model: nn.Module,
    losses: Callable[[int, ParameterAverage], Losses],
    training: TinyTraining,
    generator: torch.Generator,
) -> ParameterAverage:
    """Train, or go on with what was begun; return the running mean of the parameters."""
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=training.learning_rate, weight_decay=1e-3, fused=True
    )
    average = ParameterAverage(parameters, training.ema_decay)
    unfinished = _Unfinished(model, optimizer, average, generator)
    path = training.output / f"{training.part}_unfinished.pt"
    first = unfinished.read(path) if path.exists() else 0
    start = time.perf_counter()
    for step in range(first, training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate_at(step)
        with training.autocast():
            parts = losses(step, average)
        parts["loss"].backward()
        norm = nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        done = step + 1
        if step % 200 == 0 or done == training.steps:
            seconds = time.perf_counter() - start
            said = ", ".join(f"{name} {value.item():.4f}" for name, value in parts.items())
            _log.info("step %d, %.0f s: %s, gradient %.2f", step, seconds, said, norm)
            if not math.isfinite(parts["loss"].item() + norm.item()):
                raise NotFiniteError(f"Loss or gradient is not finite at step {step}: {said}.")
        if done % _SAVE_EVERY == 0 and done < training.steps:
            unfinished.write(path, done)
    path.unlink(missing_ok=True)
    return average


@dataclass(frozen=True, slots=True)
class _Unfinished:
    """What a training is continued from, in one file."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: ParameterAverage
    generator: torch.Generator

    def write(self, path: Path, step: int) -> None:
        """Write everything as it is after `step` updates."""
        state = {
            "step": step,
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

    def read(self, path: Path) -> int:
        """Take everything over, and return the number of updates done."""
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
        return state["step"]
