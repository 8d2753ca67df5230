"""Guidance of blocks by image features, without diffusers."""

import copy
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from more4d_backend.strag.motion_perception import (
    FeatureAdapter,
    Guidance,
    SpatialGuidance,
    current_guidance,
    encode_image,
    guidance_scope,
    guide_block,
)
from more4d_backend.strag.omnimae import OmniMAE, sinusoid_table

DIM, FEATURE_DIM, TOKENS = 6, 5, 4


def make_guidance_module(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    module = SpatialGuidance(DIM, FEATURE_DIM).to(dtype)
    nn.init.normal_(module.gate)
    return module


def make_guidance(seed=0, unguided_frame=-1, batch=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, TOKENS, FEATURE_DIM, generator=generator, dtype=dtype)
    return Guidance(features=features, unguided_frame=unguided_frame)


class ForeignBlock(nn.Module):
    """A Wan block as another host writes it: other names, other signatures."""

    def __init__(self):
        super().__init__()
        self.self_attn = ForeignAttention()
        self.ffn = nn.Sequential(nn.Linear(DIM, DIM), nn.GELU(), nn.Linear(DIM, DIM))

    def forward(self, x, freqs):
        x = x + self.self_attn(x, freqs, transformer_options={})
        return x + self.ffn(x)


class ForeignAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.o = nn.Linear(DIM, DIM)

    def forward(self, x, freqs, transformer_options):
        return self.o(x * freqs)


def make_foreign_block(seed=0):
    torch.manual_seed(seed)
    block = ForeignBlock()
    guide_block(block, dim=DIM, feature_dim=FEATURE_DIM, attention="self_attn")
    nn.init.normal_(block.spatial_guidance_self.gate)
    nn.init.normal_(block.spatial_guidance_ffn.gate)
    return block.double()


@torch.no_grad()
@settings(deadline=None)
@given(
    seed=st.integers(0, 2**16),
    frames=st.integers(1, 4),
    batch=st.integers(1, 3),
    unguided_frame=st.sampled_from([None, 0, -1]),
)
def test_guidance_on_one_frame_equals_the_published_formula_on_all_tokens(
    seed, frames, batch, unguided_frame
):
    module = make_guidance_module(seed)
    guidance = make_guidance(seed, unguided_frame)
    hidden = torch.randn(batch, frames * TOKENS, DIM, dtype=torch.float64)
    features = guidance.features.repeat(batch, frames, 1)
    padded = module.spatial_guide(features)
    if unguided_frame is not None:
        frame = torch.arange(frames)[unguided_frame]
        padded[:, frame * TOKENS : (frame + 1) * TOKENS] = 0
    scale, shift = padded.chunk(2, dim=-1)
    expected = hidden * (1 + module.gate * scale) + module.gate * shift
    torch.testing.assert_close(module(hidden, guidance), expected, atol=1e-12, rtol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("unguided_frame", [None, 0, 1, -1])
def test_what_is_written_for_compilers_computes_the_same(monkeypatch, unguided_frame):
    module, guidance = make_guidance_module(), make_guidance(unguided_frame=unguided_frame)
    hidden = torch.randn(2, 3 * TOKENS, DIM, dtype=torch.float64)
    eager = module(hidden, guidance)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(module(hidden, guidance), eager, atol=1e-12, rtol=0)


def test_the_linear_sees_the_tokens_of_one_frame_once():
    module = make_guidance_module()
    seen = []
    module.spatial_guide[1].register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape))
    module(torch.randn(2, 13 * TOKENS, DIM, dtype=torch.float64), make_guidance())
    assert seen == [(1, TOKENS, FEATURE_DIM)]


def test_the_input_is_not_written_to():
    hidden = torch.randn(1, 3 * TOKENS, DIM, dtype=torch.float64)
    before = hidden.clone()
    make_guidance_module()(hidden, make_guidance())
    assert torch.equal(hidden, before)


def test_features_per_batch_entry_guide_their_own_entry():
    module, both = make_guidance_module(), make_guidance(batch=2)
    hidden = torch.randn(2, 2 * TOKENS, DIM, dtype=torch.float64)
    alone = [
        module(hidden[i : i + 1], Guidance(features=both.features[i : i + 1], unguided_frame=-1))
        for i in range(2)
    ]
    torch.testing.assert_close(module(hidden, both), torch.cat(alone), atol=1e-12, rtol=0)


def test_new_guidance_changes_almost_nothing_and_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    module = SpatialGuidance(DIM, FEATURE_DIM)
    features = torch.randn(1, TOKENS, FEATURE_DIM, requires_grad=True)
    hidden = torch.randn(1, 2 * TOKENS, DIM)
    guided = module(hidden, Guidance(features=features, unguided_frame=-1))
    torch.testing.assert_close(guided, hidden, atol=1e-5, rtol=0)
    guided.square().sum().backward()
    for name, tensor in [*module.named_parameters(), ("features", features)]:
        assert tensor.grad is not None, name
        assert (tensor.grad != 0).all(), name


