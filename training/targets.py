"""From a batch to what the networks are taught: normalised motion, and how much each place counts.

Axes: batch, xyz, frame, height, width.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from more4d_backend.motion import MotionNormalization, normalize_motion

from .data.samples import TrainingBatch


def normalized_motion(
    batch: TrainingBatch, normalization: MotionNormalization
) -> Float[Tensor, "batch 3 frame height width"]:
    """Normalise the motion of every sample with its own cameras."""
    motions = []
    for index in range(batch.num_samples):
        positions = batch.positions(index)
        motion = normalize_motion(positions, batch.cameras(index), normalization)
        motions.append(rearrange(motion, "f h w xyz -> xyz f h w"))
    return torch.stack(motions)
