"""Blocks of a transformer in training: checkpointed, kept, compiled."""

from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from more4d_backend.strag.sizes import VISM_SIZES
from training.run.blocks import set_blocks_up
from training.run.settings import RunSettings, SettingsError


def _run(**settings) -> RunSettings:
    return RunSettings(output=Path("x"), num_steps=1, batch_size=1, **settings)


@pytest.fixture
def train():
    """Return a function of run settings: gradients of a transformer of three blocks, and calls."""

    def gradients(**settings) -> tuple[list[torch.Tensor], int]:
        torch.manual_seed(0)
        transformer = WanTransformer3DModel(**VISM_SIZES["tiny"].config()).train()
        calls = []
        for block in transformer.blocks:
            block.norm1.register_forward_hook(lambda *_: calls.append(1))
        set_blocks_up(transformer, _run(**settings))
        torch.manual_seed(1)
        inputs = torch.randn(1, 36, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 512, 4096)
        transformer(*inputs, return_dict=False)[0].square().mean().backward()
        return [p.grad for p in transformer.parameters() if p.grad is not None], len(calls)

    return gradients


def test_checkpointed_blocks_compute_twice_and_kept_ones_once_with_the_same_gradients(train):
    plain, calls = train(gradient_checkpointing=False)
    assert calls == 3
    for kept, expected in ((0.0, 6), (0.34, 5), (1.0, 3)):
        gradients, calls = train(kept_blocks=kept)
        assert calls == expected
        assert all(torch.equal(a, b) for a, b in zip(plain, gradients, strict=True))


def test_compiled_blocks_have_the_same_gradients(train, monkeypatch):
    plain, _ = train()
    # Without generating code, which takes a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled, _ = train(compile_blocks=True)
    assert counters["stats"]["unique_graphs"] > 0
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_share_that_is_none_is_refused():
    with pytest.raises(SettingsError, match=r"run\.kept_blocks is 1\.5"):
        _run(kept_blocks=1.5)
