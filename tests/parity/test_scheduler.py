"""The released schedule."""

import pytest
import torch
from safetensors.torch import load_file

from more4d_backend.wan.sampling import SamplingSettings, make_scheduler


@pytest.mark.parity
def test_the_default_settings_give_the_released_50_sigmas_exactly(parity_dir):
    recorded = load_file(parity_dir / "scheduler.safetensors")
    scheduler = make_scheduler(SamplingSettings())
    assert torch.equal(scheduler.sigmas, recorded["sigmas50"])
    assert torch.equal(scheduler.timesteps, recorded["timesteps50"])
