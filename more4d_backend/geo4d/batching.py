"""Batches that get smaller when the device runs out of memory."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from ..devices import DeviceMemoryError, is_out_of_memory

_log = logging.getLogger(__name__)

T = TypeVar("T")


class ShrinkingBatches:
    """Runs work over items in batches; halves the batch, for good, when memory does not suffice."""

    def __init__(self, size: int, what: str, device: torch.device, advice: str) -> None:
        """Begin with `size` items of `what` at a time; `advice` is for when one is too many."""
        self.size, self.what, self.device, self.advice = size, what, device, advice

    def run(self, num_items: int, work: Callable[[slice], T]) -> list[T]:
        """Return what `work` makes of each batch, in order.

        Raises:
            DeviceMemoryError: one item does not fit.
        """
        results: list[T] = []
        start = 0
        while start < num_items:
            stop = min(start + self.size, num_items)
            try:
                results.append(work(slice(start, stop)))
            except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as e:
                if not is_out_of_memory(e):
                    raise
                self._shrink(stop - start, e)
            else:
                start = stop
                continue
            # Outside of the handler: the error's traceback would keep the activations alive.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return results

    def _shrink(self, tried: int, error: BaseException) -> None:
        if tried == 1:
            raise DeviceMemoryError(
                f"{self.device} has not enough memory for one of the {self.what}. {self.advice}"
            ) from error
        self.size = max(tried // 2, 1)
        _log.warning(
            "%s ran out of memory with %d %s at one time; going on with %d.",
            self.device,
            tried,
            self.what,
            self.size,
        )
