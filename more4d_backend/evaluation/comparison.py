"""Predicted scenes, videos and depth beside the true ones, in memory: one row of a table each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..geometry import transform_points
from ..scene import Cameras, PointMaps, PointTracks, Scene4D
from .depth import Alignment, constant_abs_rel, depth_errors, horizontal_fov_deg
from .directions import ObjectMatch, match_objects
from .tables import NO_RATIO, Column, EvaluationError, Ratio, Value
from .trajectories import (
    EndPointErrors,
    TrackingAccuracy,
    end_point_errors,
    median_scale,
    moving_points,
    still_motion,
    tracking_accuracy,
)
from .views import view_errors

MOVING_PX = 0.5
"""A point moves if it is ever this many pixels, at its depth, from where it began."""

SCENE_COLUMNS = (
    Column(name="end-point error", unit="world", better="lower"),
    Column(name="relative error", unit="%", digits=1, better="lower"),
    Column(name="best sample", unit="%", digits=1, better="lower"),
    Column(name="of moving points", unit="%", digits=1, better="lower"),
    Column(name="leak into still points", unit="%", digits=1, better="lower"),
    Column(name="stillness", unit="%", digits=1, better="lower"),
    Column(name="direction right", unit="%", digits=1, better="higher"),
    Column(name="within thresholds", unit="%", digits=1, better="higher"),
    Column(name="average Jaccard", unit="%", digits=1, better="higher"),
    Column(name="visibility right", unit="%", digits=1, better="higher"),
)
SCENE_NOTES = (
    "Relative error: sum of end-point errors over sum of true motion, so that a still scene has "
    "100 %; mean over samples, and the best whole sample. Leak: the part of it in points that "
    "rest. Stillness: 95th percentile of their motion over the mean true motion of the others.",
    "Within thresholds, Jaccard, visibility: TAPVid-3D's APD, 3D-AJ and OA with median scaling.",
)

VIDEO_COLUMNS = (
    Column(name="PSNR known", unit="dB", digits=2, better="higher"),
    Column(name="PSNR filled", unit="dB", digits=2, better="higher"),
    Column(name="SSIM known", better="higher"),
    Column(name="SSIM filled", better="higher"),
    Column(name="liveliness", digits=2),
    Column(name="change error", digits=4, better="lower"),
    Column(name="filled", unit="%", digits=1),
)
VIDEO_NOTES = (
    "Liveliness: change from frame to frame in filled regions over that of the true video; 1 is "
    "right, more flickers, less is blurred or frozen. Change error: mean difference of changes.",
)

DEPTH_ERROR_COLUMNS = (
    Column(name="AbsRel", better="lower"),
    Column(name="SqRel", better="lower"),
    Column(name="RMSE", better="lower"),
    Column(name="within 1.25", unit="%", digits=1, better="higher"),
    Column(name="within 1.25^2", unit="%", digits=1, better="higher"),
    Column(name="within 1.25^3", unit="%", digits=1, better="higher"),
)
DEPTH_COLUMNS = (
    *DEPTH_ERROR_COLUMNS,
    Column(name="constant AbsRel", better=""),
    Column(name="fov error", unit="deg", digits=2, better="lower", summary="median"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneTruth:
    """A true scene of tracks, and what its caption says of its objects, where that is known."""

    scene: Scene4D
    """Of tracks."""

    object_index: Int[Tensor, "point"] | None = None
    """Which object each point belongs to; negative for none."""

    words: tuple[str, ...] = ()
    """What each object does; empty without `object_index`."""


def compare_scenes(predictions: Sequence[Scene4D], truth: SceneTruth) -> dict[str, Value]:
    """Compare samples that were generated for one picture and caption with its true scene.

    Point i is the same in all scenes. Both worlds are turned to the camera of their frame 0. For
    end-point errors the points that count are those truly visible, and motion is compared, not
    place: an error of the depth that a prediction began with does not count again.

    Raises:
        EvaluationError: no prediction, or one that cannot be compared.
    """
    if not predictions:
        raise EvaluationError("There is no predicted scene; expected at least one.")
    true = _tracks(truth.scene, "The true scene")
    counts = true.visibility & true.positions.isfinite().all(-1)
    counts = counts & counts[0]
    motion = _motion(truth.scene, true)
    moving = moving_points(motion, counts, MOVING_PX * _pixel_size(truth.scene, true)[0])
    errors: list[EndPointErrors] = []
    stillness: list[float] = []
    direction = NO_RATIO
    accuracies = []
    for prediction in predictions:
        ours = _tracks(prediction, "The predicted scene")
        _check_same_points(ours, true)
        predicted = _motion(prediction, ours)
        errors.append(end_point_errors(predicted, motion, counts, moving))
        still = still_motion(predicted, motion, counts, moving)
        stillness += [] if still is None else [still]
        for match in object_matches(prediction, truth):
            direction += Ratio(amount=float(match.is_right), reference=1.0)
        accuracies.append(_accuracy(prediction, ours, truth.scene, true, counts))
    relative = [error.relative.value for error in errors]
    return {
        "end-point error": _mean([error.mean for error in errors]),
        "relative error": _mean(relative),
        "best sample": min((r for r in relative if r is not None), default=None),
        "of moving points": _mean([error.moving.value for error in errors]),
        "leak into still points": _mean([error.still.value for error in errors]),
        "stillness": _mean(stillness),
        "direction right": direction if direction.reference else None,
        "within thresholds": _mean([a.average_within for a in accuracies]),
        "average Jaccard": _mean([a.average_jaccard for a in accuracies]),
        "visibility right": _mean([a.visibility_accuracy for a in accuracies]),
    }


def object_matches(prediction: Scene4D, truth: SceneTruth) -> list[ObjectMatch]:
    """Compare the motion of every object; none where the truth does not tell them apart.

    All frames of points that frame 0 sees count, also those where a point is hidden.

    Raises:
        EvaluationError: the prediction is of other points, or an object has no word.
    """
    if truth.object_index is None:
        return []
    true = _tracks(truth.scene, "The true scene")
    ours = _tracks(prediction, "The predicted scene")
    _check_same_points(ours, true)
    known = true.visibility[0] & true.positions.isfinite().all(-1).all(0)
    shown = truth.object_index.long().masked_fill(~known, -1)
    return match_objects(_motion(prediction, ours), _motion(truth.scene, true), shown, truth.words)


def compare_videos(
    predicted: Float[Tensor, "frame height width 3"],
    true: Float[Tensor, "frame height width 3"],
    hole_mask: Bool[Tensor, "frame height width"],
) -> dict[str, Value]:
    """Compare a completed video with the true one.

    Raises:
        As `view_errors`.
    """
    errors = view_errors(predicted, true, hole_mask)
    stability = errors.stability
    return {
        "PSNR known": errors.psnr_known_db,
        "PSNR filled": errors.psnr_filled_db,
        "SSIM known": errors.ssim_known,
        "SSIM filled": errors.ssim_filled,
        "liveliness": None if stability is None else stability.liveliness,
        "change error": None if stability is None else stability.error,
        "filled": float(hole_mask.double().mean()),
    }


def compare_depth(
    predicted: Float[Tensor, "*axes"],
    true: Float[Tensor, "*axes"],
    valid: Bool[Tensor, "*axes"],
    alignment: Alignment = "scale",
    *,
    predicted_camera: Cameras | None = None,
    true_camera: Cameras | None = None,
) -> dict[str, Value]:
    """Compare depth, and the field of view where both cameras are known.

    Raises:
        As `depth_errors`.
    """
    errors = depth_errors(predicted, true, valid, alignment)
    fov_error = None
    if predicted_camera is not None and true_camera is not None:
        fov_error = abs(horizontal_fov_deg(predicted_camera) - horizontal_fov_deg(true_camera))
    return {
        "AbsRel": errors.abs_rel,
        "SqRel": errors.sq_rel,
        "RMSE": errors.rmse,
        "within 1.25": errors.within[0],
        "within 1.25^2": errors.within[1],
        "within 1.25^3": errors.within[2],
        "constant AbsRel": constant_abs_rel(true, valid),
        "fov error": fov_error,
    }


def compare_point_maps(
    predicted: Scene4D, true: Scene4D, alignment: Alignment = "scale"
) -> dict[str, Value]:
    """Compare the depth of point maps, aligned once for the whole video, and the field of view.

    Raises:
        EvaluationError: not point maps, or of different size.
    """
    ours, theirs = predicted.points, true.points
    if not isinstance(ours, PointMaps) or not isinstance(theirs, PointMaps):
        raise EvaluationError(
            "One scene holds point maps and the other tracks; expected the same of both."
        )
    return compare_depth(
        _depth(ours, predicted.cameras),
        _depth(theirs, true.cameras),
        theirs.valid,
        alignment,
        predicted_camera=predicted.cameras,
        true_camera=true.cameras,
    )


def _depth(maps: PointMaps, cameras: Cameras) -> Float[Tensor, "frame height width"]:
    to_camera = cameras.world_to_camera[:, None, None].to(maps.positions)
    return transform_points(maps.positions, to_camera)[..., 2]


def _accuracy(
    prediction: Scene4D, ours: PointTracks, truth: Scene4D, true: PointTracks, counts: Tensor
) -> TrackingAccuracy:
    """Accuracy in the camera space of each frame, after median scaling."""
    predicted = _in_camera(prediction, ours)
    place = _in_camera(truth, true)
    usable = counts & predicted.isfinite().all(-1)
    predicted = predicted * median_scale(predicted, place, usable)
    K = truth.cameras.intrinsics
    # Visibility that never changes is that of the depth, not a prediction of who hides whom.
    is_predicted = bool((ours.visibility != ours.visibility[:1]).any())
    return tracking_accuracy(
        predicted,
        place,
        counts,
        (K[:, 0, 0] * K[:, 1, 1]).sqrt(),
        ours.visibility if is_predicted else None,
    )


def _tracks(scene: Scene4D, what: str) -> PointTracks:
    if not isinstance(scene.points, PointTracks):
        raise EvaluationError(
            f"{what} holds point maps, whose points have no identity over frames; expected tracks."
        )
    return scene.points


def _check_same_points(ours: PointTracks, true: PointTracks) -> None:
    if ours.positions.shape != true.positions.shape or ours.grid_hw != true.grid_hw:
        raise EvaluationError(
            f"The prediction has {ours.num_frames} frames of {ours.positions.shape[1]} points "
            f"(grid {ours.grid_hw}), the truth {true.num_frames} of {true.positions.shape[1]} "
            f"(grid {true.grid_hw}); expected the same points. Predict at the size of the truth."
        )


def _motion(scene: Scene4D, tracks: PointTracks) -> Float[Tensor, "frame point 3"]:
    """Motion along the axes of the camera of frame 0; exactly zero for what rests."""
    rotation = scene.cameras.world_to_camera[0, :3, :3].to(tracks.positions)
    return tracks.motion @ rotation.T


def _in_camera(scene: Scene4D, tracks: PointTracks) -> Float[Tensor, "frame point 3"]:
    world_to_camera = scene.cameras.world_to_camera[:, None].to(tracks.positions)
    return transform_points(tracks.positions, world_to_camera)


def _pixel_size(scene: Scene4D, tracks: PointTracks) -> Float[Tensor, "frame point"]:
    """World length of a pixel at each point."""
    K = scene.cameras.intrinsics
    focal_px = (K[:, 0, 0] * K[:, 1, 1]).sqrt()
    return _in_camera(scene, tracks)[..., 2] / focal_px[:, None].to(tracks.positions)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(torch.tensor(known, dtype=torch.float64).mean()) if known else None
