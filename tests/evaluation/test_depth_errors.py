"""Depth after alignment, in closed form, against brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from more4d_backend.evaluation.depth import (
    align,
    constant_abs_rel,
    constant_fov_error_deg,
    depth_errors,
    horizontal_fov_deg,
    weighted_median,
)
from more4d_backend.evaluation.tables import EvaluationError
from more4d_backend.geometry import focal_from_fov, intrinsics_from_focal
from more4d_backend.scene import Cameras


def random_depth(seed, count=200):
    generator = torch.Generator().manual_seed(seed)
    true = 1 + 5 * torch.rand(count, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, generator=generator, dtype=torch.float64)
    return true, true * (0.1 * noise).exp()


def everywhere(true):
    return torch.ones_like(true, dtype=torch.bool)


def test_errors_have_their_textbook_values():
    true = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    predicted = torch.tensor([1.5, 2.0, 2.0], dtype=torch.float64)
    errors = depth_errors(predicted, true, everywhere(true), "none")
    assert errors.abs_rel == pytest.approx((0.5 + 0 + 0.5) / 3)
    assert errors.sq_rel == pytest.approx((0.25 + 0 + 1) / 3)
    assert errors.rmse == pytest.approx(math.sqrt((0.25 + 4) / 3))
    assert errors.within == pytest.approx((1 / 3, 2 / 3, 2 / 3))


@pytest.mark.parametrize(
    ("alignment", "factor", "offset"), [("scale", 0.2, 0), ("scale-shift", 3, 7)]
)
def test_what_alignment_allows_is_no_error(alignment, factor, offset):
    true, _ = random_depth(0)
    errors = depth_errors(factor * true + offset, true, everywhere(true), alignment)
    assert errors.abs_rel < 1e-9
    assert errors.scale == pytest.approx(1 / factor)
    assert errors.shift == pytest.approx(-offset / factor, abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_no_other_scale_has_a_smaller_abs_rel(seed):
    true, predicted = random_depth(seed)
    best = depth_errors(0.3 * predicted, true, everywhere(true), "scale")
    for factor in (0.9, 0.99, 1.01, 1.1):
        other = best.scale * factor * 0.3 * predicted
        assert depth_errors(other, true, everywhere(true), "none").abs_rel >= best.abs_rel


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_no_other_scale_and_shift_is_much_better(seed):
    true, predicted = random_depth(seed)
    best = depth_errors(predicted, true, everywhere(true), "scale-shift")
    for factor in (0.9, 0.97, 1.03, 1.1):
        for shift in (-0.3, -0.05, 0.05, 0.3):
            other = best.scale * factor * predicted + best.shift + shift
            error = ((other - true).abs() / true).mean()
            assert error > best.abs_rel * 0.999  # twenty rounds, not infinitely many


def test_outliers_do_not_pull_the_scale():
    true, _ = random_depth(0)
    predicted = true / 2
    true[:20] *= 4
    assert align(predicted, true, "scale")[0] == pytest.approx(2, rel=1e-9)
    assert align(predicted, true, "scale-shift")[0] == pytest.approx(2, rel=1e-3)
    predicted[:80] = 1e6
    assert align(predicted, true, "median")[0] == pytest.approx(2, rel=1e-9)


def test_the_weighted_median_splits_the_weights():
    values = torch.tensor([3.0, 1.0, 2.0])
    assert weighted_median(values, torch.tensor([1.0, 1.0, 1.0])) == 2
    assert weighted_median(values, torch.tensor([5.0, 1.0, 1.0])) == 3


def test_a_constant_prediction_gets_a_shift_alone():
    true, _ = random_depth(0)
    scale, shift = align(torch.ones_like(true), true, "scale-shift")
    assert scale == 1
    assert math.isfinite(shift)


def test_the_best_constant_is_the_baseline():
    true, predicted = random_depth(0)
    baseline = constant_abs_rel(true, everywhere(true))
    grid = torch.linspace(0.5, 7, 2000, dtype=torch.float64)
    brute = ((grid[:, None] - true).abs() / true).mean(1).min()
    assert baseline == pytest.approx(float(brute), abs=1e-3)
    assert depth_errors(predicted, true, everywhere(true)).abs_rel < baseline


def test_only_valid_pixels_count():
    true, predicted = random_depth(0)
    true[:10], predicted[10:20] = math.inf, math.nan
    valid = everywhere(true)
    valid[10:20] = False
    assert depth_errors(predicted, true, valid).abs_rel < 0.2


def test_a_prediction_that_is_no_depth_is_refused(as_users_run_it):
    true, predicted = random_depth(0)
    predicted[3] = math.nan
    with pytest.raises(EvaluationError, match="1 of 200"):
        depth_errors(predicted, true, everywhere(true))
    with pytest.raises(EvaluationError, match="no valid pixel"):
        depth_errors(true, true, ~everywhere(true))
    with pytest.raises(EvaluationError, match="one shape"):
        depth_errors(true[:5], true, everywhere(true))


def test_the_field_of_view_is_the_horizontal_one():
    focal_px = torch.tensor([focal_from_fov(math.radians(60), 80)])
    cameras = Cameras(
        world_to_camera=torch.eye(4)[None],
        intrinsics=intrinsics_from_focal(focal_px, 40, 80),
        height=40,
        width=80,
    )
    assert horizontal_fov_deg(cameras) == pytest.approx(60, abs=1e-4)


def test_no_constant_field_of_view_has_a_smaller_median_error():
    fov = torch.tensor([35.0, 40, 41, 42, 60, 70, 75])
    guesses = torch.linspace(30, 80, 5001)
    brute = (guesses[:, None] - fov).abs().median(1).values.min()
    assert constant_fov_error_deg(fov) == pytest.approx(float(brute), abs=1e-3)
    assert constant_fov_error_deg(fov[:1]) == 0


def test_one_depth_everywhere_is_fitted_by_the_best_constant():
    true, _ = random_depth(3)
    true[:20] *= 50  # a mean would be far from most of it
    flat = torch.full_like(true, 2.0)
    best = constant_abs_rel(true, everywhere(true))
    found = depth_errors(flat, true, everywhere(true), "scale-shift")
    assert found.abs_rel == pytest.approx(best)
    shift = depth_errors(flat, true, everywhere(true), "absolute-scale-shift").shift
    assert shift == pytest.approx(float(true.sort().values[len(true) // 2 - 1]) - 2)
