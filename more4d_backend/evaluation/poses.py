"""How far predicted cameras are from the true ones, as evo measures it.

evo is under the GPL: it belongs to the extra `evaluation` and is imported in this file alone. Poses
are camera-to-world, so that the last column is the camera's centre.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .tables import EvaluationError


@dataclass(frozen=True, slots=True, kw_only=True)
class PoseErrors:
    """After the similarity (Umeyama 1991) that brings the predicted centres to the true ones."""

    ate: float
    """Absolute trajectory error: root mean square distance of centres, in units of the truth."""

    rpe_translation: float
    """Relative pose error from each frame to the next: root mean square, in units of the truth."""

    rpe_rotation_deg: float
    """The same for rotations."""


def pose_errors(
    predicted: Float[Tensor, "frame 4 4"], true: Float[Tensor, "frame 4 4"]
) -> PoseErrors:
    """Compare the cameras of one video, frame by frame.

    Raises:
        EvaluationError: fewer than three frames, another number of them, a pose that is not
            finite, or centres that lie on one line, so that no similarity is told from them.
        ImportError: evo is not installed.
    """
    try:
        from evo.core import metrics
        from evo.core.geometry import GeometryException
        from evo.core.trajectory import PosePath3D
    except ImportError as e:
        raise ImportError(f"Pose errors need evo: pip install evo ({e}).") from e
    _check(predicted, true)
    ours, theirs = (PosePath3D(poses_se3=_rigid_matrices(poses)) for poses in (predicted, true))
    try:
        ours.align(theirs, correct_scale=True)
    except GeometryException as e:
        raise EvaluationError(
            "The camera centres of the prediction or of the truth lie on one line or in one point, "
            f"so that no similarity can be told between them ({e})."
        ) from e

    def root_mean_square(metric: metrics.APE | metrics.RPE) -> float:
        metric.process_data((theirs, ours))
        return float(metric.get_statistic(metrics.StatisticsType.rmse))

    def from_frame_to_frame(relation: metrics.PoseRelation) -> metrics.RPE:
        return metrics.RPE(relation, 1, metrics.Unit.frames, all_pairs=True)

    return PoseErrors(
        ate=root_mean_square(metrics.APE(metrics.PoseRelation.translation_part)),
        rpe_translation=root_mean_square(
            from_frame_to_frame(metrics.PoseRelation.translation_part)
        ),
        rpe_rotation_deg=root_mean_square(
            from_frame_to_frame(metrics.PoseRelation.rotation_angle_deg)
        ),
    )


def still_rotation_deg(true: Float[Tensor, "frame 4 4"]) -> float:
    """Return the RPE rotation of a camera that stands still: the root mean square turn."""
    rotation = true[:, :3, :3].double()
    turn = rotation[:-1].transpose(1, 2) @ rotation[1:]
    cosine = (turn.diagonal(dim1=1, dim2=2).sum(-1) - 1) / 2
    return float(torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).square().mean().sqrt())


def straight_line_ate(true: Float[Tensor, "frame 4 4"]) -> float:
    """Return the ATE of the best straight line.

    Each true centre is compared with the nearest point of the line that fits all of them best, so
    no trajectory along any line, at any speed, has less.
    """
    center = true[:, :3, 3].double()
    variances = torch.linalg.svdvals(center - center.mean(0)).square() / len(center)
    return float(variances[1:].sum().sqrt())


def _check(predicted: Tensor, true: Tensor) -> None:
    if predicted.shape != true.shape or len(true) < 3:
        raise EvaluationError(
            f"There are {len(predicted)} predicted and {len(true)} true cameras; expected as many "
            "of both, and at least 3."
        )
    for name, poses in (("predicted", predicted), ("true", true)):
        if not poses.isfinite().all():
            frame = int((~poses.isfinite().flatten(1).all(1)).nonzero()[0])
            raise EvaluationError(f"The {name} camera of frame {frame} is not finite.")


def _rigid_matrices(poses: Float[Tensor, "frame 4 4"]) -> list[np.ndarray]:
    """Poses as evo wants them: with rotations that are exact in float64."""
    left, _, right = torch.linalg.svd(poses[:, :3, :3].detach().cpu().double())
    exact = poses.detach().cpu().double().clone()
    exact[:, :3, :3] = left @ right
    return list(exact.numpy())
