from dataclasses import replace
from pathlib import Path

import pytest

from training.run.settings import OptimizerSettings, RunSettings, SettingsError

STRAG = OptimizerSettings(
    learning_rate=2e-5,
    weight_decay=3e-2,
    warmup_steps=100,
    max_norm=0.05,
    max_norm_start=0.25,
    max_norm_steps=1000,
    skip_above=0.25,
)


def test_the_learning_rate_rises_in_a_line_and_stays():
    assert STRAG.learning_rate_at(0) == pytest.approx(2e-7)
    assert STRAG.learning_rate_at(49) == pytest.approx(1e-5)
    assert STRAG.learning_rate_at(99) == STRAG.learning_rate_at(10**6) == 2e-5
    assert replace(STRAG, warmup_steps=0).learning_rate_at(0) == 2e-5


def test_the_longest_gradient_goes_in_a_line_from_start_to_end():
    assert STRAG.max_norm_at(0) == 0.25
    assert STRAG.max_norm_at(500) == pytest.approx(0.15)
    assert STRAG.max_norm_at(1000) == STRAG.max_norm_at(10**6) == 0.05
    assert replace(STRAG, max_norm_start=None).max_norm_at(0) == 0.05


def test_large_losses_are_skipped_after_the_beginning_only():
    assert not STRAG.skips(50, 1.0)
    assert STRAG.skips(51, 0.26)
    assert not STRAG.skips(51, 0.25)
    assert not replace(STRAG, skip_above=None).skips(51, 100.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_steps": 0}, "run.num_steps is 0"),
        ({"batch_size": 0}, "run.batch_size is 0"),
        ({"accumulation": -1}, "run.accumulation is -1"),
        ({"checkpoints_kept": 0}, "run.checkpoints_kept is 0"),
        ({"ema_decay": 1.0}, "run.ema_decay is 1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(changes, said):
    with pytest.raises(SettingsError, match=said):
        RunSettings(**{"output": Path("x"), "num_steps": 1, "batch_size": 1, **changes})


def test_a_learning_rate_of_zero_is_refused():
    with pytest.raises(SettingsError, match=r"optimizer\.learning_rate is 0"):
        replace(STRAG, learning_rate=0.0)
