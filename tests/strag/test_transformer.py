"""The 4D-STraG transformer at toy size, as diffusers' tools meet it."""

import copy
import logging
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.models.transformers.transformer_wan import (
    WanTransformer3DModel,
    WanTransformerBlock,
)
from torch import nn

from more4d_backend.strag.motion_perception import Guidance, current_guidance
from more4d_backend.strag.omnimae import OmniMAE
from more4d_backend.strag.sizes import (
    FUN_CONTROL_CHANNELS,
    STRAG_SIZES,
    VISM_SIZES,
    PerceptionSize,
    StragSize,
    WanSize,
)
from more4d_backend.strag.transformer import StragTransformer
from more4d_backend.weights.files import WeightsError, stored

SIZE = StragSize(
    wan=WanSize(
        in_channels=64,
        num_layers=3,
        num_heads=2,
        head_dim=12,
        ffn_dim=32,
        freq_dim=16,
        text_dim=10,
        image_dim=8,
    ),
    perception=PerceptionSize(dim=16, depth=1, num_heads=2, feature_dim=12),
)
FRAMES, HEIGHT, WIDTH = 3, 4, 6
TOKENS = HEIGHT * WIDTH // 4


def make_transformer(size=SIZE, seed=0):
    torch.manual_seed(seed)
    model = StragTransformer(**size.config())
    for name, parameter in model.named_parameters():
        if name.endswith("gate") or "norm" in name:
            nn.init.normal_(parameter)
    return model.eval()


def make_inputs(seed=0, guided=True, text=7, **changes):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    features = normal(1, TOKENS, SIZE.perception.feature_dim)
    inputs = {
        "hidden_states": normal(2, 64, FRAMES, HEIGHT, WIDTH),
        "timestep": torch.tensor([100.0, 900.0]),
        "encoder_hidden_states": normal(2, text, 10),
        "encoder_hidden_states_image": normal(2, 257, 8),
        "reference_latent": normal(2, 16, HEIGHT, WIDTH),
        "guidance": Guidance(features=features, unguided_frame=-1) if guided else None,
    }
    return inputs | changes


@torch.no_grad()
def velocity(model, *args, **kwargs):
    return model(**make_inputs(*args, **kwargs)).sample


