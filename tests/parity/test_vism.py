"""4D-ViSM's LoRA and conditioning against the recorded reference."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from more4d_backend.vism.conditioning import mask_latent, masked_video
from more4d_backend.vism.lora import load_lora, merge_lora, released_names, unmerge_lora
from more4d_backend.weights.files import stored
from more4d_backend.weights.keys import WAN_TRANSFORMER, renamed

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def recorded(parity_dir):
    return load_file(parity_dir / "vism_lora.safetensors")


@pytest.fixture
def transformer(recorded):
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=128,
        in_channels=36,
        out_channels=16,
        ffn_dim=256,
        num_layers=2,
        image_dim=1280,
        added_kv_proj_dim=128,
    )
    original = {
        name.removeprefix("weights."): tensor.float()
        for name, tensor in recorded.items()
        if name.startswith("weights.")
    }
    weights = renamed(stored(original), WAN_TRANSFORMER)
    model.load_state_dict({name: tensor.read() for name, tensor in weights.items()})
    return model.eval()


@pytest.fixture
def lora_file(recorded, tmp_path):
    lora = {k.removeprefix("lora."): v for k, v in recorded.items() if k.startswith("lora.")}
    save_file(lora, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


@torch.no_grad()
def velocity(transformer, recorded):
    context = recorded["in.context0"]
    text = torch.nn.functional.pad(context, (0, 0, 0, 512 - len(context)))[None]
    return transformer(
        hidden_states=torch.cat([recorded["in.x"], recorded["in.y"]], dim=1),
        timestep=recorded["in.timestep"],
        encoder_hidden_states=text,
        encoder_hidden_states_image=recorded["in.clip_features"],
        return_dict=False,
    )[0]


def test_the_fun_inp_transformer_computes_what_the_reference_does(transformer, recorded):
    torch.testing.assert_close(
        velocity(transformer, recorded), recorded["out.base"], atol=1e-5, rtol=0
    )


def test_with_the_lora_it_computes_what_the_reference_does_attached_and_merged(
    transformer, recorded, lora_file
):
    load_lora(transformer, lora_file, lora_weight=1.0)
    wanted = recorded["out.with_lora_multiplier_1"]
    assert (wanted - recorded["out.base"]).abs().max() > 1e-2
    torch.testing.assert_close(velocity(transformer, recorded), wanted, atol=1e-5, rtol=0)
    merge_lora(transformer)
    torch.testing.assert_close(velocity(transformer, recorded), wanted, atol=1e-5, rtol=0)
    unmerge_lora(transformer)
    torch.testing.assert_close(velocity(transformer, recorded), wanted, atol=1e-5, rtol=0)


def test_every_module_of_the_released_lora_has_its_place_at_full_size(parity_dir):
    from diffusers import WanTransformer3DModel

    keys = json.loads((parity_dir / "released_keys.json").read_text())
    released = keys["4D-ViSM LoRA (kohya key names, rank 128, alpha 64)"]
    with torch.device("meta"):
        model = WanTransformer3DModel(in_channels=36, image_dim=1280, added_kv_proj_dim=5120)
    names = released_names(model)
    assert len(names) == 488
    assert set(names) == {key.partition(".")[0] for key in released}
    for key, module_name in names.items():
        linear = model.get_submodule(module_name)
        assert released[f"{key}.lora_down.weight"] == [128, linear.in_features]
        assert released[f"{key}.lora_up.weight"] == [linear.out_features, 128]


def test_the_recorded_lora_has_a_part_for_each_of_its_modules(parity_dir, transformer):
    with safe_open(parity_dir / "vism_lora.safetensors", "pt") as file:
        names = {k.split(".")[1] for k in file.keys() if k.startswith("lora.")}
    assert names == set(released_names(transformer))


def test_masked_video_and_mask_latent_are_those_of_the_reference(parity_dir):
    recorded = load_file(parity_dir / "vism_conditioning.safetensors")
    rendered = recorded["in.rendered_01"][0].permute(1, 2, 3, 0)  # F H W C
    hole_mask = recorded["in.hole_mask"][0, 0] > 0.5
    assert torch.equal(mask_latent(hole_mask), recorded["out.mask_latent"])
    assert torch.equal(masked_video(rendered, hole_mask), recorded["out.masked_video"])
