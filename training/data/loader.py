"""Batches of samples: one endless shuffled order, cut among ranks, resumable to the sample."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..procedural.dataset import ProceduralDataset
from ..procedural.generated import as_arrays, as_batch
from ..procedural.pictures import PictureSamples
from ..run.settings import TrainerSettings
from .encoded import EncodedBatch, EncodedSamples
from .samples import SampleError, TrainingBatch, TrainingSample, stack_samples

_log = logging.getLogger(__name__)


class SampleOrder:
    """Epoch after epoch of all samples, each epoch shuffled anew, as one endless sequence.

    Batches cut this sequence without regard to where an epoch ends, so no sample is dropped or
    repeated to fill a batch, and all ranks always have equally many batches.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self._epoch = -1
        self._shuffled: list[int] = []

    def __getitem__(self, position: int) -> int:
        """Return the number of the sample at `position` of the sequence."""
        epoch, place = divmod(position, self.num_samples)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._shuffled = torch.randperm(self.num_samples, generator=generator).tolist()
            self._epoch = epoch
        return self._shuffled[place]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBatches(Sampler[list[int]]):
    """The endless batches of sample numbers of one rank."""

    order: SampleOrder
    """Shared by all ranks."""

    batch_size: int
    """Samples per rank and batch."""

    rank: int
    """0 to `num_ranks` - 1."""

    num_ranks: int
    """Processes that train together."""

    start: int
    """Position in `order` at which the first batch of all ranks together begins."""

    def __iter__(self) -> Iterator[list[int]]:
        position = self.start + self.rank * self.batch_size
        while True:
            yield [self.order[position + i] for i in range(self.batch_size)]
            position += self.num_ranks * self.batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderState:
    """The place in the data. Valid for any number of ranks and workers."""

    seed: int
    """Of the shuffling."""

    num_samples: int
    """In the data set, to notice another one."""

    position: int
    """Samples that all ranks together have been given, since the first epoch began."""

    @property
    def epoch(self) -> int:
        """Number of complete passes."""
        return self.position // self.num_samples


class TrainingLoader:
    """Endless batches for one rank; knows which samples it has handed out."""

    def __init__(
        self,
        dataset: Dataset[TrainingSample] | EncodedSamples,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        num_workers: int = 0,
    ) -> None:
        """Prepare to read `dataset` (sized, by number).

        Raises:
            SampleError: fewer samples than ranks.
        """
        num_samples = len(dataset)  # type: ignore[arg-type]
        if num_samples < num_ranks:
            raise SampleError(
                f"The data set has {num_samples} samples for {num_ranks} ranks; expected at least "
                "one each. Add samples or start fewer processes."
            )
        if num_samples < batch_size * num_ranks:
            _log.warning(
                "A batch of all ranks (%d x %d) holds some of the %d samples twice.",
                *(num_ranks, batch_size, num_samples),
            )
        self.dataset = dataset
        self.batch_size, self.rank, self.num_ranks = batch_size, rank, num_ranks
        self.num_workers = num_workers
        self.state = LoaderState(seed=seed, num_samples=num_samples, position=0)

    @classmethod
    def of_run(
        cls,
        dataset: Dataset[TrainingSample] | EncodedSamples,
        config: TrainerSettings,
        rank: int,
        num_ranks: int,
    ) -> "TrainingLoader":
        """Prepare to read as a trainer's settings say."""
        return cls(
            dataset,
            batch_size=config.run.batch_size,
            seed=config.run.seed,
            rank=rank,
            num_ranks=num_ranks,
            num_workers=config.data.num_workers,
        )

    def resume(self, state: LoaderState) -> None:
        """Go to a place in the data; the next iteration starts there.

        Raises:
            SampleError: the place belongs to another data set or shuffling.
        """
        here, there = self.state, state
        if (here.seed, here.num_samples) != (there.seed, there.num_samples):
            raise SampleError(
                f"The checkpoint was made with {there.num_samples} samples shuffled by seed "
                f"{there.seed}; here are {here.num_samples} and seed {here.seed}. Continue with "
                "the same data, or start a new run from the weights."
            )
        self.state = state

    def __iter__(self) -> Iterator[TrainingBatch | EncodedBatch]:
        """Yield batches from the present place on; each one moves the place."""
        state = self.state
        batches = RankBatches(
            order=SampleOrder(state.num_samples, state.seed),
            batch_size=self.batch_size,
            rank=self.rank,
            num_ranks=self.num_ranks,
            start=state.position,
        )
        # Counted here and not in the sampler, which runs ahead of what the trainer has seen.
        for batch in self._batches(batches):
            self.state = LoaderState(
                seed=state.seed,
                num_samples=state.num_samples,
                position=self.state.position + self.batch_size * self.num_ranks,
            )
            yield batch

    def _batches(self, batches: RankBatches) -> Iterator[TrainingBatch | EncodedBatch]:
        if isinstance(self.dataset, EncodedSamples):
            for numbers in batches:
                yield self.dataset.batch(numbers)
            return
        # Workers that use the GPU cannot be forked, and hand their batches over in main memory.
        is_abroad = self.num_workers > 0 and _device_of(self.dataset).type != "cpu"
        loader = DataLoader(
            self.dataset,
            batch_sampler=batches,
            num_workers=0 if isinstance(self.dataset, PictureSamples) else self.num_workers,
            collate_fn=_handed_over if is_abroad else stack_samples,
            multiprocessing_context="spawn" if is_abroad else None,
            pin_memory=torch.cuda.is_available(),
            # A seed of its own, or the loader would draw one from the trainer's random state.
            generator=torch.Generator().manual_seed(self.state.seed),
        )
        for batch in loader:
            yield batch if isinstance(batch, TrainingBatch) else batch.batch()


@dataclass(frozen=True, slots=True, kw_only=True)
class _HandedOver:
    """A batch on its way from one process to another."""

    arrays: dict[str, Any]

    def batch(self) -> TrainingBatch:
        return as_batch(self.arrays)

    def pin_memory(self) -> TrainingBatch:
        """The data loader calls this, beside the trainer's own work."""
        return self.batch().pin_memory()


def _handed_over(samples: list[TrainingSample]) -> _HandedOver:
    return _HandedOver(arrays=as_arrays(samples))


def _device_of(dataset: Dataset[TrainingSample]) -> torch.device:
    return dataset.device if isinstance(dataset, ProceduralDataset) else torch.device("cpu")
