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


@pytest.mark.parametrize("workers", [0, 2])
def test_a_short_training_on_cuda_writes_finite_weights(tmp_path, workers, caplog):
    training = TinyGeo4DTraining(
        output=tmp_path, clips=ClipSettings(size_hw=(32, 48)), minutes=None, pool_size=32,
        variants=2, vae_steps=4, unet_steps=4, unet_windows=8, workers=workers, evaluated_clips=8,
    )  # fmt: skip
    with caplog.at_level("INFO"):
        path = train(training)
    assert "5 steps: rotation RPE" in caplog.text
    networks = load_geo4d(path, dtype=torch.float32)
    assert all(parameter.isfinite().all() for parameter in networks.parameters())
