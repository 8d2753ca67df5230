import pytest
import torch
from safetensors.torch import load_file, save_file

from more4d_backend.vism.lora import (
    add_lora,
    load_lora,
    merge_lora,
    released_names,
    released_tensors,
    save_lora,
    set_lora_weight,
    unmerge_lora,
)
from more4d_backend.weights.files import WeightsError


def transformer(width=24, image=True, dtype=torch.float32):
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=width,
        in_channels=36,
        out_channels=16,
        text_dim=8,
        freq_dim=8,
        ffn_dim=16,
        num_layers=2,
        image_dim=8 if image else None,
        added_kv_proj_dim=width if image else None,
    )
    return model.to(dtype).eval()


def lora_tensors(model, seed=1, rank=4, alpha=2.0):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for released, name in released_names(model).items():
        linear = model.get_submodule(name)
        down = torch.randn(rank, linear.in_features, generator=generator)
        up = torch.randn(linear.out_features, rank, generator=generator)
        tensors[f"{released}.lora_down.weight"] = 0.3 * down
        tensors[f"{released}.lora_up.weight"] = 0.3 * up
        tensors[f"{released}.alpha"] = torch.tensor(alpha)
    return tensors


@pytest.fixture
def lora_file(tmp_path):
    def write(tensors):
        save_file(tensors, tmp_path / "lora.safetensors")
        return tmp_path / "lora.safetensors"

    return write


@torch.no_grad()
def velocity(model):
    generator = torch.Generator().manual_seed(2)
    image_dim = model.config["image_dim"]
    image = None if image_dim is None else torch.randn(1, 257, image_dim, generator=generator)
    return model(
        hidden_states=torch.randn(1, 36, 1, 4, 4, generator=generator),
        timestep=torch.tensor([500.0]),
        encoder_hidden_states=torch.randn(1, 512, 8, generator=generator),
        encoder_hidden_states_image=image,
        return_dict=False,
    )[0]


def test_the_lora_adds_weight_times_alpha_over_rank_times_up_times_down(lora_file):
    attached, by_hand = transformer(), transformer()
    tensors = lora_tensors(attached, rank=4, alpha=3.0)
    for released, name in released_names(by_hand).items():
        up, down = (tensors[f"{released}.lora_{part}.weight"] for part in ("up", "down"))
        by_hand.get_submodule(name).weight.data += 0.55 * 3.0 / 4 * up @ down
    before = velocity(attached)
    load_lora(attached, lora_file(tensors))
    assert (velocity(attached) - before).abs().max() > 0.1
    torch.testing.assert_close(velocity(attached), velocity(by_hand), atol=1e-5, rtol=1e-5)


def test_each_module_may_have_its_own_rank_and_alpha(lora_file):
    attached, by_hand = transformer(), transformer()
    tensors = lora_tensors(attached)
    odd = lora_tensors(attached, seed=5, rank=2, alpha=7.0)
    for released in ("lora_unet__blocks_1_ffn_0", "lora_unet__head_head"):
        tensors |= {key: value for key, value in odd.items() if key.startswith(released + ".")}
    del tensors["lora_unet__blocks_0_ffn_0.alpha"]  # then alpha is the rank
    for released, name in released_names(by_hand).items():
        up, down = (tensors[f"{released}.lora_{part}.weight"] for part in ("up", "down"))
        alpha = tensors.get(f"{released}.alpha", torch.tensor(4.0))
        by_hand.get_submodule(name).weight.data += alpha / down.shape[0] * up @ down
    load_lora(attached, lora_file(tensors), lora_weight=1.0)
    torch.testing.assert_close(velocity(attached), velocity(by_hand), atol=1e-5, rtol=1e-5)


def test_merging_changes_no_result_and_unmerging_brings_the_weights_back(lora_file):
    model = transformer()
    original = {k: v.clone() for k, v in model.state_dict().items()}
    load_lora(model, lora_file(lora_tensors(model)))
    attached = velocity(model)
    merge_lora(model)
    torch.testing.assert_close(velocity(model), attached, atol=1e-5, rtol=1e-5)
    unmerge_lora(model)
    for name, value in model.state_dict().items():
        if "lora_" not in name:
            before = original[name.replace(".base_layer", "")]
            torch.testing.assert_close(value, before, atol=1e-6, rtol=0)


