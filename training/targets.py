"""From a batch to what the networks are taught: normalised motion, and how much each place counts.

Axes: batch, xyz, frame, height, width.
"""

from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from more4d_backend.motion import MotionNormalization, normalize_motion

from .samples import TrainingBatch


def normalized_motion(
    batch: TrainingBatch, normalization: MotionNormalization, *, by_depth: bool = True
) -> Float[Tensor, "batch 3 frame height width"]:
    """Normalise the motion of every sample with its own cameras.

    `by_depth=False` divides by the median depth of the sample instead of each pixel's own: the
    ablation of depth-guided normalisation.
    """
    batch = batch if by_depth else _at_median_depth(batch)
    motions = []
    for index in range(batch.num_samples):
        positions = batch.positions(index)
        motion = normalize_motion(positions, batch.cameras(index), normalization)
        motions.append(rearrange(motion, "f h w xyz -> xyz f h w"))
    return torch.stack(motions)


def _at_median_depth(batch: TrainingBatch) -> TrainingBatch:
    median = batch.depth.flatten(1).median(1).values
    return replace(batch, depth=median[:, None, None].expand_as(batch.depth).contiguous())
