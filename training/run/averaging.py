"""A running mean of the parameters (EMA), which generates better than the last ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from .fragments import Fragments, WholeParameters


class ParameterAverage:
    """The exponential running mean of parameters, in their own precision and place.

    Where parameters are split over ranks, each rank has the mean of its own fragments.
    """

    def __init__(self, parameters: Mapping[str, Tensor] | Fragments, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        whole = isinstance(parameters, Mapping)
        self._parameters = WholeParameters(parameters) if whole else parameters
        self.mean = {name: value.clone() for name, value in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present parameters in."""
        self.num_updates += 1
        # Early on a long memory would hold the random start: it grows with the updates seen.
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        if isinstance(self._parameters, WholeParameters):
            present = [value for _, value in self._parameters.items()]
            torch._foreach_lerp_(list(self.mean.values()), present, 1 - decay)
            return
        for name, value in self._parameters.items():  # one by one: they may be copies
            self.mean[name].lerp_(value, 1 - decay)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the network compute with the means; the parameters come back to the bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        # In main memory: a GPU that just holds the parameters and their mean is full.
        kept = {name: value.to("cpu", copy=True) for name, value in self._parameters.items()}
        self._parameters.write(self.mean)
        for name, value in kept.items():
            self.mean[name].copy_(value)