def test_the_weight_can_be_changed_while_the_lora_is_attached_and_not_while_it_is_merged(lora_file):
    model = transformer()
    before = velocity(model)
    load_lora(model, lora_file(lora_tensors(model)))
    set_lora_weight(model, 0.0)
    torch.testing.assert_close(velocity(model), before)
    merge_lora(model)
    with pytest.raises(WeightsError, match="is merged; unmerge it"):
        set_lora_weight(model, 1.0)


def test_saving_gives_back_the_file_that_was_loaded(lora_file, tmp_path):
    model = transformer()
    tensors = lora_tensors(model)
    load_lora(model, lora_file(tensors), lora_weight=0.3)
    save_lora(model, tmp_path / "again.safetensors", metadata={"steps": "5"})
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert torch.equal(again[key], tensor), key


def test_a_new_lora_changes_nothing_and_trains_every_module():
    model = transformer().requires_grad_(False)
    before = velocity(model)
    add_lora(model, rank=4, alpha=2.0)
    torch.testing.assert_close(velocity(model), before)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * len(released_names(model))
    assert all("lora_" in name for name in trainable)
    assert len(released_tensors(model)) == 3 * len(released_names(model))
    generator = torch.Generator().manual_seed(2)
    model(
        hidden_states=torch.randn(1, 36, 1, 4, 4, generator=generator),
        timestep=torch.tensor([500.0]),
        encoder_hidden_states=torch.randn(1, 512, 8, generator=generator),
        encoder_hidden_states_image=torch.randn(1, 257, 8, generator=generator),
        return_dict=False,
    )[0].square().sum().backward()
    still = [n for n, p in model.named_parameters() if "lora_B" in n and not p.grad.any()]
    assert still == []


def test_a_transformer_without_image_tokens_has_no_such_modules():
    with_image, without = released_names(transformer()), released_names(transformer(image=False))
    extra = {name for name in with_image if "img" in name}
    assert len(extra) == 2 + 2 * 2
    assert set(with_image) - set(without) == extra


def test_half_precision_transformers_get_a_lora_of_their_precision(lora_file):
    model = transformer(dtype=torch.bfloat16)
    load_lora(model, lora_file(lora_tensors(model)))
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.bfloat16}


def test_a_lora_of_another_size_is_refused_and_says_both_sizes(lora_file):
    tensors = lora_tensors(transformer(width=36))
    model = transformer(width=24)
    with pytest.raises(WeightsError, match=r"model of another size.*\(rank, 24\)"):
        load_lora(model, lora_file(tensors))
    assert not any("lora_" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["lora_unet_down_blocks_0_attn.lora_down.weight"], "a LoRA for a Stable Diffusion UNet"),
        (["diffusion_model.blocks.0.self_attn.q.lora_A.weight"], "in the names of another trainer"),
        (["transformer.blocks.0.attn1.to_q.lora_A.weight"], "in diffusers' names"),
        (["decoder.conv1.weight"], "is not a LoRA"),
        (["lora_unet__blocks_7_self_attn_q.lora_down.weight"], "LoRA for another model: 1 of its"),
    ],
)
def test_a_lora_for_another_model_is_refused_by_what_it_is(names, says, lora_file):
    with pytest.raises(WeightsError, match=says):
        load_lora(transformer(), lora_file({name: torch.zeros(2, 24) for name in names}))


def test_every_tensor_of_the_file_must_have_a_use(lora_file):
    model = transformer()
    tensors = lora_tensors(model)
    tensors["lora_unet__head_head.dora_scale"] = torch.ones(3)
    with pytest.raises(WeightsError, match="dora_scale"):
        load_lora(model, lora_file(tensors))
    del tensors["lora_unet__head_head.dora_scale"], tensors["lora_unet__head_head.lora_up.weight"]
    with pytest.raises(WeightsError, match=r"1 modules lack a half \(lora_unet__head_head"):
        load_lora(model, lora_file(tensors))


def test_only_safetensors_are_read(tmp_path):
    torch.save({}, tmp_path / "lora.pt")
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_lora(transformer(), tmp_path / "lora.pt")


def test_a_truncated_file_is_refused(lora_file):
    path = lora_file(lora_tensors(transformer()))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="truncated"):
        load_lora(transformer(), path)