class ReferenceFirst(nn.Module):
    """Written apart from the code under test: both convolutions as matrix products."""

    def __init__(self, convolution, ref_conv):
        super().__init__()
        self.weights = [convolution, ref_conv]

    def forward(self, video):
        convolution, ref_conv = self.weights
        rows = nn.functional.unfold(video.transpose(1, 2).flatten(0, 1), 2, stride=2)
        rows = rows.unflatten(0, (len(video), -1))  # B F CPQ N
        frames = convolution.weight.flatten(1) @ rows + convolution.bias[:, None]
        wide = torch.zeros(len(ref_conv.bias), video.shape[1], 2, 2)
        wide[:, :16] = ref_conv.weight
        frames[:, 0] = wide.flatten(1) @ rows[:, 0] + ref_conv.bias[:, None]
        return frames.transpose(1, 2).unflatten(-1, (HEIGHT // 2, WIDTH // 2))


@torch.no_grad()
def plain_velocity(plain, ref_conv, inputs):
    """What diffusers' own model makes of the reference frame followed by the video."""
    plain.patch_embedding = ReferenceFirst(plain.patch_embedding, ref_conv)
    video = inputs["hidden_states"]
    reference = torch.zeros_like(video[:, :, :1])
    reference[:, :16, 0] = inputs["reference_latent"]
    names = ("timestep", "encoder_hidden_states", "encoder_hidden_states_image")
    output = plain(torch.cat([reference, video], dim=2), **{name: inputs[name] for name in names})
    return output.sample[:, :, 1:]


def test_without_guidance_it_is_diffusers_wan_with_a_leading_reference_frame():
    model = make_transformer()
    plain = WanTransformer3DModel(**SIZE.wan.config()).eval()
    plain.load_state_dict({n: model.state_dict()[n] for n in plain.state_dict()})
    inputs = make_inputs(guided=False, text=512)
    expected = plain_velocity(plain, model.ref_conv, inputs)
    with torch.no_grad():
        actual = model(**inputs).sample
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_guidance_changes_the_velocity_and_none_of_the_inputs():
    model = make_transformer()
    inputs = make_inputs()
    before = copy.deepcopy(inputs)
    with torch.no_grad():
        guided = model(**inputs).sample
    assert (guided - velocity(model, guided=False)).abs().max() > 1e-3
    assert all(torch.equal(inputs[n], before[n]) for n in before if n != "guidance")


def test_guidance_of_one_image_counts_for_the_whole_batch():
    model, inputs = make_transformer(), make_inputs()
    repeated = replace(inputs["guidance"], features=inputs["guidance"].features.repeat(2, 1, 1))
    torch.testing.assert_close(
        velocity(model), velocity(model, guidance=repeated), atol=1e-5, rtol=0
    )


def test_text_may_have_any_length():
    # Attention does not know the order of text tokens, so doubling each one changes nothing.
    model, inputs = make_transformer(), make_inputs(text=5)
    doubled = inputs["encoder_hidden_states"].repeat_interleave(2, dim=1)
    torch.testing.assert_close(
        velocity(model, text=5), velocity(model, encoder_hidden_states=doubled, text=5)
    )


def test_image_and_text_tokens_are_not_mixed_up():
    model, inputs = make_transformer(), make_inputs(text=5)
    image, text = inputs["encoder_hidden_states_image"], inputs["encoder_hidden_states"]
    reversed_image = velocity(model, text=5, encoder_hidden_states_image=image.flip(1))
    torch.testing.assert_close(reversed_image, velocity(model, text=5), atol=1e-5, rtol=0)
    other_image = velocity(model, text=5, encoder_hidden_states_image=image.roll(1, dims=-1))
    assert (other_image - velocity(model, text=5)).abs().max() > 1e-4
    other_text = velocity(model, text=5, encoder_hidden_states=text + 1)
    assert (other_text - velocity(model, text=5)).abs().max() > 1e-4


def test_missing_image_tokens_are_refused(as_users_run_it):
    with pytest.raises(ValueError, match=r"takes 257 image tokens .* and got none"):
        velocity(make_transformer(), encoder_hidden_states_image=None)
    text_only = replace(SIZE, wan=replace(SIZE.wan, image_dim=None))
    with pytest.raises(ValueError, match=r"takes none .* and got image tokens"):
        velocity(make_transformer(text_only))


def test_a_size_without_image_tokens_runs():
    text_only = replace(SIZE, wan=replace(SIZE.wan, image_dim=None))
    result = velocity(make_transformer(text_only), encoder_hidden_states_image=None)
    assert result.shape == (2, 16, FRAMES, HEIGHT, WIDTH)


def test_blocks_keep_their_class_and_the_names_of_their_children():
    model = make_transformer()
    for block in model.blocks:
        assert type(block) is WanTransformerBlock
        assert {"attn1", "attn2", "ffn"} <= dict(block.named_children()).keys()
    plain = WanTransformer3DModel(**SIZE.wan.config()).state_dict().keys()
    new = {name for name in model.state_dict() if name not in plain}
    assert plain <= model.state_dict().keys()
    assert all(
        name.startswith(("ref_conv.", "feature_adapter.", "omnimae_extractor."))
        or ".spatial_guidance_" in name
        for name in new
    )


def test_an_image_is_encoded_for_the_token_grid_of_the_latent():
    model = make_transformer()
    features = model.encode_image(torch.rand(1, 3, 40, 50), (HEIGHT, WIDTH))
    assert features.shape == (1, TOKENS, SIZE.perception.feature_dim)


def test_saving_and_loading_keeps_config_weights_and_results(tmp_path, caplog):
    model = make_transformer()
    model.save_pretrained(tmp_path)
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    loaded = StragTransformer.from_pretrained(tmp_path)
    logger.removeHandler(caplog.handler)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert torch.equal(velocity(loaded), velocity(model))
    again = StragTransformer.from_config(StragTransformer.load_config(tmp_path))
    shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (again, model)]
    assert shapes[0] == shapes[1]


def test_in_bf16_from_a_file_the_image_encoder_stays_in_float32(tmp_path):
    model = make_transformer()
    model.save_pretrained(tmp_path)
    loaded = StragTransformer.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert loaded.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert {p.dtype for p in loaded.omnimae_extractor.parameters()} == {torch.float32}
    image = torch.rand(1, 3, 32, 32)
    inputs = {
        name: value.bfloat16() if name != "timestep" else value
        for name, value in make_inputs(guided=False).items()
        if value is not None
    }
    with torch.no_grad():
        features = loaded.encode_image(image, (HEIGHT, WIDTH))
        guidance = Guidance(features=features, unguided_frame=0)
        result = loaded(**inputs, guidance=guidance).sample
        wanted = model(**make_inputs(guidance=guidance)).sample
    assert result.dtype == torch.bfloat16
    # Measured 0.02 at values up to 1.6: the rounding of bf16.
    torch.testing.assert_close(result.float(), wanted, atol=0.06, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_a_model_that_is_cast_keeps_its_angles_and_runs(dtype):
    model = make_transformer()
    wanted, cos = velocity(model), model.rope.freqs_cos.clone()
    model.to(dtype)
    assert torch.equal(model.rope.freqs_cos, cos)
    inputs = {
        name: value if name == "timestep" or value is None else value.to(dtype)
        for name, value in make_inputs().items()
    }
    result = model(**inputs).sample
    assert result.dtype == dtype
    # Measured 0.02 in bf16 and 2e-6 in float64, at values up to 1.6.
    atol = 0.08 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(result.float(), wanted, atol=atol, rtol=0)
    assert {b.dtype for b in model.to("meta").rope.buffers()} == {torch.float32}


def test_gradients_with_checkpointing_are_those_without():
    model, inputs = make_transformer(), make_inputs()
    model.requires_grad_(True).train()

    def gradients():
        model.zero_grad()
        features = inputs["guidance"].features.clone().requires_grad_()
        guidance = replace(inputs["guidance"], features=features)
        model(**{**inputs, "guidance": guidance}).sample.square().sum().backward()
        named = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return named | {"features": features.grad}

    plain = gradients()
    model.enable_gradient_checkpointing()
    checkpointed = gradients()
    assert "blocks.1.spatial_guidance_ffn.gate" in plain
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


def test_a_block_that_is_run_again_finds_the_same_scope_around_it_as_before():
    model, inputs, found = make_transformer(), make_inputs(), []
    model.requires_grad_(True).train().enable_gradient_checkpointing()
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: found.append(current_guidance()))
    model(**inputs).sample.square().sum().backward()
    assert found == [None] * (2 * len(model.blocks))


def test_calls_in_threads_do_not_mix():
    model = make_transformer()
    cases = [(seed, seed % 2 == 0) for seed in range(4)]
    alone = [velocity(model, seed, guided) for seed, guided in cases]
    results = {}
    started = threading.Barrier(len(cases))

    def work(seed, guided):
        started.wait()
        for _ in range(5):
            results[seed] = velocity(model, seed, guided)

    threads = [threading.Thread(target=work, args=case) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (seed, _), wanted in zip(cases, alone, strict=True):
        torch.testing.assert_close(results[seed], wanted)


def test_a_copied_model_computes_with_its_own_weights():
    model = make_transformer()
    copied, wanted = copy.deepcopy(model), velocity(model)
    assert torch.equal(velocity(copied), wanted)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(0.1)
    assert torch.equal(velocity(model), wanted)
    fresh = make_transformer(seed=1)
    fresh.load_state_dict(copied.state_dict())
    assert torch.equal(velocity(copied), velocity(fresh))


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
def test_offloading_by_groups_changes_no_number(level):
    model = make_transformer()
    image = torch.rand(1, 3, 32, 32)
    wanted = velocity(model)
    features = model.encode_image(image, (HEIGHT, WIDTH)).detach()
    model.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type=level,
        num_blocks_per_group=1 if level == "block_level" else None,
    )
    assert torch.equal(velocity(model), wanted)
    assert torch.equal(model.encode_image(image, (HEIGHT, WIDTH)), features)


def test_weights_in_8_bits_stay_near_and_cover_the_guidance():
    model = make_transformer()
    wanted = velocity(model)
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    small = {n for n, p in model.named_parameters() if p.dtype == torch.float8_e4m3fn}
    assert "blocks.0.attn1.to_q.weight" in small
    assert "blocks.0.spatial_guidance_ffn.spatial_guide.1.weight" in small
    assert not any(n.startswith(("omnimae", "feature_adapter", "ref_conv")) for n in small)
    # Measured 0.05 at values up to 1.6.
    torch.testing.assert_close(velocity(model), wanted, atol=0.15, rtol=0)
    assert model.encode_image(torch.rand(1, 3, 32, 32), (HEIGHT, WIDTH)).isfinite().all()


def test_the_first_block_cache_skips_the_other_blocks_when_the_first_one_says_the_same():
    model = make_transformer()
    wanted = velocity(model)
    ran = []
    model.blocks[-1].attn1.register_forward_hook(lambda *_: ran.append(1))
    model.enable_cache(FirstBlockCacheConfig(threshold=0.01))
    with model.cache_context("cond"):
        for _ in range(3):
            torch.testing.assert_close(velocity(model), wanted, atol=1e-5, rtol=0)
        assert len(ran) == 1
        velocity(model, seed=1)
    assert len(ran) == 2


def test_joined_projections_change_no_number_but_by_rounding():
    model = make_transformer()
    wanted = velocity(model)
    model.fuse_qkv_projections()
    assert model.blocks[0].attn1.fused_projections
    torch.testing.assert_close(velocity(model), wanted, atol=1e-5, rtol=0)


def test_a_lora_finds_the_modules_by_their_usual_names():
    from peft import LoraConfig

    model = make_transformer()
    wanted = velocity(model)
    targets = ["to_q", "net.2", "spatial_guide.1"]
    model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    assert (velocity(model) - wanted).abs().max() > 1e-4
    model.disable_adapters()
    torch.testing.assert_close(velocity(model), wanted)


COMPILED = """
import runpy, torch
from torch._dynamo.utils import counters
test = runpy.run_path({path!r})
model = test["make_transformer"]()
cases = [(seed, seed < 2) for seed in range(4)]
wanted = [test["velocity"](model, *case) for case in cases]
# Capture is what can fail; aot_eager spares the minutes of code generation.
model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
for case, eager in zip(cases, wanted):
    torch.testing.assert_close(test["velocity"](model, *case), eager, atol=1e-5, rtol=0)
print(counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))
"""


def test_compiled_blocks_share_one_graph_without_breaks_and_see_each_calls_guidance():
    # In a process of its own: the annotation checks of the other tests would break compilation.
    code = COMPILED.format(path=__file__)
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-3000:]
    # One graph with guidance and one without, for all blocks.
    assert told.stdout.split() == ["2", "0"]


