"""The choice is tested, not the clock."""

import logging

import pytest
import torch

from more4d_backend.devices import attention_speed
from more4d_backend.devices.attention_speed import (
    choose_attention,
    fastest_attention,
    measure_attention,
)

CPU = {"device": torch.device("cpu"), "dtype": torch.float32, "num_tokens": 16, "num_heads": 2}


@pytest.mark.parametrize(
    ("seconds", "choice"),
    [
        ({"native": 1.0}, "native"),
        ({"native": 1.0, "_native_cudnn": 0.98}, "native"),
        ({"native": 1.0, "_native_cudnn": 0.96}, "_native_cudnn"),
        ({"native": 1.0, "_native_cudnn": 0.9, "_native_flash": 0.8}, "_native_flash"),
        ({"native": 1.0, "_native_cudnn": 1.5}, "native"),
    ],
)
def test_only_a_clear_saving_switches_the_backend(seconds, choice):
    assert choose_attention(seconds) == choice


def test_backends_that_cannot_run_here_are_left_out_and_named(caplog):
    with caplog.at_level(logging.INFO):
        seconds = measure_attention(**CPU, head_dim=128, batch=1)
    assert "native" in seconds
    assert "_native_cudnn" not in seconds
    assert all(value > 0 for value in seconds.values())
    assert "_native_cudnn cannot be used here" in caplog.text


def test_what_was_measured_is_logged_with_the_choice(caplog, monkeypatch):
    seconds = {"native": 1.0, "_native_flash": 0.5}
    monkeypatch.setattr(attention_speed, "measure_attention", lambda **_: seconds)
    with caplog.at_level(logging.INFO):
        choice = fastest_attention(**CPU | {"device": torch.device("cuda")})
    assert choice == "_native_flash"
    assert "Using _native_flash." in caplog.text
    assert "Attention over 16 tokens: native 1000.00 ms" in caplog.text


def test_noise_decides_nothing_on_a_cpu(caplog, monkeypatch):
    seconds = {"native": 1.0, "_native_flash": 0.5}
    monkeypatch.setattr(attention_speed, "measure_attention", lambda **_: seconds)
    with caplog.at_level(logging.INFO):
        assert fastest_attention(**CPU) == "native"
    assert "Attention: native, because a CPU has no other kernel" in caplog.text
