"""Depth of whole videos: one fit, what counts, and errors by confidence."""

import math

import pytest
import torch

from more4d_backend.evaluation.depth import align
from more4d_backend.evaluation.tables import EvaluationError
from more4d_backend.evaluation.video_depth import (
    DepthProtocol,
    VideoDepth,
    constant_within,
    errors_by_confidence,
    video_depth_errors,
)


def known(depth: torch.Tensor, **more) -> VideoDepth:
    return VideoDepth(depth=depth, valid=torch.ones_like(depth, dtype=torch.bool), **more)


@pytest.fixture
def true():
    generator = torch.Generator().manual_seed(0)
    return 1 + 20 * torch.rand(3, 8, 10, generator=generator, dtype=torch.float64)


def test_scale_and_shift_of_the_whole_video_are_no_error(true):
    found = video_depth_errors(known(0.25 * true - 0.1), known(true), DepthProtocol())
    assert found.errors.abs_rel < 1e-9
    assert found.num_pixels == 240
    own_scales = torch.tensor([1.0, 2.0, 3.0])[:, None, None] * true
    assert video_depth_errors(known(own_scales), known(true), DepthProtocol()).errors.abs_rel > 0.1


@pytest.mark.parametrize("seed", range(4))
def test_no_other_scale_and_shift_has_a_smaller_absolute_error(seed):
    generator = torch.Generator().manual_seed(seed)
    true = 1 + 20 * torch.rand(300, generator=generator, dtype=torch.float64)
    noise = torch.randn(300, generator=generator, dtype=torch.float64)
    predicted = 0.5 * true + noise
    predicted[:20] += 30  # outliers
    scale, shift = align(predicted, true, "absolute-scale-shift")
    best = (scale * predicted + shift - true).abs().mean()
    for factor in (0.95, 0.99, 1.0, 1.01, 1.05):
        for offset in (-0.5, -0.1, 0.0, 0.1, 0.5):
            other = (factor * scale * predicted + shift + offset - true).abs().mean()
            assert other >= best * 0.9995  # sixty rounds; the largest gap seen is 1.5e-4
    alone = align(predicted, true, "absolute-scale")
    assert alone[1] == 0
    least = (alone[0] * predicted - true).abs().mean()
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert (factor * alone[0] * predicted - true).abs().mean() >= least


def test_many_pixels_are_fitted_as_few_are(monkeypatch):
    from more4d_backend.evaluation import depth

    generator = torch.Generator().manual_seed(0)
    true = 1 + 20 * torch.rand(4000, generator=generator, dtype=torch.float64)
    predicted = 0.5 * true + torch.randn(4000, generator=generator, dtype=torch.float64)
    whole = align(predicted, true, "absolute-scale-shift")
    monkeypatch.setattr(depth, "_ENOUGH_PIXELS", 500)
    parts = align(predicted, true, "absolute-scale-shift")
    assert parts != whole
    errors = [float((s * predicted + t - true).abs().mean()) for s, t in (whole, parts)]
    # An eighth of the pixels is fitted first; measured 1.5e-3. In use it is half a million.
    assert errors[1] == pytest.approx(errors[0], rel=4e-3)


def test_truth_beyond_the_largest_depth_does_not_count_and_predictions_are_cut_to_it(true):
    protocol = DepthProtocol(alignment="none", max_depth=15.0)
    far = true > 15
    wrong = true.where(~far, 1e-3)
    assert video_depth_errors(known(wrong), known(true), protocol).errors.abs_rel == 0
    near = true < 3
    beyond = true.where(~near, 1e6)
    found = video_depth_errors(known(beyond), known(true), protocol)
    expected = ((15 - true[near]) / true[near]).sum() / (true < 15).sum()
    assert found.errors.abs_rel == pytest.approx(float(expected))


def test_saying_sky_where_there_is_something_costs_what_the_largest_depth_does(true):
    predicted = known(true.clone())
    predicted.valid[0, 0] = False
    predicted.depth[0, 0] = math.nan
    protocol = DepthProtocol(max_depth=70.0)
    found = video_depth_errors(predicted, known(true), protocol)
    expected = ((70 - true[0, 0]) / true[0, 0]).sum() / true.numel()
    assert found.errors.abs_rel == pytest.approx(float(expected), rel=1e-6)
    # The fit is made where both are known.
    assert found.errors.scale == pytest.approx(1)


def test_a_prediction_of_another_size_is_resized():
    rows = torch.arange(1.0, 9.0, dtype=torch.float64)[:, None].expand(8, 12)
    true = rows[None].repeat(2, 1, 1)
    small = true[:, :, ::2].clone()
    valid = torch.ones_like(small, dtype=torch.bool)
    valid[:, 0] = False
    small[:, 0] = 1e9  # what is not valid does no harm to its neighbours
    predicted = VideoDepth(depth=small, valid=valid).resized((8, 12))
    assert not predicted.valid[:, 0].any()
    assert predicted.valid[:, 1:].all()
    torch.testing.assert_close(predicted.depth[:, 3:], true[:, 3:], atol=1e-6, rtol=0)


def test_the_best_constant_is_the_best_of_all():
    generator = torch.Generator().manual_seed(3)
    true = 10 ** torch.rand(2000, generator=generator, dtype=torch.float64)
    brute = max(
        float((torch.maximum(true / c, c / true) < 1.25).double().mean())
        for c in torch.linspace(1, 10, 2000)
    )
    assert constant_within(true) == pytest.approx(brute, abs=2e-3)
    assert constant_within(torch.full((10,), 3.0)) == 1


@pytest.mark.filterwarnings("error")
def test_the_best_constant_of_many_pixels_is_found_without_a_warning():
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        assert 0 < constant_within(torch.linspace(1, 9, 50_000)) < 1
    finally:
        torch.set_warn_always(before)


def test_errors_by_confidence_tell_a_confidence_that_knows_from_one_that_does_not(true):
    generator = torch.Generator().manual_seed(1)
    sigma = 0.01 + 0.3 * torch.rand(true.shape, generator=generator, dtype=torch.float64)
    noise = torch.randn(true.shape, generator=generator, dtype=torch.float64)
    predicted = true * (1 + sigma * noise)
    right = video_depth_errors(known(predicted, confidence=1 / sigma), known(true), DepthProtocol())
    wrong = video_depth_errors(known(predicted, confidence=sigma), known(true), DepthProtocol())
    assert right.by_confidence is not None
    assert list(right.by_confidence) == sorted(right.by_confidence)
    assert wrong.by_confidence == pytest.approx(right.by_confidence[::-1])
    assert video_depth_errors(known(predicted), known(true), DepthProtocol()).by_confidence is None
    assert errors_by_confidence(torch.ones(3), torch.ones(3)) is None


def test_what_cannot_be_compared_is_refused(true):
    with pytest.raises(EvaluationError, match="2 frames and the truth 3"):
        video_depth_errors(known(true[:2]), known(true), DepthProtocol())
    nothing = VideoDepth(depth=true, valid=torch.zeros_like(true, dtype=torch.bool))
    with pytest.raises(EvaluationError, match="no pixel"):
        video_depth_errors(nothing, known(true), DepthProtocol())
    with pytest.raises(EvaluationError, match="NaN"):
        video_depth_errors(known(true * math.nan), known(true), DepthProtocol())
