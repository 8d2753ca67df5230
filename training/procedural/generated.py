"""Procedural batches made by worker processes that cast their rays on the GPU.

One process draws and casts a few tens of samples a second, whatever the GPU, because a scene is
many small tensors. So several processes share the device, and hand batches over in main memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ..data.samples import TrainingBatch, TrainingSample, stack_samples
from .dataset import ProceduralDataset
from .settings import ProceduralSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedBatches:
    """Batches of consecutive seeds, in their order; the same every time it is iterated."""

    settings: ProceduralSettings
    """What is drawn."""

    first_seed: int
    """Of the first sample."""

    batch_size: int
    """Samples in a batch."""

    num_batches: int
    """How many there are."""

    device: torch.device
    """What casts the rays, and where batches arrive."""

    num_workers: int
    """Processes; 0 makes the batches in this one."""

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[TrainingBatch]:
        """Yield the batches on the device."""
        size = self.batch_size
        dataset = ProceduralDataset(
            self.settings,
            num_samples=size * self.num_batches,
            first_seed=self.first_seed,
            device=self.device,
        )
        loader = DataLoader(
            dataset,
            batch_sampler=_Consecutive(size, self.num_batches),
            num_workers=self.num_workers,
            collate_fn=as_arrays,
            # A forked process could not use the GPU.
            multiprocessing_context="spawn" if self.num_workers else None,
            prefetch_factor=3 if self.num_workers else None,
            generator=torch.Generator().manual_seed(0),
        )
        for arrays in loader:
            yield as_batch(arrays).to(self.device)


class _Consecutive(Sampler[list[int]]):
    def __init__(self, size: int, count: int) -> None:
        self.size, self.count = size, count

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self.count):
            yield list(range(number * self.size, (number + 1) * self.size))


def as_arrays(samples: list[TrainingSample]) -> dict[str, Any]:
    """Stack samples as arrays, to be handed from one process to another."""
    # Arrays go through a pipe; tensors would need more shared memory than containers give.
    batch = stack_samples(samples)
    named = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return {n: v.cpu().numpy() if isinstance(v, Tensor) else v for n, v in named.items()}


def as_batch(arrays: dict[str, Any]) -> TrainingBatch:
    """Return the batch that `as_arrays` took apart."""
    values: dict[str, Any] = {
        n: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for n, v in arrays.items()
    }
    return TrainingBatch(**values)