@pytest.fixture(scope="module")
def fun_control():
    """A 48-channel Fun-Control model: diffusers' own class, and the ref_conv it does not know."""
    torch.manual_seed(3)
    wan = replace(SIZE.wan, in_channels=FUN_CONTROL_CHANNELS)
    return WanTransformer3DModel(**wan.config()).eval(), nn.Conv2d(16, wan.dim, 2, stride=2)


def given_weights(plain, ref_conv):
    named = plain.state_dict() | {f"ref_conv.{n}": t for n, t in ref_conv.state_dict().items()}
    return stored(named)


def omnimae_weights():
    perception = SIZE.perception
    return stored(OmniMAE(perception.dim, perception.depth, perception.num_heads).state_dict())


def test_training_starts_from_what_fun_control_computes(fun_control):
    plain, ref_conv = copy.deepcopy(fun_control)
    model = StragTransformer.from_fun_control(
        given_weights(plain, ref_conv), omnimae_weights(), SIZE
    )
    inputs = make_inputs(text=512)
    narrow = inputs | {"hidden_states": inputs["hidden_states"][:, :FUN_CONTROL_CHANNELS]}
    expected = plain_velocity(plain, ref_conv, narrow)
    with torch.no_grad():
        actual = model(**inputs).sample
    # Measured 1e-6: the gates of guidance are not quite zero, so that gradients pass.
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_gradients_reach_every_new_parameter_at_the_first_step(fun_control):
    model = StragTransformer.from_fun_control(given_weights(*fun_control), omnimae_weights(), SIZE)
    features = model.encode_image(torch.rand(1, 3, 32, 32), (HEIGHT, WIDTH))
    guidance = Guidance(features=features, unguided_frame=0)
    model(**make_inputs(guidance=guidance)).sample.square().sum().backward()
    new = [n for n, _ in model.named_parameters() if "spatial_guid" in n or "adapter" in n]
    assert len(new) == 3 * 2 * 3 + 4
    for name in [*new, "ref_conv.weight", "ref_conv.bias"]:
        gradient = model.get_parameter(name).grad
        assert gradient is not None, name
        assert gradient.count_nonzero() > 0.9 * gradient.numel(), name
    depth_channels = model.patch_embedding.weight.grad[:, FUN_CONTROL_CHANNELS:]
    assert depth_channels.count_nonzero() == depth_channels.numel()


