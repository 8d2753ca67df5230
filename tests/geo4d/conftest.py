"""Small networks with random weights, as files and in memory."""

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
