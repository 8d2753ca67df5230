from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from more4d_backend.strag.omnimae import OmniMAE
from more4d_backend.strag.profile import OWN
from more4d_backend.strag.sizes import PerceptionSize, StragSize, WanSize
from more4d_backend.weights.files import WeightsError
from training import networks
from training.recipes import (
    Ablation,
    WeightFiles,
    motion_vae_tiny,
    strag_own,
    strag_tiny,
    vism_own,
    vism_tiny_lora,
)
from training.run.settings import SettingsError

HERE = Path("data"), Path("run")
TOY = StragSize(
    wan=WanSize(in_channels=64, num_layers=1, num_heads=1, ffn_dim=64),
    perception=PerceptionSize(dim=128, depth=1, num_heads=4, feature_dim=32),
)


def test_random_networks_are_those_of_their_seed_and_leave_the_random_state_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    config = strag_tiny(*HERE)
    first, second = networks.strag_to_train(config), networks.strag_to_train(config)
    other = networks.strag_to_train(replace(config, run=replace(config.run, seed=43)))
    assert torch.equal(torch.get_rng_state(), state)
    name = "blocks.0.attn1.to_q.weight"
    assert torch.equal(first.get_parameter(name), second.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_networks_taken_as_given_are_frozen():
    files, seed = WeightFiles(from_scratch=True), 0
    for module in (
        networks.rgb_vae(files, "tiny", seed=seed),
        networks.motion_vae(files, "tiny", OWN, seed=seed),
        networks.text_encoder(files, "tiny", seed=seed).model,
    ):
        assert not any(p.requires_grad for p in module.parameters())
        assert not module.training
    assert networks.image_encoder(files, "tiny") is None


def test_the_motion_vae_and_the_rgb_vae_of_one_seed_share_their_encoder():
    files = WeightFiles(from_scratch=True)
    rgb = networks.rgb_vae(files, "tiny", seed=3).state_dict()
    motion = networks.motion_vae(files, "tiny", OWN, seed=3).vae.state_dict()
    assert all(torch.equal(rgb[name], motion[name]) for name in rgb)


def test_what_learns_in_each_network():
    def learning(module: nn.Module) -> set[str]:
        return {n for n, p in module.named_parameters() if p.requires_grad}

    config = strag_tiny(*HERE)
    whole = networks.strag_to_train(config)
    assert learning(whole) == {n for n, _ in whole.named_parameters()}
    frozen = learning(networks.strag_to_train(replace(config, train_perception=False)))
    assert not any(n.startswith("omnimae_extractor") for n in frozen)
    assert any(n.startswith("feature_adapter") for n in frozen)
    ablation = replace(config, ablation=Ablation(motion_perception=False))
    words = ("omnimae", "feature_adapter", "guidance")
    assert not any(w in n for n in learning(networks.strag_to_train(ablation)) for w in words)
    starts = {
        n.split(".")[0] for n in learning(networks.motion_vae_to_train(motion_vae_tiny(*HERE)))
    }
    assert starts == {"encoder_prompt", "decoder_prompt", "vae"}


def test_a_lora_is_float32_on_a_base_in_bfloat16():
    config = vism_tiny_lora(*HERE)
    model = networks.vism_to_train(replace(config, weights=WeightFiles(from_scratch=True)))
    for name, parameter in model.named_parameters():
        expected = torch.float32 if "lora_" in name else torch.bfloat16
        assert parameter.dtype == expected, name


def test_a_whole_network_to_train_is_float32():
    model = networks.strag_to_train(strag_tiny(*HERE))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("make", "config", "needed"),
    [
        (networks.strag_to_train, strag_own(*HERE), "fun-control"),
        (networks.vism_to_train, vism_own(*HERE), "fun-inp"),
    ],
)
def test_a_full_size_without_weights_says_how_to_get_them(make, config, needed, monkeypatch):
    monkeypatch.setattr(
        "more4d_backend.weights.downloads.find_downloaded", lambda name, folder: None
    )
    with pytest.raises(WeightsError, match=f"python -m more4d_backend download {needed}"):
        make(config)


@pytest.fixture
def embedded(random_embedded, monkeypatch) -> Path:
    """Folder of embedded files with random values, in place of the trained ones."""
    monkeypatch.setattr("more4d_backend.tiny.WEIGHTS_FOLDER", random_embedded)
    return random_embedded


