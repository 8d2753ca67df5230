"""Endless batches of clips, all of a batch at one size; resumable like `TrainingLoader`."""

import logging
from collections.abc import Iterator, Sized
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.loader import RankBatches, SampleOrder, TrainingLoader
from ..data.samples import SampleError
from .clips import GeometryBatch, GeometryClip, check_clip, fit_clip, stack_clips
from .recipes import Geo4DConfig

_log = logging.getLogger(__name__)

_CLIPS_TRIED = 20
_Key = tuple[int, tuple[int, int]]


class ClipLoader(TrainingLoader):
    """Batches for one rank; knows which clips it has handed out."""

    def __init__(
        self,
        dataset: Dataset[GeometryClip],
        config: Geo4DConfig,
        *,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        """Prepare to read `dataset` (sized, by number).

        Raises:
            SampleError: fewer clips than ranks.
        """
        super().__init__(
            cast(Any, dataset),
            batch_size=config.run.batch_size,
            seed=config.run.seed,
            rank=rank,
            num_ranks=num_ranks,
            num_workers=config.data.num_workers,
        )
        self.config, self.clips = config, dataset

    def __iter__(self) -> Iterator[Any]:
        """Yield batches (`GeometryBatch`) from the present place on; each one moves the place."""
        state = self.state
        loader = DataLoader(
            _Fitted(self.clips),
            batch_sampler=_SizedBatches(
                batches=RankBatches(
                    order=SampleOrder(state.num_samples, state.seed),
                    batch_size=self.batch_size,
                    rank=self.rank,
                    num_ranks=self.num_ranks,
                    start=state.position,
                ),
                config=self.config,
            ),
            num_workers=self.num_workers,
            collate_fn=_stacked,
            pin_memory=torch.cuda.is_available(),
            # A seed of its own, or the loader would draw one from the trainer's random state.
            generator=torch.Generator().manual_seed(state.seed),
        )
        # Counted here and not in the sampler, which runs ahead of what the trainer has seen.
        for batch in loader:
            position = self.state.position + self.batch_size * self.num_ranks
            self.state = replace(self.state, position=position)
            yield batch


@dataclass(frozen=True, slots=True, kw_only=True)
class _SizedBatches(Sampler[list[_Key]]):
    """Numbers of clips, each with its batch's size; all ranks have the same size."""

    batches: RankBatches
    config: Geo4DConfig

    def __iter__(self) -> Iterator[list[_Key]]:
        whole = self.batches.batch_size * self.batches.num_ranks
        number = self.batches.start // whole
        for indices in self.batches:
            sizes = self.config.stage_at(number // self.config.run.accumulation).sizes_hw
            drawn = np.random.SeedSequence([self.batches.order.seed, number]).generate_state(1)[0]
            size = sizes[int(drawn) % len(sizes)]
            yield [(index, size) for index in indices]
            number += 1


class _Fitted(Dataset[GeometryClip]):
    def __init__(self, clips: Dataset[GeometryClip]) -> None:
        self._clips = clips

    def __getitem__(self, key: _Key) -> GeometryClip:
        index, size_hw = key
        count = len(cast(Sized, self._clips))
        for other in range(index, index + _CLIPS_TRIED):
            try:
                clip = fit_clip(self._clips[other % count], size_hw)
                check_clip(clip)
            except SampleError as e:  # nothing but sky, say: known only when it is read
                _log.warning("%s The next clip takes its place.", e)
            else:
                return clip
        raise SampleError(
            f"Nothing can be learned from {_CLIPS_TRIED} clips in a row; see the warnings above."
        )


def _stacked(clips: list[GeometryClip]) -> GeometryBatch:
    return stack_clips(clips)