def test_another_base_than_fun_control_is_refused(fun_control, as_users_run_it):
    weights = given_weights(*fun_control)
    inpainting = WanTransformer3DModel(**replace(SIZE.wan, in_channels=36).config())
    with pytest.raises(WeightsError, match="takes 36 input channels"):
        StragTransformer.from_fun_control(
            given_weights(inpainting, fun_control[1]), omnimae_weights(), SIZE
        )
    without = {n: t for n, t in weights.items() if not n.startswith("ref_conv")}
    with pytest.raises(WeightsError, match="2 missing: ref_conv"):
        StragTransformer.from_fun_control(without, omnimae_weights(), SIZE)


@pytest.mark.parametrize("name", STRAG_SIZES)
def test_every_size_takes_strag_channels_and_fits_the_host(name):
    with torch.device("meta"):
        model = StragTransformer(**STRAG_SIZES[name].config())
    assert model.patch_embedding.weight.shape[1] == 64
    assert model.config["attention_head_dim"] == 128
    assert model.config["freq_dim"] == 256
    assert model.config["text_dim"] == 4096


def num_parameters(model):
    return sum(t.numel() for t in model.state_dict().values())


def test_released_sizes_have_the_published_numbers_of_parameters():
    with torch.device("meta"):
        strag = StragTransformer(**STRAG_SIZES["14b"].config())
        vism = WanTransformer3DModel(**VISM_SIZES["14b"].config())
    assert num_parameters(strag) / 1e9 == pytest.approx(17.1, abs=0.05)
    assert num_parameters(vism) / 1e9 == pytest.approx(16.4, abs=0.05)


def test_embedded_sizes_fit_their_share_of_the_40_megabytes():
    strag = StragTransformer(**STRAG_SIZES["tiny"].config())
    vism = WanTransformer3DModel(**VISM_SIZES["tiny"].config())
    bytes_bf16 = 2 * num_parameters(strag), 2 * num_parameters(vism)
    assert bytes_bf16[0] < 18.5e6
    assert bytes_bf16[1] < 8.2e6
