"""What a trainer wraps for several ranks."""

from collections.abc import Callable
from typing import Any

from torch import nn


class Objective(nn.Module):
    """A network and its loss.

    Where parameters are split over ranks they are gathered when the wrapped module is called. So
    everything that computes with them is called through it: the losses of a batch, and whatever
    else is given as `inside` (generating samples, for one).
    """

    def forward(self, *args: Any, inside: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Return `losses(*args, **kwargs)`, or what `inside` returns."""
        return self.losses(*args, **kwargs) if inside is None else inside()

    def losses(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss of each sample."""
        raise NotImplementedError
