"""Updates of parameters until there were enough of them, or time is up.

The learning rate follows the share of the box that is used up, by updates or by the clock,
whichever is further. So it has fallen to nothing when a box ends, on a machine of any speed.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .averaging import ParameterAverage
from .errors import NotFiniteError

_log = logging.getLogger(__name__)

WARMUP_STEPS = 100
_REPORT_EVERY = 200
_FAST_START = 20
"""The first report comes early, so that one sees soon that nothing happens."""

Losses = Mapping[str, Tensor]
"""`loss` is made small; the others are told in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeBox:
    """When to stop."""

    steps: int
    """Updates, at most."""

    seconds: float = math.inf
    """From now on, at most; one update is made in any case."""

    _start: float = field(default_factory=lambda: time.perf_counter(), init=False)

    def progress(self, step: int) -> float:
        """Return the share that is used up after `step` updates; 1 or more: stop."""
        if step == 0:
            return 0.0
        return max(step / self.steps, self.elapsed / self.seconds)

    @property
    def elapsed(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._start


@dataclass(frozen=True, slots=True, kw_only=True)
class Updates:
    """How parameters are updated."""

    learning_rate: float
    """At its highest; it rises in a line and falls to nothing along half a cosine."""

    ema_decay: float
    """Of the running mean of the parameters."""

    autocast: Callable[[], torch.autocast]
    """In which losses are computed."""

    def learning_rate_at(self, step: int, progress: float) -> float:
        """Return the learning rate of the update after `step` updates."""
        rise = min(1.0, (step + 1) / WARMUP_STEPS)
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def optimize(
    parameters: Mapping[str, nn.Parameter],
    losses: Callable[[int, float], Losses],
    updates: Updates,
    box: TimeBox,
    label: str,
    at_quarters: Callable[[], None] = lambda: None,
) -> int:
    """Train until the box ends, and return the number of updates made.

    The parameters end as their running mean. `losses` is given the number of updates made and the
    share of the box used up; `at_quarters` is called three times on the way, with the running mean
    in the parameters' place.

    Raises:
        NotFiniteError: the loss or its gradient is NaN or infinite.
    """
    average = ParameterAverage(parameters, updates.ema_decay)
    values = list(parameters.values())
    fused = values[0].is_cuda
    rate = updates.learning_rate
    optimizer = torch.optim.AdamW(values, lr=rate, weight_decay=1e-3, fused=fused)
    step, progress, quarter = 0, 0.0, 1
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = updates.learning_rate_at(step, progress)
        with updates.autocast():
            parts = losses(step, progress)
        parts["loss"].backward()
        norm = nn.utils.clip_grad_norm_(values, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        step += 1
        progress = box.progress(step)
        if step % _REPORT_EVERY == 0 or step == _FAST_START or progress >= 1:
            _report(f"{label}, {step} updates, {box.elapsed:.0f} s", parts, norm)
        if quarter < 4 and quarter / 4 <= progress < 1:
            quarter = math.floor(4 * progress) + 1
            with average.in_use():
                at_quarters()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(average.mean[name])
    return step


def _report(when: str, parts: Losses, norm: Tensor) -> None:
    said = ", ".join(f"{name} {value.item():.4f}" for name, value in parts.items())
    _log.info("%s: %s, gradient %.2f", when, said, norm)
    if not math.isfinite(parts["loss"].item() + norm.item()):
        raise NotFiniteError(f"{when}: loss or gradient is not finite: {said}.")
