"""What trainers of Geo4D look at on their way."""

import pytest
import torch

from training.geo4d.quality import _depth_errors


def test_depth_is_compared_with_the_best_constant_which_need_not_be_the_median():
    truth = torch.cat([torch.ones(45), torch.linspace(2, 20, 55)])
    abs_rel, within, constant = _depth_errors(3 * truth + 1, torch.ones(100), truth).tolist()
    assert abs_rel == pytest.approx(0, abs=1e-5)
    assert within == 1
    assert constant == pytest.approx(0.45)  # of the median it is 0.05
