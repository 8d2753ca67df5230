"""Small networks with random weights, as files and in memory, and clips for them."""

import pytest
import torch

from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.sizes import GEO4D_SIZES


@pytest.fixture(scope="session")
def toy_networks() -> Geo4DNetworks:
    """Of windows of four frames; multiples of 8 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Geo4DNetworks(GEO4D_SIZES["toy"]).eval()


@pytest.fixture(scope="session")
def toy_weights(toy_networks, tmp_path_factory):
    """Path of their file."""
    from more4d_backend.weights.geo4d import save_geo4d

    path = tmp_path_factory.mktemp("geo4d") / "toy.safetensors"
    save_geo4d(toy_networks, path, dtype=torch.float32)
    return path


@pytest.fixture(scope="session")
def one_step():
    """Settings of as little work as there can be."""
    from more4d_backend.geo4d.alignment import AlignmentSettings
    from more4d_backend.geo4d.pipeline import ReconstructionSettings
    from more4d_backend.geo4d.sampling import SamplingSettings

    return ReconstructionSettings(
        sampling=SamplingSettings(num_steps=1), alignment=AlignmentSettings(max_iterations=2)
    )


@pytest.fixture(scope="session")
def colors():
    """`colors(frames, height, width)`: smooth pictures that move."""

    def make(frames: int, height: int = 48, width: int = 64) -> torch.Tensor:
        down, right = torch.linspace(0, 3, height), torch.linspace(0, 4, width)
        y, x = torch.meshgrid(down, right, indexing="ij")
        phase = torch.arange(frames)[:, None, None] / 7
        waves = [torch.sin(x * k + y * (3 - k) + phase) for k in range(3)]
        return (torch.stack(waves, -1) + 1) / 2

    return make


@pytest.fixture(scope="session")
def clip(colors):
    """`clip(frames, height, width)`: a video of them."""
    from more4d_backend.geo4d.video import PictureVideo

    return lambda frames, height=48, width=64: PictureVideo(colors(frames, height, width), fps=12.0)


@pytest.fixture(scope="session")
def prepared(clip):
    """`prepared(networks, frames)`: a framed clip, its encoded video, and windows of stride 1."""
    from more4d_backend.geo4d.framing import plan_framing
    from more4d_backend.geo4d.pipeline import encode_video
    from more4d_backend.geo4d.video import frame_video
    from more4d_backend.geo4d.windows import plan_windows

    def make(networks, frames: int):
        framed = frame_video(clip(frames), lambda hw: plan_framing(hw, networks.size))
        windows = plan_windows(frames, 1, networks.size.num_frames)
        return framed, encode_video(networks, framed), windows

    return make