def test_what_the_tiny_size_takes_as_given_is_embedded_unless_it_is_named(embedded, tmp_path):
    from more4d_backend.tiny import relative_path
    from more4d_backend.tiny.text_encoder import ByteTextEncoder
    from more4d_backend.weights.model_loading import load_wan_transformer, load_wan_vae

    vae = networks.rgb_vae(WeightFiles(), "tiny", seed=0)
    stored = load_wan_vae(embedded / relative_path("wan_vae")).state_dict()
    assert all(torch.equal(t.bfloat16(), stored[n]) for n, t in vae.state_dict().items())
    motion = networks.motion_vae(WeightFiles(), "tiny", OWN, seed=0)
    assert torch.equal(motion.vae.encoder.conv_in.weight, vae.encoder.conv_in.weight)
    text = networks.text_encoder(WeightFiles(), "tiny", seed=0)
    assert isinstance(text, ByteTextEncoder)
    lora = networks.vism_to_train(vism_tiny_lora(*HERE)).state_dict()
    base = load_wan_transformer(embedded / relative_path("vism")).state_dict()
    name = "blocks.0.attn1.to_q"
    assert torch.equal(lora[f"{name}.base_layer.weight"], base[f"{name}.weight"])
    scratch = WeightFiles(from_scratch=True)
    new = networks.rgb_vae(scratch, "tiny", seed=0)
    assert not torch.equal(new.encoder.conv_in.weight, vae.encoder.conv_in.weight)
    assert not isinstance(networks.text_encoder(scratch, "tiny", seed=0), ByteTextEncoder)


def test_an_embedded_motion_vae_is_not_put_on_another_encoder(embedded, tmp_path):
    other = WeightFiles(wan_vae=tmp_path / "mine.safetensors")
    with pytest.raises(SettingsError, match=r"Name weights\.motion_vae too"):
        networks.motion_vae(other, "tiny", OWN, seed=0)


@pytest.mark.parametrize("load", [networks.rgb_vae, networks.text_encoder])
def test_given_networks_of_full_size_are_never_random(load, monkeypatch):
    monkeypatch.setattr(
        "more4d_backend.weights.downloads.find_downloaded", lambda name, folder: None
    )
    with pytest.raises(WeightsError, match="python -m more4d_backend download"):
        load(WeightFiles(), "14b", seed=0)


def test_the_base_of_other_sizes_must_be_named():
    with pytest.raises(SettingsError, match=r"weights\.base must be named for the size 1\.3b"):
        networks.strag_to_train(replace(strag_own(*HERE), size="1.3b"))


@pytest.fixture
def fun_control(tmp_path, monkeypatch) -> WeightFiles:
    """Files of a toy Fun-Control model and a toy OmniMAE, which stand for the size 1.3b."""
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    monkeypatch.setitem(networks.STRAG_SIZES, "1.3b", TOY)
    wan = WanTransformer3DModel(**replace(TOY.wan, in_channels=48).config())
    reference = nn.Conv2d(16, TOY.wan.dim, 2, stride=2).state_dict()
    base = wan.state_dict() | {f"ref_conv.{name}": t for name, t in reference.items()}
    save_file({n: t.contiguous() for n, t in base.items()}, tmp_path / "base.safetensors")
    save_file(OmniMAE(128, 1, 4).state_dict(), tmp_path / "omnimae.safetensors")
    return WeightFiles(base=tmp_path / "base.safetensors", omnimae=tmp_path / "omnimae.safetensors")


def test_training_begins_from_fun_control_with_omnimae(fun_control):
    from safetensors.torch import load_file

    config = replace(strag_own(*HERE), size="1.3b", weights=fun_control)
    model = networks.strag_to_train(config)
    base = load_file(fun_control.base)
    assert torch.equal(model.ref_conv.weight, base["ref_conv.weight"])
    patches = model.patch_embedding.weight
    assert torch.equal(patches[:, :48], base["patch_embedding.weight"])
    assert not patches[:, 48:].any()
    omnimae = load_file(fun_control.omnimae)["trunk.norm.weight"]
    assert torch.equal(model.omnimae_extractor.trunk.norm.weight, omnimae)
    assert not model.omnimae_extractor.trunk.norm.weight.requires_grad
    assert model.feature_adapter.get_parameter("0.weight").requires_grad


def test_training_goes_on_from_a_strag_file(tmp_path):
    from more4d_backend.weights.kinds import WeightKind
    from training.run.export import export_weights

    config = strag_tiny(*HERE)
    first = networks.strag_to_train(config)
    path = tmp_path / "strag.safetensors"
    export_weights(first.state_dict(), WeightKind.STRAG, path, dtype=torch.float32)
    again = replace(config, weights=WeightFiles(base=path), run=replace(config.run, seed=1))
    second = networks.strag_to_train(again)
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


def test_a_file_of_another_kind_is_refused(fun_control):
    config = replace(vism_own(*HERE), weights=WeightFiles(base=fun_control.base))
    with pytest.raises(WeightsError, match=r"is a Wan2\.1 Fun-Control .* Needed here: a Wan2\.1"):
        networks.vism_to_train(config)
