"""Shared by the tests of depth providers."""

import pytest


@pytest.fixture
def connections(monkeypatch, tmp_path) -> list:
    """Attempts to reach a network, from a machine with an empty Hugging Face cache."""
    attempts = []

    def attempt(*args, **_):
        attempts.append(args)
        raise OSError("no network in tests")

    monkeypatch.setattr("socket.getaddrinfo", attempt)
    monkeypatch.setattr("socket.socket.connect", attempt)
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return attempts
