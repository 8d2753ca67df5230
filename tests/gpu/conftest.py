"""Shared by the tests that need a GPU."""

import pytest
import torch


@pytest.fixture
def full_precision():
    """Compute convolutions in float32, not in TF32: what the CPU computes is compared with."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield
