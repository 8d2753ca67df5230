"""How far predicted points are from the true ones.

Axes: frame, point, xyz. `counts` says which points count in which frame: those whose true place
is known, and usually seen. Frame 0 never counts, because there every motion is zero.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .tables import EvaluationError, Ratio

PIXEL_THRESHOLDS = (1, 2, 4, 8, 16)
"""Of TAPVid-3D: distances that these many pixels span at the depth of the true point."""

_QUANTILE_SAMPLES = 1_000_000
"""Enough values for a quantile, and few enough for torch.quantile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndPointErrors:
    """Euclidean distance between predicted and true motion, in the units of the motion."""

    mean: float
    """Over all points that count."""

    relative: Ratio
    """To the error of predicting that nothing moves: sum of errors over sum of true motion."""

    moving: Ratio
    """The same over moving points alone."""

    still: Ratio
    """What points that rest add to `relative`: their errors over the true motion of all."""


def moving_points(
    motion: Float[Tensor, "frame point 3"],
    counts: Bool[Tensor, "frame point"],
    threshold: Float[Tensor, "point"] | float,
) -> Bool[Tensor, "point"]:
    """Which points are ever farther than `threshold` from where they began, where they count."""
    distance = motion.norm(dim=-1).masked_fill(~counts, 0)
    return distance.amax(0) > threshold


def end_point_errors(
    predicted: Float[Tensor, "frame point 3"],
    true: Float[Tensor, "frame point 3"],
    counts: Bool[Tensor, "frame point"],
    moving: Bool[Tensor, "point"],
) -> EndPointErrors:
    """Compare two motions of the same points.

    Raises:
        EvaluationError: the prediction is not finite where it counts, or nothing counts.
    """
    check_finite(predicted, counts)
    counts = counts[1:]
    error = (predicted - true)[1:].norm(dim=-1).masked_fill(~counts, 0).double()
    motion = true[1:].norm(dim=-1).masked_fill(~counts, 0).double()
    total = float(motion.sum())
    return EndPointErrors(
        mean=float(error.sum() / counts.sum()),
        relative=Ratio(amount=float(error.sum()), reference=total),
        moving=Ratio(
            amount=float(error[:, moving].sum()), reference=float(motion[:, moving].sum())
        ),
        still=Ratio(amount=float(error[:, ~moving].sum()), reference=total),
    )


def check_finite(
    predicted: Float[Tensor, "frame *point 3"], counts: Bool[Tensor, "frame *point"]
) -> None:
    """Refuse a prediction that says nothing, or truth that asks nothing.

    Raises:
        EvaluationError: the prediction is not finite where it counts, or nothing counts.
    """
    if len(counts) < 2 or not counts[1:].any():
        raise EvaluationError(
            "No point counts after frame 0: there are fewer than two frames, or the truth sees "
            "no point again."
        )
    lost = counts & ~predicted.isfinite().all(-1)
    if lost.any():
        frame = int(lost.flatten(1).any(1).nonzero()[0])
        raise EvaluationError(
            f"The prediction is NaN or infinite for {int(lost.sum())} points that count, first in "
            f"frame {frame}."
        )


def still_motion(
    predicted: Float[Tensor, "frame point 3"],
    true: Float[Tensor, "frame point 3"],
    counts: Bool[Tensor, "frame point"],
    moving: Bool[Tensor, "point"],
    quantile: float = 0.95,
) -> float | None:
    """Return how much points move that should rest, relative to the mean true motion of the others.

    The quantile is over all resting points and all frames after 0. None where nothing rests or
    nothing moves.
    """
    counts = counts[1:]
    resting = predicted[1:].norm(dim=-1)[counts & ~moving]
    moved = true[1:].norm(dim=-1)[counts & moving]
    if not len(resting) or not len(moved) or not moved.any():
        return None
    resting = resting[:: -(-len(resting) // _QUANTILE_SAMPLES)]
    return float(torch.quantile(resting.double(), quantile) / moved.double().mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingAccuracy:
    """Metrics of TAPVid-3D (Koppula et al. 2024, arXiv 2407.05921, section 4), from 0 to 1."""

    within: tuple[float, ...]
    """Share of the truly visible points that are closer than each threshold."""

    jaccard: tuple[float, ...] | None
    """True positives over true positives, false positives and false negatives, by threshold. A
    positive is a point said to be visible; a true one is visible and within the threshold. None
    where visibility is not predicted."""

    visibility_accuracy: float | None
    """Share of points whose visibility is predicted right (their occlusion accuracy)."""

    @property
    def average_within(self) -> float:
        """Mean over thresholds (their APD, or average_pts_within_thresh)."""
        return sum(self.within) / len(self.within)

    @property
    def average_jaccard(self) -> float | None:
        """Mean over thresholds (their 3D-AJ)."""
        return None if self.jaccard is None else sum(self.jaccard) / len(self.jaccard)


def tracking_accuracy(
    predicted: Float[Tensor, "frame point 3"],
    true: Float[Tensor, "frame point 3"],
    visibility: Bool[Tensor, "frame point"],
    focal_px: Float[Tensor, "frame"],
    predicted_visibility: Bool[Tensor, "frame point"] | None = None,
) -> TrackingAccuracy:
    """Count the points that are near their true place. Both are in the camera space of each frame.

    A threshold of n pixels is the distance n * depth / focal length, at the depth of the true
    point. `focal_px` is the geometric mean of both focal lengths. All frames count, as in
    TAPVid-3D, frame 0 too.

    Raises:
        EvaluationError: no point is visible.
    """
    num_visible = int(visibility.sum())
    if not num_visible:
        raise EvaluationError("No true point is visible in any frame.")
    distance = (predicted - true).norm(dim=-1)
    pixel = true[..., 2] / focal_px[:, None]
    within, jaccard = [], []
    for threshold in PIXEL_THRESHOLDS:
        near = distance < threshold * pixel  # NaN is not near
        within.append(int((near & visibility).sum()) / num_visible)
        if predicted_visibility is not None:
            right = int((near & visibility & predicted_visibility).sum())
            wrong = int((predicted_visibility & ~(near & visibility)).sum())
            jaccard.append(right / (num_visible + wrong))
    return TrackingAccuracy(
        within=tuple(within),
        jaccard=None if predicted_visibility is None else tuple(jaccard),
        visibility_accuracy=(
            None
            if predicted_visibility is None
            else float((predicted_visibility == visibility).float().mean())
        ),
    )


def median_scale(
    predicted: Float[Tensor, "frame point 3"],
    true: Float[Tensor, "frame point 3"],
    counts: Bool[Tensor, "frame point"],
) -> float:
    """Return the factor on predictions of unknown scale (TAPVid-3D's median scaling).

    Ratio of the median distances from the camera, over the points that count.

    Raises:
        EvaluationError: the prediction has no extent.
    """
    ours, theirs = predicted.norm(dim=-1)[counts], true.norm(dim=-1)[counts]
    size = float(ours.median()) if len(ours) else 0.0
    if not size > 0:
        raise EvaluationError("No predicted point that counts has a distance from the camera.")
    return float(theirs.median()) / size
