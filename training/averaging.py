"""A running mean of the parameters (EMA), which generates better than the last ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class ParameterAverage:
    """The exponential running mean of parameters, in their own precision and place."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.mean = {name: p.detach().clone() for name, p in parameters.items()}
        self._parameters = parameters

    @torch.no_grad()
    def update(self) -> None:
        """Take the present parameters in."""
        self.num_updates += 1
        # Early on a long memory would hold the random start: it grows with the updates seen.
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(
            list(self.mean.values()), [p.detach() for p in self._parameters.values()], 1 - decay
        )

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
        for name, parameter in self._parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.mean[name])
            self.mean[name].copy_(kept)
