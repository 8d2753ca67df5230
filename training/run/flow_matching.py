"""Updates and validation losses of the networks that are trained by flow matching.

Their objective takes inputs, noise levels (sigma of each sample) and noise.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..data.encoded import EncodedBatch
from ..data.samples import TrainingBatch
from ..losses import stratified_noise_levels
from .loop import TrainingRun
from .validation import NOISE_LEVELS


@runtime_checkable
class Inputs(Protocol):
    """What the network is given, besides noise."""

    @property
    def latent(self) -> Tensor:
        """Clean, (batch, channel, frame, height, width)."""
        ...


def flow_matching_update(
    run: TrainingRun,
    batch: TrainingBatch | EncodedBatch,
    inputs: Inputs,
    generator: torch.Generator,
    *,
    shift: float,
) -> Tensor:
    """Draw noise and its levels, learn from the batch, and return the noise.

    `generator` draws the noise; levels are spread evenly over the samples of all ranks.

    Raises:
        NotFiniteError, TrainingMemoryError: see `TrainingRun.update`.
    """
    noise = torch.randn(inputs.latent.shape, generator=generator, device=run.device)
    sigma = stratified_noise_levels(
        batch.num_samples,
        shift=shift,
        generator=run.generator(same_on_all_ranks=True),
        rank=run.rank,
        num_ranks=run.num_ranks,
    )
    run.update(batch, lambda: run.objective(inputs, sigma, noise))
    return noise


def loss_at_fixed_levels(run: TrainingRun, inputs: Inputs, generator: torch.Generator) -> float:
    """Mean loss of one sample over `NOISE_LEVELS`, all with the same noise."""
    noise = torch.randn(inputs.latent.shape, generator=generator, device=run.device)
    levels = torch.tensor(NOISE_LEVELS, device=run.device)
    losses = [float(run.objective(inputs, level[None], noise)) for level in levels]
    return sum(losses) / len(losses)
