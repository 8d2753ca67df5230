"""Errors of dense motion by where they are: edges and interiors, small and large objects.

Axes: frame, height, width, xyz. Motion is that of the pixels of frame 0, in normalised units.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import max_pool2d

from .tables import NO_RATIO, Ratio
from .trajectories import check_finite, still_motion

NO_OBJECT = -1
"""In `object_index`: the pixel shows none."""

EDGE_PX = 2
"""Pixels up to this far from a motion edge are no interior."""

RADIUS_CLASSES = {"< 8 px": (0.0, 8.0), "8 to 16 px": (8.0, 16.0), "> 16 px": (16.0, math.inf)}
"""By sqrt(area / pi) of what frame 0 shows of an object; the lower bound belongs to the class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionFieldErrors:
    """R = sum |error| / sum |motion| after frame 0, over all three axes, and parts of it."""

    overall: Ratio
    """All pixels; errors of resting pixels count too."""

    interior: Ratio
    """Pixels of moving objects more than `EDGE_PX` from any motion edge."""

    by_radius: Mapping[str, Ratio]
    """Pixels of moving objects, by the size of the object (`RADIUS_CLASSES`)."""

    still: float | None
    """99th percentile of the motion of resting pixels, relative to the mean true motion of
    moving ones."""


def motion_field_errors(
    predicted: Float[Tensor, "frame height width 3"],
    true: Float[Tensor, "frame height width 3"],
    counts: Bool[Tensor, "frame height width"],
    object_index: Int[Tensor, "height width"] | None = None,
) -> MotionFieldErrors:
    """Compare dense motion.

    `object_index` tells objects apart, `NO_OBJECT` where there is none; without it all that moves
    is one object. An object moves if any of its pixels does.

    Raises:
        EvaluationError: the prediction is not finite where it counts, or nothing counts.
    """
    check_finite(predicted, counts)
    moved = ((true != 0).any(-1) & counts).any(0)
    labels = _labels_of_moving(moved, object_index)
    error = (predicted - true).abs().sum(-1).masked_fill(~counts, 0)[1:].double().sum(0)
    motion = true.abs().sum(-1).masked_fill(~counts, 0)[1:].double().sum(0)
    moving = labels != NO_OBJECT
    return MotionFieldErrors(
        overall=_ratio(error, motion, torch.ones_like(moving)),
        interior=_ratio(error, motion, moving & interior(labels)),
        by_radius=_by_radius(error, motion, labels),
        still=still_motion(
            predicted.flatten(1, 2), true.flatten(1, 2), counts.flatten(1), moving.flatten(), 0.99
        ),
    )


def interior(
    labels: Int[Tensor, "height width"], distance_px: int = EDGE_PX
) -> Bool[Tensor, "height width"]:
    """Which pixels are farther than `distance_px`, along either axis, from another label."""
    values = labels[None].float()
    window = 2 * distance_px + 1
    highest = max_pool2d(values, window, stride=1, padding=distance_px)
    lowest = -max_pool2d(-values, window, stride=1, padding=distance_px)
    return (highest == lowest)[0]


def _labels_of_moving(
    moved: Bool[Tensor, "height width"], object_index: Int[Tensor, "height width"] | None
) -> Int[Tensor, "height width"]:
    """Label what moves, and nothing else."""
    if object_index is None:
        return moved.long() + NO_OBJECT
    labels = object_index.long()
    return labels.masked_fill(~torch.isin(labels, labels[moved]), NO_OBJECT)


def _by_radius(
    error: Float[Tensor, "height width"],
    motion: Float[Tensor, "height width"],
    labels: Int[Tensor, "height width"],
) -> dict[str, Ratio]:
    classes = dict.fromkeys(RADIUS_CLASSES, NO_RATIO)
    for label in labels.unique().tolist():
        if label == NO_OBJECT:
            continue
        mask = labels == label
        radius = math.sqrt(int(mask.sum()) / math.pi)
        for name, (low, high) in RADIUS_CLASSES.items():
            if low <= radius < high:
                classes[name] += _ratio(error, motion, mask)
    return classes


def _ratio(error: Tensor, motion: Tensor, mask: Tensor) -> Ratio:
    return Ratio(amount=float(error[mask].sum()), reference=float(motion[mask].sum()))
