"""PSNR, SSIM and stability in known and in filled regions."""

import math

import pytest
import torch

from more4d_backend.evaluation.tables import EvaluationError
from more4d_backend.evaluation.views import psnr_db, ssim_map, temporal_stability, view_errors
from more4d_backend.shapes import ShapeError


@pytest.fixture
def video():
    generator = torch.Generator().manual_seed(0)
    true = 0.2 + 0.5 * torch.rand(9, 24, 32, 3, generator=generator)
    holes = torch.zeros(9, 24, 32, dtype=torch.bool)
    holes[:, 6:18, 8:20] = True
    return true, holes


def test_each_region_has_its_own_psnr(video):
    true, holes = video
    predicted = true.clone()
    predicted[holes] += 0.1
    predicted[~holes] -= 0.01
    errors = view_errors(predicted, true, holes)
    assert errors.psnr_filled_db == pytest.approx(20, abs=1e-4)
    assert errors.psnr_known_db == pytest.approx(40, abs=1e-3)
    assert errors.ssim_filled < errors.ssim_known


def test_equal_videos_have_the_largest_values(video):
    true, holes = video
    errors = view_errors(true, true, holes)
    assert errors.psnr_known_db == errors.psnr_filled_db == 100
    assert errors.ssim_known == pytest.approx(1, abs=1e-5)
    assert errors.stability.liveliness == 1
    assert errors.stability.error == 0


def test_an_empty_region_has_no_value(video):
    true, holes = video
    errors = view_errors(true, true, torch.zeros_like(holes))
    assert errors.psnr_filled_db is errors.ssim_filled is errors.stability is None
    assert errors.psnr_known_db == 100


def test_the_error_is_pooled_over_frames_before_the_logarithm(video):
    true, holes = video
    predicted = true.clone()
    predicted[0, holes[0]] += 0.3
    expected = -10 * math.log10(0.3**2 / 9)
    assert psnr_db(predicted, true, holes) == pytest.approx(expected, abs=1e-4)


def test_a_frozen_fill_has_no_liveliness_and_flicker_has_too_much(video):
    true, holes = video
    frozen = true[:1].expand_as(true)
    assert temporal_stability(frozen, true, holes).liveliness == 0
    flicker = true.clone()
    flicker[::2] = 1 - flicker[::2]
    stability = temporal_stability(flicker, true, holes)
    assert stability.liveliness > 1.1
    assert stability.error > 0.1


def test_a_still_truth_gives_no_liveliness_but_an_error(video):
    true, holes = video
    still = true[:1].expand_as(true)
    stability = temporal_stability(true, still, holes)
    assert stability.liveliness is None
    assert stability.error > 0.1


def test_only_pixels_that_are_holes_twice_in_a_row_are_followed(video):
    true, holes = video
    blinking = holes.clone()
    blinking[::2] = False
    assert temporal_stability(true, true, blinking) is None


def test_ssim_has_one_value_for_each_pixel(video):
    true, _ = video
    assert ssim_map(true, true).shape == true.shape[:3]
    with pytest.raises(EvaluationError, match="11 pixels"):
        ssim_map(true[:, :8], true[:, :8])


def test_nan_and_other_sizes_are_refused(video, as_users_run_it):
    true, holes = video
    with pytest.raises(EvaluationError, match="NaN"):
        view_errors(true * math.nan, true, holes)
    with pytest.raises(ShapeError, match="predicted has shape"):
        view_errors(true[:-1], true, holes)
