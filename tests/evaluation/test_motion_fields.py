"""Errors of dense motion, apart for edges, interiors and sizes of objects."""

import math

import pytest
import torch

from more4d_backend.evaluation.motion_fields import interior, motion_field_errors
from more4d_backend.evaluation.tables import EvaluationError


@pytest.fixture
def field():
    """Two squares that move, of sides 12 and 30 pixels: (motion, counts, object_index)."""
    motion = torch.zeros(3, 64, 96, 3)
    index = torch.full((64, 96), -1)
    index[4:16, 4:16], index[20:50, 40:70] = 0, 1
    for frame in (1, 2):
        motion[frame, 4:16, 4:16, 0] = 0.1 * frame
        motion[frame, 20:50, 40:70, 1] = -0.2 * frame
    return motion, torch.ones(3, 64, 96, dtype=torch.bool), index


def test_the_truth_has_no_error(field):
    motion, counts, index = field
    errors = motion_field_errors(motion, motion, counts, index)
    assert errors.overall.value == errors.interior.value == errors.still == 0


def test_the_relative_error_is_a_ratio_of_sums_over_all_axes(field):
    motion, counts, index = field
    errors = motion_field_errors(0.9 * motion, motion, counts, index)
    assert errors.overall.value == pytest.approx(0.1, rel=1e-5)
    assert errors.overall.reference == pytest.approx(float(motion.abs().sum()), rel=1e-5)


def test_errors_at_edges_and_in_the_background_are_not_of_the_interior(field):
    motion, counts, index = field
    predicted = motion.clone()
    predicted[1:, 20:22, 40:70] = 0  # two rows at an edge
    predicted[1:, 0:2] += 0.01  # the wall
    errors = motion_field_errors(predicted, motion, counts, index)
    assert errors.overall.value > 0
    assert errors.interior.value == 0
    predicted[2, 22, 60] += 0.1  # the third row
    assert motion_field_errors(predicted, motion, counts, index).interior.value > 0


def test_classes_of_size_hold_the_objects_of_that_size(field):
    motion, counts, index = field
    predicted = motion.clone()
    predicted[1:, 4:16, 4:16] = 0  # radius 12 / sqrt(pi) = 6.8
    errors = motion_field_errors(predicted, motion, counts, index)
    assert {name: ratio.value for name, ratio in errors.by_radius.items()} == {
        "< 8 px": 1.0, "8 to 16 px": None, "> 16 px": 0.0,
    }  # fmt: skip


def test_resting_pixels_are_measured_against_moving_ones(field):
    motion, counts, index = field
    predicted = motion.clone()
    predicted[1:, :, 80:, 0] = 0.03
    still = motion_field_errors(predicted, motion, counts, index).still
    mean = float(motion[1:].norm(dim=-1)[:, index >= 0].mean())
    assert still == pytest.approx(0.03 / mean, rel=1e-5)


def test_without_labels_all_that_moves_is_one_object(field):
    motion, counts, _ = field
    errors = motion_field_errors(motion, motion, counts)
    assert errors.by_radius["> 16 px"].reference == pytest.approx(errors.overall.reference)


def test_objects_that_rest_belong_to_the_background(field):
    motion, counts, index = field
    motion = motion.clone()
    motion[:, 20:50, 40:70] = 0
    errors = motion_field_errors(motion, motion, counts, index)
    assert errors.by_radius["> 16 px"].value is None


def test_nan_in_the_prediction_is_refused(field):
    motion, counts, index = field
    predicted = motion.clone()
    predicted[2, 0, 0] = math.nan
    with pytest.raises(EvaluationError, match="frame 2"):
        motion_field_errors(predicted, motion, counts, index)


def test_interior_ends_two_pixels_before_another_label():
    labels = torch.zeros(9, 12, dtype=torch.long)
    labels[:, 6:] = 1
    assert interior(labels)[4].tolist() == [True] * 4 + [False] * 4 + [True] * 4
