"""End-point errors, stillness, and the metrics of TAPVid-3D."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from more4d_backend.evaluation.tables import EvaluationError
from more4d_backend.evaluation.trajectories import (
    end_point_errors,
    median_scale,
    moving_points,
    still_motion,
    tracking_accuracy,
)


def random_motion(seed, frames=4, points=30, moving=10):
    generator = torch.Generator().manual_seed(seed)
    motion = torch.zeros(frames, points, 3, dtype=torch.float64)
    motion[1:, :moving] = torch.randn(frames - 1, moving, 3, generator=generator).double() + 2
    counts = torch.rand(frames, points, generator=generator) > 0.3
    counts[1, 0] = True
    return motion, counts, torch.arange(points) < moving


def test_the_truth_has_no_error():
    motion, counts, moving = random_motion(0)
    errors = end_point_errors(motion, motion, counts, moving)
    assert errors.mean == errors.relative.value == errors.moving.value == errors.still.value == 0


def test_a_still_prediction_has_the_relative_error_one():
    motion, counts, moving = random_motion(0)
    errors = end_point_errors(torch.zeros_like(motion), motion, counts, moving)
    assert errors.relative.value == pytest.approx(1, abs=1e-12)
    assert errors.moving.value == pytest.approx(1, abs=1e-12)
    assert errors.still.value == 0


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_errors_of_moving_and_resting_points_add_up(seed):
    motion, counts, moving = random_motion(seed)
    noise = torch.randn(motion.shape, generator=torch.Generator().manual_seed(seed + 1))
    errors = end_point_errors(motion + noise, motion, counts, moving)
    assert errors.moving.value + errors.still.value == pytest.approx(errors.relative.value)


def test_only_what_counts_is_measured_and_frame_0_never():
    motion, counts, moving = random_motion(0)
    predicted = motion.clone()
    predicted[~counts] = math.nan
    predicted[0] = 7.0
    assert end_point_errors(predicted, motion, counts, moving).mean == 0


def test_a_prediction_of_nan_is_refused_with_its_frame():
    motion, counts, moving = random_motion(0)
    predicted = motion.clone()
    predicted[1, 0, 2] = math.nan
    with pytest.raises(EvaluationError, match=r"1 points that count, first in frame 1\."):
        end_point_errors(predicted, motion, counts, moving)


def test_a_truth_that_sees_nothing_again_is_refused():
    motion, counts, moving = random_motion(0)
    counts[1:] = False
    with pytest.raises(EvaluationError, match="No point counts"):
        end_point_errors(motion, motion, counts, moving)


def test_points_move_when_they_are_ever_far_enough_away_where_they_count():
    motion = torch.zeros(3, 3, 3)
    motion[1, 0, 1], motion[2, 1, 0], motion[2, 2, 0] = 0.2, 0.2, 0.05
    counts = torch.ones(3, 3, dtype=torch.bool)
    counts[2, 1] = False
    assert moving_points(motion, counts, 0.1).tolist() == [True, False, False]


def test_stillness_is_relative_to_what_moves():
    true = torch.zeros(2, 101, 3)
    true[1, 0, 0] = 2.0
    predicted = true.clone()
    predicted[1, 1:, 1] = torch.arange(100) / 99
    counts = torch.ones(2, 101, dtype=torch.bool)
    moving = torch.arange(101) == 0
    assert still_motion(predicted, true, counts, moving, 0.95) == pytest.approx(0.475)
    assert still_motion(predicted, true, counts, ~moving, 0.95) is None  # nothing of those moved
    assert still_motion(predicted, true, counts, torch.ones_like(moving)) is None


def tracks_at(depth=2.0, frames=2, points=5):
    true = torch.zeros(frames, points, 3)
    true[..., 2] = depth
    return true, torch.ones(frames, points, dtype=torch.bool), torch.full((frames,), 100.0)


def test_thresholds_are_pixels_at_the_depth_of_the_point():
    true, visibility, focal_px = tracks_at(depth=2.0)
    predicted = true.clone()
    predicted[..., 0] += 3 * 2.0 / 100  # three pixels
    accuracy = tracking_accuracy(predicted, true, visibility, focal_px)
    assert accuracy.within == (0, 0, 1, 1, 1)
    assert accuracy.average_within == pytest.approx(0.6)
    assert accuracy.jaccard is None
    assert accuracy.average_jaccard is None
    assert accuracy.visibility_accuracy is None


def test_jaccard_counts_false_positives_and_misses():
    true, visibility, focal_px = tracks_at(frames=1, points=6)
    visibility[0, 4:] = False  # 4 visible, 2 hidden
    predicted = true.clone()
    predicted[0, 0, 0] += 1.0  # visible, said to be, and far off
    said = torch.tensor([[True, True, True, False, True, False]])
    accuracy = tracking_accuracy(predicted, true, visibility, focal_px, said)
    # 2 true positives; 4 truly visible; false positives: the far one and the hidden one.
    assert accuracy.jaccard == pytest.approx((2 / 6,) * 5)
    assert accuracy.within == pytest.approx((3 / 4,) * 5)
    assert accuracy.visibility_accuracy == pytest.approx(4 / 6)


def test_nan_is_never_near():
    true, visibility, focal_px = tracks_at()
    predicted = torch.full_like(true, math.nan)
    assert tracking_accuracy(predicted, true, visibility, focal_px).average_within == 0


def test_a_truth_without_visible_points_is_refused():
    true, visibility, focal_px = tracks_at()
    with pytest.raises(EvaluationError, match="No true point"):
        tracking_accuracy(true, true, ~visibility, focal_px)


def test_median_scaling_undoes_a_factor_and_ignores_outliers():
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(3, 50, 3, generator=generator) + torch.tensor([0, 0, 5.0])
    predicted = true / 3
    predicted[:, :5] *= 1000
    counts = torch.ones(3, 50, dtype=torch.bool)
    counts[:, :5] = False
    assert median_scale(predicted, true, counts) == pytest.approx(3, rel=1e-6)
    with pytest.raises(EvaluationError, match="distance"):
        median_scale(0 * true, true, counts)
