"""Video to scene on a GPU: the same as on the CPU, and what is left there afterwards."""

import pytest
import torch

from more4d_backend.geo4d.framing import plan_framing
from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.pipeline import (
    ReconstructionSettings,
    encode_video,
    reconstruct,
    sample_windows,
)
from more4d_backend.geo4d.sampling import SamplingSettings
from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.geo4d.video import PictureVideo, frame_video
from more4d_backend.geo4d.windows import plan_windows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def networks(device):
    torch.manual_seed(0)
    return Geo4DNetworks(GEO4D_SIZES["toy"]).eval().requires_grad_(False).to(device)


def video(frames=7, height=48, width=64):
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 4, width), indexing="ij")
    phase = torch.arange(frames)[:, None, None] / 7
    waves = [torch.sin(x * k + y * (3 - k) + phase) for k in range(3)]
    return PictureVideo((torch.stack(waves, -1) + 1) / 2, fps=12.0)


def latents(device):
    model = networks(device)
    framed = frame_video(video(), lambda hw: plan_framing(hw, model.size), device)
    settings = ReconstructionSettings(sampling=SamplingSettings(num_steps=2))
    windows = plan_windows(framed.num_frames, 1, model.size.num_frames)
    return sample_windows(model, encode_video(model, framed), windows, settings)


def test_windows_are_those_of_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.testing.assert_close(latents("cuda"), latents("cpu"), atol=2e-3, rtol=2e-3)


def test_the_scene_is_on_the_cpu_and_nothing_stays_on_the_gpu():
    model = networks("cuda")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    scene = reconstruct(video(), model).scene
    assert scene.points.positions.device.type == "cpu"
    assert scene.num_frames == 7
    assert torch.cuda.memory_allocated() - before < 1 << 20


def test_one_seed_gives_one_scene():
    model = networks("cuda")
    settings = ReconstructionSettings(sampling=SamplingSettings(num_steps=1))
    first, second = (sample_of(model, settings) for _ in range(2))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


def sample_of(model, settings):
    framed = frame_video(video(), lambda hw: plan_framing(hw, model.size), "cuda")
    windows = plan_windows(framed.num_frames, 2, model.size.num_frames)
    return sample_windows(model, encode_video(model, framed), windows, settings)
