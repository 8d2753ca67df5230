import sys
from types import ModuleType

import pytest
import torch

from more4d_backend.depth import DepthProviderError, UniDepth, lift_prediction

IMAGE = torch.rand(24, 32, 3, generator=torch.Generator().manual_seed(0))
INTRINSICS = torch.tensor([[30.0, 0, 16.5], [0, 31, 12], [0, 0, 1]])


class StandIn(torch.nn.Module):
    """UniDepthV2's interface; records what it was given."""

    loaded_from = None

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    @classmethod
    def from_pretrained(cls, source):
        cls.loaded_from = source
        return cls()

    def infer(self, rgb):
        self.seen.append(rgb)
        depth = rgb.float().mean(0)[None, None] / 100 + 1
        return {"depth": depth, "intrinsics": INTRINSICS[None], "confidence": depth}


@pytest.fixture
def installed(monkeypatch):
    package, models = ModuleType("unidepth"), ModuleType("unidepth.models")
    models.UniDepthV2 = StandIn
    monkeypatch.setitem(sys.modules, "unidepth", package)
    monkeypatch.setitem(sys.modules, "unidepth.models", models)


def test_unidepth_gets_bytes_and_its_intrinsics_are_used(installed, tmp_path):
    provider = UniDepth.load(tmp_path)
    assert StandIn.loaded_from == tmp_path
    found = provider.predict(IMAGE)
    (rgb,) = provider.model.seen
    assert rgb.dtype == torch.uint8
    assert torch.equal(rgb, (IMAGE * 255).round().byte().permute(2, 0, 1))
    torch.testing.assert_close(found.depth, rgb.float().mean(0) / 100 + 1)
    scene = lift_prediction(IMAGE, found)
    assert torch.equal(scene.cameras.intrinsics[0], INTRINSICS)


def test_without_the_package_the_error_says_licence_and_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "unidepth.models", None)
    with pytest.raises(DepthProviderError) as caught:
        UniDepth.load()
    assert "CC BY-NC 4.0" in str(caught.value)
    assert "pip install --no-deps git+https://github.com/lpiccinelli-eth/UniDepth" in str(
        caught.value
    )


def test_weights_are_never_fetched_unasked(installed, connections):
    with pytest.raises(DepthProviderError, match="hf download lpiccinelli/unidepth-v2-vitl14"):
        UniDepth.load()
    assert connections == []
