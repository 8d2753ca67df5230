"""Which weights a reconstruction uses, and what it says about them."""

import logging

import pytest

from more4d_backend.files.videos import save_video
from more4d_backend.geo4d import weight_choice
from more4d_backend.geo4d.weight_choice import choose_weights
from more4d_backend.weights.files import WeightsError


def test_named_weights_are_used(toy_weights):
    choice = choose_weights(toy_weights)
    assert choice.path == toy_weights
    assert not choice.embedded


def test_without_a_name_the_embedded_ones_are_used_and_said_to_be_small(
    toy_weights, monkeypatch, tmp_path, caplog
):
    pytest.importorskip("tyro", reason="the command line needs the extra [headless]")
    import torch

    from more4d_backend.cli import main

    monkeypatch.setattr(weight_choice, "EMBEDDED_GEO4D", toy_weights)
    assert choose_weights(None).embedded
    save_video(tmp_path / "a.mkv", torch.rand(2, 48, 64, 3), 8, lossless=True)
    command = ["reconstruct", str(tmp_path / "a.mkv"), "-o", str(tmp_path / "s.safetensors")]
    with caplog.at_level(logging.WARNING):
        main([*command, "--device", "cpu", "--modalities", "points", "--num-steps", "1"])
    assert "the EMBEDDED tiny network is used" in caplog.text


def test_where_there_are_none_the_command_that_makes_some_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(weight_choice, "EMBEDDED_GEO4D", tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="weights convert FOLDER geo4d"):
        choose_weights(None)
