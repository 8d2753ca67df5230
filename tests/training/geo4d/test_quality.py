"""What trainers of Geo4D look at on their way."""

import pytest
import torch

from training.geo4d.quality import WindowErrors, WindowQuality, _depth_errors


def test_depth_is_compared_with_the_best_constant_which_need_not_be_the_median():
    truth = torch.cat([torch.ones(45), torch.linspace(2, 20, 55)])
    abs_rel, within, constant = _depth_errors(3 * truth + 1, torch.ones(100), truth)
    assert abs_rel == pytest.approx(0, abs=1e-5)
    assert within == 1
    assert constant == pytest.approx(0.45)  # of the median it is 0.05


def test_every_mean_is_told_beside_its_name():
    first, second = (
        WindowErrors(
            rotation_rpe_deg=1 + more, still_rotation_rpe_deg=2 + more, center=3 + more,
            abs_rel=4 + more, within=5 + more, constant_within=6 + more,
        )
        for more in (0, 0.5)
    )  # fmt: skip
    quality = WindowQuality(num_steps=5, errors=WindowErrors.mean([first, second]))
    assert quality.line() == (
        "5 steps: rotation RPE 1.25 deg (still camera 2.25); centres off by 3.25 of their spread; "
        "AbsRel 4.250; delta<1.25 5.250 (constant depth 6.250)"
    )
