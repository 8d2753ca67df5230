"""The trainer of the embedded Geo4D on CUDA: drawing processes, bfloat16, and what it writes."""

import pytest
import torch

from more4d_backend.weights.geo4d import load_geo4d
from training.geo4d.tiny_settings import TinyGeo4DTraining
from training.procedural.clips import ClipSettings
from training.train_tiny_geo4d import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def short(folder, **changes):
    settings = {
        "output": folder, "clips": ClipSettings(size_hw=(32, 48), num_frames=20), "minutes": None,
        "pool_size": 32,
        "variants": 2, "vae_steps": 4, "unet_steps": 4, "unet_windows": 8, "workers": 0,
        "evaluated_clips": 8,
    }  # fmt: skip
    return TinyGeo4DTraining(**settings | changes)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_short_training_on_cuda_writes_finite_weights(tmp_path, workers, caplog):
    training = short(tmp_path, workers=workers)
    with caplog.at_level("INFO"):
        path = train(training)
    assert "5 steps: rotation RPE" in caplog.text
    networks = load_geo4d(path, dtype=torch.float32)
    assert all(parameter.isfinite().all() for parameter in networks.parameters())


@pytest.mark.parametrize("compiled", [False, True])
def test_recorded_kernels_train_as_launched_ones(tmp_path, compiled):
    if compiled:
        pytest.importorskip("triton", reason="compiled kernels need triton")
    first = train(short(tmp_path / "first"))
    recorded = {"cuda_graphs": True, "compile": compiled}
    launched, recorded = (
        load_geo4d(train(short(tmp_path / name, start=first, unet_steps=20, **how)))
        for name, how in (("launched", {}), ("recorded", recorded))
    )
    changed, before = recorded.state_dict(), load_geo4d(first).state_dict()
    for name, expected in launched.state_dict().items():
        # Stored in bfloat16; sums in another order moved nothing further than its rounding.
        torch.testing.assert_close(changed[name], expected, atol=2e-3, rtol=2e-2, msg=name)
    assert any(not torch.equal(changed[name], before[name]) for name in before)
