"""Wan's own encoder files, against independent forward passes in their own names."""

import math

import pytest
import torch
from torch.nn import functional as F

from more4d_backend.weights.kinds import WeightKind
from more4d_backend.weights.model_loading import load_clip_vision, load_umt5

transformers = pytest.importorskip("transformers")


def original_umt5_forward(w: dict[str, torch.Tensor], ids: torch.Tensor, heads: int):
    from transformers.models.umt5.modeling_umt5 import UMT5Attention

    def rms(x, name):
        return w[name] * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    x = w["token_embedding.weight"][ids]
    steps = torch.arange(ids.shape[1])
    config = transformers.UMT5Config()
    bucket = UMT5Attention(config)._relative_position_bucket(steps[None, :] - steps[:, None])
    for i in range(2):
        block = f"blocks.{i}."
        y = rms(x, block + "norm1.weight")
        q, k, v = (
            (y @ w[f"{block}attn.{p}.weight"].T).unflatten(-1, (heads, -1)).transpose(1, 2)
            for p in "qkv"
        )
        bias = w[block + "pos_embedding.embedding.weight"][bucket].permute(2, 0, 1)
        attended = ((q @ k.mT + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + attended @ w[block + "attn.o.weight"].T
        y = rms(x, block + "norm2.weight")
        gate = F.gelu(y @ w[block + "ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (gate * (y @ w[block + "ffn.fc1.weight"].T)) @ w[block + "ffn.fc2.weight"].T
    return rms(x, "norm.weight")


def test_the_original_umt5_layout_computes_the_same_through_transformers(toy, tmp_path):
    module = toy.umt5()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    weights = toy.originals(WeightKind.UMT5, module)
    assert {"token_embedding.weight", "blocks.1.ffn.gate.0.weight", "norm.weight"} <= set(weights)
    loaded = load_umt5(toy.on_disk(tmp_path / "models_t5.pth", weights))
    ids = torch.randint(0, 40, (2, 150), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = loaded(ids).last_hidden_state
        expected = original_umt5_forward(weights, ids, heads=3)
    assert (got - expected).abs().max() < 1e-4  # 1.2e-5 measured in float32


def original_clip_forward(w: dict[str, torch.Tensor], image: torch.Tensor, heads: int):
    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    patches = F.conv2d(image, w["visual.patch_embedding.weight"], stride=14).flatten(2).mT
    x = torch.cat([w["visual.cls_embedding"].expand(len(image), -1, -1), patches], dim=1)
    x = norm(x + w["visual.pos_embedding"], "visual.pre_norm")
    for i in range(1):  # all but the last of two layers
        block = f"visual.transformer.{i}"
        fused = linear(norm(x, f"{block}.norm1"), f"{block}.attn.to_qkv")
        q, k, v = fused.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + linear((scores @ v).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.0"))
        x = x + linear(hidden, f"{block}.mlp.2")
    return x


def test_the_original_clip_layout_computes_the_same_through_transformers(toy, tmp_path):
    module = toy.clip()
    weights = toy.original_clip(module)
    path = toy.on_disk(tmp_path / "models_clip.pth", weights)
    loaded = load_clip_vision(path)
    image = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = loaded(image, output_hidden_states=True).hidden_states[-2]
        expected = original_clip_forward(weights, image, heads=2)
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_transformers_clip_names_load_with_and_without_their_prefix(toy, tmp_path, prefix):
    module = toy.clip()
    state = {
        prefix + name.removeprefix("vision_model."): tensor
        for name, tensor in module.state_dict().items()
    }
    loaded = load_clip_vision(toy.on_disk(tmp_path / "c.safetensors", state))
    assert all(torch.equal(loaded.state_dict()[n], t) for n, t in module.state_dict().items())
