"""The choice is tested, not the clock."""

import pytest
import torch

from more4d_backend.devices.convolution_speed import choose_dtype, convolution_dtype


@pytest.mark.parametrize(
    ("float32_s", "bfloat16_s", "choice"),
    [
        (1.0, 0.2, torch.bfloat16),
        (1.0, 0.9, torch.float32),
        (1.0, 1.0, torch.float32),
        (1.0, 9.0, torch.float32),
    ],
)
def test_only_a_clear_saving_makes_numbers_coarser(float32_s, bfloat16_s, choice):
    assert choose_dtype(float32_s, bfloat16_s) == choice


def test_a_cpu_is_measured_and_the_times_are_told():
    dtype, reason = convolution_dtype(torch.device("cpu"), torch.float32)
    assert str(dtype).removeprefix("torch.") in reason
    assert "ms in float32" in reason
    assert "ms in bfloat16" in reason


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_dtype_that_is_16_bits_already_stays(device):
    dtype, reason = convolution_dtype(torch.device(device), torch.bfloat16)
    assert dtype == torch.bfloat16
    assert "like the other networks" in reason
