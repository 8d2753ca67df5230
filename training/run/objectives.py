"""What a trainer wraps for several ranks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .export import Export


class Objective(nn.Module):
    """A network and its loss.

    Where parameters are split over ranks they are gathered when the wrapped module is called. So
    everything that computes with them is called through it: the losses of a batch, and whatever
    else is given as `inside` (generating samples, for one).
    """

    def __init__(self, *exports: Export) -> None:
        """Take how the network is written for use: one file, or several."""
        super().__init__()
        self.exports = exports
        self.autocast_to: torch.dtype | None = None

    def forward(self, *args: Any, inside: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Return `losses(*args, **kwargs)`, or a tuple of what `inside` returns.

        Engines look for tensors in what a module returns; in a tuple they pass over all else.
        """
        if self.autocast_to is None:
            return self.losses(*args, **kwargs) if inside is None else (inside(),)
        device = next(self.parameters()).device.type
        with torch.autocast(device, self.autocast_to):
            return self.losses(*args, **kwargs) if inside is None else (inside(),)

    def losses(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss of each sample; every objective has its own."""
        raise NotImplementedError
