"""Video in, scene out, inside of a real host: the same as without one."""

import pytest
import torch

from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.pipeline import ReconstructionSettings, reconstruct
from more4d_backend.geo4d.sampling import SamplingSettings
from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.geo4d.video import PictureVideo
from more4d_backend.weights.geo4d import save_geo4d


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("geometry_estimation")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = Geo4DNetworks(GEO4D_SIZES["toy"]).eval()
    networks.num_steps = 1
    save_geo4d(networks, folder / "toy_geo4d.safetensors", dtype=torch.float32)
    return folder, networks


def video(frames=5, height=60, width=90):
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 4, width), indexing="ij")
    phase = torch.arange(frames)[:, None, None] / 7
    return (torch.stack([torch.sin(x * k + y * (3 - k) + phase) for k in range(3)], -1) + 1) / 2


@pytest.fixture
def one_thread():
    """More threads add in another order, which shows in scenes of random networks: nothing fits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_video_becomes_the_scene_that_it_becomes_without_a_host(native_host, toy):
    folder, networks = toy
    found = native_host.call(
        "geo4d_nodes.reconstructed", folder=str(folder), name="toy_geo4d.safetensors", image=video()
    )
    settings = ReconstructionSettings(seed=3, sampling=SamplingSettings(num_steps=1))
    scene = reconstruct(PictureVideo(video(), fps=12.0), networks, settings).scene
    assert found["fps"] == 12
    assert found["positions"].shape == (5, 60, 90, 3)
    assert "windows" in found["report"]
    torch.testing.assert_close(found["colors"], scene.points.colors)
    # Another torch rounds otherwise, and random networks make hardly anything that fits together.
    same = (found["valid"] == scene.points.valid).float().mean()
    assert same > 0.98
    torch.testing.assert_close(found["intrinsics"], scene.cameras.intrinsics, rtol=0.02, atol=1e-3)


def test_0_steps_are_those_that_the_weights_are_made_for(native_host, toy):
    folder, _ = toy
    positions = [
        native_host.call(
            "geo4d_nodes.reconstructed",
            folder=str(folder),
            name="toy_geo4d.safetensors",
            image=video(2),
            num_steps=num_steps,
        )["positions"]
        for num_steps in (0, 1, 5)
    ]
    torch.testing.assert_close(positions[0], positions[1], equal_nan=True)
    assert not torch.allclose(positions[0], positions[2], atol=1e-3, equal_nan=True)


def test_every_input_says_what_it_is(native_host):
    assert native_host.call("geo4d_nodes.schemas") == {
        "More4DLoadGeo4D": True,
        "More4DReconstruct": True,
    }


def test_cancel_ends_a_reconstruction(native_host, toy):
    folder, _ = toy
    told = native_host.call(
        "geo4d_nodes.interrupted", folder=str(folder), name="toy_geo4d.safetensors", image=video()
    )
    assert told["interrupted"]
