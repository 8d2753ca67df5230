"""From files to networks."""

import pytest
import torch

from more4d_backend.strag.motion_vae import MotionLatentSettings
from more4d_backend.weights import load_into
from more4d_backend.weights.files import StoredTensor, WeightsError, stored
from more4d_backend.weights.kinds import WeightKind
from more4d_backend.weights.model_loading import (
    build_empty,
    load_motion_vae,
    load_strag,
    load_umt5,
    load_wan_transformer,
    load_wan_vae,
    network_names,
)

SETTINGS = MotionLatentSettings(clamp_decoded=True)
LOADERS = {
    WeightKind.FUN_INP: load_wan_transformer,
    WeightKind.STRAG: load_strag,
    WeightKind.WAN_VAE: load_wan_vae,
    WeightKind.MOTION_VAE: lambda path, **how: load_motion_vae(path, SETTINGS, **how),
    WeightKind.UMT5: load_umt5,
}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("names", ["original", "diffusers"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_network_comes_back_from_its_file(toy, tmp_path, kind, names, suffix):
    module = toy.make(kind)
    tensors = toy.originals(kind, module) if names == "original" else module.state_dict()
    loaded = LOADERS[kind](toy.on_disk(tmp_path / f"w{suffix}", tensors))
    state = loaded.state_dict()
    assert state.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert not any(p.is_meta for p in loaded.parameters())
    assert not loaded.training


def test_a_dtype_is_applied_except_where_diffusers_keeps_float32(toy, tmp_path):
    path = toy.on_disk(tmp_path / "w.safetensors", toy.originals(WeightKind.FUN_INP, toy.fun_inp()))
    loaded = load_wan_transformer(path, dtype=torch.bfloat16)
    assert loaded.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert loaded.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert loaded.scale_shift_table.dtype == torch.float32
    as_stored = load_wan_transformer(path)
    assert as_stored.blocks[0].attn1.to_q.weight.dtype == torch.float32


def test_a_loaded_transformer_computes_what_the_saved_one_does(toy, tmp_path):
    module = toy.strag().eval()
    path = toy.on_disk(tmp_path / "w.safetensors", toy.originals(WeightKind.STRAG, module))
    arguments = {
        "hidden_states": torch.randn(1, 64, 2, 4, 4),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 512, 32),
        "reference_latent": torch.randn(1, 16, 4, 4),
    }
    loaded = load_strag(path)
    with torch.no_grad():
        got, expected = loaded(**arguments).sample, module(**arguments).sample
    # Not to the bit: kernels depend on where in memory a tensor begins. 5e-7 measured.
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_missing_unexpected_and_misshapen_names_are_listed_five_each(toy, tmp_path):
    tensors = toy.originals(WeightKind.FUN_INP, toy.fun_inp())
    dropped = [name for name in tensors if name.startswith("blocks.1.self_attn.")][:7]
    for name in dropped:
        del tensors[name]
    tensors |= {f"stranger.{i}": torch.zeros(1) for i in range(6)}
    tensors["head.head.bias"] = torch.zeros(3)
    path = toy.on_disk(tmp_path / "w.safetensors", tensors)
    with pytest.raises(WeightsError) as raised:
        load_wan_transformer(path)
    told = str(raised.value)
    assert "does not fit WanTransformer3DModel" in told
    assert "7 missing: blocks.1.attn1" in told
    assert "and 2 more." in told
    assert "6 unexpected: stranger.0" in told
    assert "1 of another shape: proj_out.bias (3,) (needed (64,))." in told


def test_tied_weights_count_once_and_stay_tied(toy, tmp_path):
    module = toy.umt5()
    for kept in ("shared.weight", "encoder.embed_tokens.weight"):
        tensors = {
            name: t
            for name, t in module.state_dict().items()
            if name == kept or name not in ("shared.weight", "encoder.embed_tokens.weight")
        }
        loaded = load_umt5(toy.on_disk(tmp_path / "w.safetensors", tensors))
        assert loaded.shared.weight is loaded.encoder.embed_tokens.weight
        assert torch.equal(loaded.shared.weight, module.shared.weight)


def test_a_file_without_its_last_blocks_is_noticed_at_the_published_widths():
    names = {
        "patch_embedding.weight": (1536, 36, 1, 2, 2),
        "proj_out.weight": (64, 1536),
        "condition_embedder.text_embedder.linear_1.weight": (1536, 4096),
        "condition_embedder.time_embedder.linear_1.weight": (1536, 256),
        "blocks.0.ffn.net.0.proj.weight": (8960, 1536),
        "blocks.0.attn1.to_q.weight": (1536, 1536),
    }
    tensors = {
        n: StoredTensor(shape=s, dtype=torch.bfloat16, read=lambda: torch.empty(0))
        for n, s in names.items()
    }
    module = build_empty(WeightKind.FUN_INP, tensors)
    assert module.config["num_layers"] == 30


def test_a_tensor_that_sizes_are_read_from_is_named_when_it_is_missing(toy):
    tensors = dict(stored(toy.fun_inp().state_dict()))
    del tensors["proj_out.weight"]
    with pytest.raises(WeightsError, match=r"cannot be without the tensor 'proj_out\.weight'"):
        build_empty(WeightKind.FUN_INP, tensors)


def test_a_vae_of_another_family_is_refused(toy, tmp_path):
    vae = toy.wan_vae(z_dim=8)
    path = toy.on_disk(tmp_path / "w.safetensors", vae.state_dict())
    with pytest.raises(WeightsError, match="8 latent channels"):
        load_wan_vae(path)


def test_prefixes_of_trainers_are_taken_off(toy, tmp_path):
    module = toy.fun_inp()
    tensors = {f"_orig_mod.{n}": t for n, t in toy.originals(WeightKind.FUN_INP, module).items()}
    loaded = load_wan_transformer(toy.on_disk(tmp_path / "w.safetensors", tensors))
    assert torch.equal(loaded.proj_out.weight, module.proj_out.weight)


def test_loading_reads_each_tensor_once(toy):
    reads = []

    def source(name, tensor):
        return StoredTensor(
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            read=lambda: (reads.append(name), tensor)[1],
        )

    module = toy.fun_inp()
    tensors = {name: source(name, t) for name, t in module.state_dict().items()}
    empty = build_empty(WeightKind.FUN_INP, tensors)
    assert not reads
    load_into(empty, network_names(empty, WeightKind.FUN_INP, tensors), source="it")
    assert sorted(reads) == sorted(tensors)