def test_a_block_of_another_host_keeps_its_names_and_is_guided_at_both_inputs():
    block = make_foreign_block()
    plain = {name for name, _ in ForeignBlock().named_parameters()}
    new = {name for name, _ in block.named_parameters()} - plain
    assert plain <= {name for name, _ in block.named_parameters()}
    assert new == {
        f"spatial_guidance_{place}.{name}"
        for place in ("self", "ffn")
        for name in ("gate", "spatial_guide.1.weight", "spatial_guide.1.bias")
    }
    guidance = make_guidance()
    x, freqs = torch.randn(2, 1, 3 * TOKENS, DIM, dtype=torch.float64)
    attended = x + block.self_attn.o(block.spatial_guidance_self(x, guidance) * freqs)
    guided_again = block.spatial_guidance_ffn(attended, guidance)
    for layer in block.ffn:
        guided_again = layer(guided_again)
    with guidance_scope(guidance):
        torch.testing.assert_close(block(x, freqs), attended + guided_again, atol=1e-12, rtol=0)


def test_outside_a_scope_a_block_is_what_it_was():
    block = make_foreign_block()
    plain = ForeignBlock().double()
    plain.load_state_dict({n: t for n, t in block.state_dict().items() if "spatial" not in n})
    x, freqs = torch.randn(2, 1, 3 * TOKENS, DIM, dtype=torch.float64)
    assert torch.equal(block(x, freqs), plain(x, freqs))


def test_scopes_nest_and_end_with_an_exception():
    outer, inner = make_guidance(0), make_guidance(1)
    with guidance_scope(outer):
        with guidance_scope(inner):
            assert current_guidance() is inner
        assert current_guidance() is outer
        with pytest.raises(KeyError), guidance_scope(inner):
            raise KeyError
        assert current_guidance() is outer
    assert current_guidance() is None


def test_threads_do_not_see_each_others_guidance():
    block = make_foreign_block()
    x, freqs = torch.randn(2, 1, 3 * TOKENS, DIM, dtype=torch.float64)
    guidances = [make_guidance(seed) for seed in range(4)] + [None]

    def run(guidance):
        with guidance_scope(guidance):
            return block(x, freqs)

    alone = [run(guidance) for guidance in guidances]
    results = [None] * len(guidances)
    started = threading.Barrier(len(guidances))

    def work(i):
        started.wait()
        for _ in range(50):
            results[i] = run(guidances[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(guidances))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(alone, results, strict=True))


def test_a_copied_block_is_guided_by_its_own_parameters():
    block = make_foreign_block()
    copied = copy.deepcopy(block)
    x, freqs = torch.randn(2, 1, 3 * TOKENS, DIM, dtype=torch.float64)
    with guidance_scope(make_guidance()), torch.no_grad():
        before = block(x, freqs)
        copied.spatial_guidance_self.gate.add_(1)
        assert torch.equal(block(x, freqs), before)
        assert not torch.equal(copied(x, freqs), before)


def test_every_layer_comes_from_the_given_operations():
    def own(cls):
        return type(f"Host{cls.__name__}", (cls,), {})

    layers = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.LayerNorm)
    operations = SimpleNamespace(**{cls.__name__: own(cls) for cls in layers})
    parts = nn.ModuleList(
        [
            OmniMAE(32, 1, 4, operations),
            FeatureAdapter(32, 8, operations),
            SpatialGuidance(DIM, 8, operations),
        ]
    )
    made = [m for m in parts.modules() if isinstance(m, layers)]
    assert len(made) == 1 + 6 + 1 + 2 + 1
    assert all(type(m).__name__.startswith("Host") for m in made)


def test_an_image_of_any_size_becomes_features_on_the_token_grid():
    torch.manual_seed(0)
    extractor, adapter = OmniMAE(32, 2, 4), FeatureAdapter(32, 8)
    features = encode_image(extractor, adapter, torch.rand(2, 3, 60, 90), (23, 32))
    assert features.shape == (2, 23 * 32, 8)


def test_features_follow_the_image_row_by_row():
    torch.manual_seed(0)
    extractor, adapter = OmniMAE(32, 0, 4), FeatureAdapter(32, 8)
    image = torch.full((1, 3, 224, 224), 0.5)
    changed = image.clone()
    changed[..., :16, -16:] = 1  # the top right patch
    grid = (14, 14)
    with torch.no_grad():
        difference = encode_image(extractor, adapter, changed, grid) - encode_image(
            extractor, adapter, image, grid
        )
    moved = difference.abs().sum(-1)[0].unflatten(0, grid) > 1e-6
    # Two 3x3 convolutions reach two patches far.
    assert moved[:3, -3:].all()
    assert not moved[3:].any()
    assert not moved[:, :-3].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_image_is_encoded_in_the_dtype_of_the_weights(dtype):
    torch.manual_seed(0)
    extractor, adapter = OmniMAE(32, 1, 4).to(dtype), FeatureAdapter(32, 8).to(dtype)
    assert encode_image(extractor, adapter, torch.rand(1, 3, 32, 32), (2, 2)).dtype == dtype


def test_positions_are_sines_and_cosines_of_shared_frequencies():
    table = sinusoid_table(3, 4)
    angle = torch.tensor([[0.0, 0.0], [1.0, 0.01], [2.0, 0.02]])
    torch.testing.assert_close(table[:, 0::2], angle.sin())
    torch.testing.assert_close(table[:, 1::2], angle.cos())


def test_motion_perception_does_not_need_diffusers():
    code = "import sys, more4d_backend.strag.motion_perception; print('diffusers' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
