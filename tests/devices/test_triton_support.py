"""Where triton's kernels do not run, the log says why, once."""

import pytest
import torch

from more4d_backend.devices import triton_support
from more4d_backend.devices.triton_support import triton_runs

GPU = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def nothing_is_known_yet(monkeypatch):
    triton_runs.cache_clear()
    monkeypatch.setattr(triton_support, "find_spec", lambda name: name)
    monkeypatch.setenv("CC", "gcc")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    yield
    triton_runs.cache_clear()


def test_with_all_that_it_needs_it_runs_without_a_word(caplog):
    with caplog.at_level("INFO"):
        assert triton_runs("Points are drawn", GPU)
    assert not caplog.text


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        ("package", "triton is not installed"),
        ("compiler", "needs a C compiler"),
        ("permission", "MORE4D_TRITON=0 in the environment asks for it"),
        ("capability", "need a GPU of compute capability 8.0 or later"),
    ],
)
def test_what_it_lacks_is_told_once(monkeypatch, caplog, lacking, reason):
    if lacking == "package":
        monkeypatch.setattr(triton_support, "find_spec", lambda _name: None)
    if lacking == "compiler":
        monkeypatch.delenv("CC")
        monkeypatch.setattr(triton_support.shutil, "which", lambda _name: None)
    if lacking == "permission":
        monkeypatch.setenv("MORE4D_TRITON", "0")
    needed = (8, 0) if lacking == "capability" else (7, 0)
    with caplog.at_level("INFO"):
        assert not triton_runs("Points are drawn", GPU, needed)
        assert not triton_runs("Points are drawn", GPU, needed)
    assert caplog.text.count("Points are drawn on cuda:0 by plain torch, which is slower") == 1
    assert reason in caplog.text
