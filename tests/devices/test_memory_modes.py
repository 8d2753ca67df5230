"""Carrying out plans, with toy networks: every exact mode computes the same."""

import dataclasses

import pytest
import torch
from torch import nn

from more4d_backend.devices import DevicePlan, DevicePlanError, memory_modes
from more4d_backend.devices.memory_modes import Placement, apply_plan, run_sizes
from more4d_backend.strag.motion_perception import Guidance
from more4d_backend.strag.motion_vae import DecoderAdapter

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")


def plan(mode="model-offload", **changes) -> DevicePlan:
    settings = {
        "device": CPU,
        "dtype": torch.float32,
        "memory_mode": mode,
        "attention": "native",
        "vae_tiling": False,
        "sequential_cfg": False,
        "reason": "test",
    }
    return DevicePlan(**settings | changes)


def transformer(seed=0) -> nn.Module:
    from more4d_backend.strag.transformer import StragTransformer

    torch.manual_seed(seed)
    return StragTransformer(
        num_layers=3,
        num_attention_heads=1,
        ffn_dim=32,
        text_dim=16,
        freq_dim=16,
        image_dim=None,
        added_kv_proj_dim=None,
        perception_dim=128,
        perception_depth=1,
        perception_heads=4,
        feature_dim=8,
    ).eval()


def call(module: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return module(
            hidden_states=torch.randn(1, 64, 2, 4, 4, generator=generator),
            timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.randn(1, 512, 16, generator=generator),
            reference_latent=torch.randn(1, 16, 4, 4, generator=generator),
            guidance=Guidance(
                features=torch.randn(1, 4, 8, generator=generator), unguided_frame=-1
            ),
        ).sample


@pytest.mark.parametrize("mode", ["resident", "model-offload", "block-offload"])
def test_exact_modes_change_no_number(mode):
    expected = call(transformer())
    module = transformer()
    placement = apply_plan(plan(mode), denoisers=[module])
    with placement.using(module):
        assert torch.equal(call(module), expected)
        assert torch.equal(call(module), expected)
    with placement.using(module):
        assert torch.equal(call(module), expected)


def test_fp8_stores_block_weights_in_eight_bits_and_stays_close():
    expected = call(transformer())
    module = transformer()
    placement = apply_plan(plan("fp8"), denoisers=[module])
    block = module.blocks[0]
    assert block.attn1.to_q.weight.dtype == torch.float8_e4m3fn
    assert block.spatial_guidance_self.spatial_guide[1].weight.dtype == torch.float8_e4m3fn
    assert module.patch_embedding.weight.dtype == torch.float32
    assert block.norm2.weight.dtype == torch.float32
    with placement.using(module):
        got = call(module)
    error = (got - expected).norm() / expected.norm()
    assert 0 < error < 0.1  # 0.02 measured
    assert block.attn1.to_q.weight.dtype == torch.float8_e4m3fn


@pytest.fixture
def device(monkeypatch):
    """A stand-in for a device on any machine: what is copied there lies elsewhere in memory."""
    there = set()

    def copied(data, _):
        copy = data.clone()
        there.add(copy.data_ptr())
        return copy

    monkeypatch.setattr(memory_modes, "_copied", copied)
    return lambda tensor: tensor.data_ptr() in there


@pytest.mark.parametrize("mode", ["model-offload", "fp8", "block-offload"])
def test_networks_visit_the_device_and_come_home_as_they_were(mode, device):
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = {name: (t, t.data_ptr()) for name, t in module.state_dict(keep_vars=True).items()}

    def fail_while_using():
        with Placement(plan(mode)).using(module):
            assert all(device(t) for t in [*module.parameters(), *module.buffers()])
            raise KeyError

    with pytest.raises(KeyError):
        fail_while_using()
    for name, tensor in module.state_dict(keep_vars=True).items():
        assert before[name][0] is tensor
        assert before[name][1] == tensor.data_ptr()


def test_resident_networks_stay_where_they_were_put(device):
    module = nn.Linear(3, 4)
    placement = apply_plan(plan("resident", device=torch.device("meta")), encoders=[module])
    assert module.weight.is_meta
    with placement.using(module):
        assert module.weight.is_meta
    assert module.weight.is_meta


def test_nested_use_and_tied_weights_come_home_too(device):
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    home = first.weight.data_ptr()
    placement = Placement(plan())
    with placement.using(first, second):
        with placement.using(first):
            assert device(first.weight)
        assert device(second.weight)
    assert first.weight is second.weight
    assert first.weight.data_ptr() == home


def test_of_a_streamed_transformer_only_what_is_in_no_block_is_brought_at_once(device):
    module = transformer()
    placement = Placement(plan("block-offload"), [module])
    with placement.using(module):
        places = {name: device(p) for name, p in module.named_parameters()}
    for name, moved in places.items():
        assert moved == (not name.startswith("blocks.")), name
    with placement.using(module.omnimae_extractor, module.feature_adapter):
        assert all(device(p) for p in module.omnimae_extractor.parameters())
        assert not device(module.ref_conv.weight)


def test_diffusers_takes_nothing_away_between_the_steps_of_a_streamed_transformer():
    # Depends on two private names of diffusers' group offloading.
    from diffusers.hooks import HookRegistry

    module = transformer()
    apply_plan(plan("block-offload"), denoisers=[module])
    registry = HookRegistry.check_if_exists_or_initialize(module)
    group = registry.get_hook("group_offloading").group
    assert group.offload_leader is None
    assert any(p is module.ref_conv.weight for m in group.modules for p in m.parameters())


def test_image_features_of_a_streamed_transformer_can_be_made_before_its_first_step():
    image = torch.rand(1, 3, 20, 30)
    expected = transformer().encode_image(image, (4, 4))
    module = transformer()
    placement = apply_plan(plan("block-offload"), denoisers=[module])
    with placement.using(module):
        assert torch.equal(module.encode_image(image, (4, 4)), expected)


def test_what_a_streamed_encoder_makes_is_on_the_cpu():
    config = transformers.UMT5Config(
        vocab_size=40, d_model=24, d_kv=4, d_ff=20, num_layers=2, num_heads=3
    )
    module = transformers.UMT5EncoderModel(config).eval()
    ids = torch.arange(10)[None]
    with torch.no_grad():
        expected = module(ids).last_hidden_state
        placement = apply_plan(plan("block-offload"), encoders=[module])
        with placement.using(module):
            got = module(ids)
    assert torch.equal(got[0], expected)
    assert torch.equal(got.last_hidden_state, expected)
    assert got[0].device == CPU


@pytest.mark.parametrize("tiling", [True, False])
def test_tiling_is_switched_on_inside_wrappers(tiling):
    vae = diffusers.AutoencoderKLWan(base_dim=4)
    apply_plan(plan("resident", vae_tiling=tiling), vaes=[nn.ModuleDict({"vae": vae})])
    assert vae.use_tiling == tiling


def test_an_attention_backend_that_is_not_there_is_refused():
    with pytest.raises(DevicePlanError, match=r"'sage' cannot be used here.*Use native"):
        apply_plan(plan("resident", attention="sage"), denoisers=[transformer()])


def test_the_attention_backend_of_one_model_is_that_of_no_other():
    chosen, other = transformer(), transformer()
    expected = call(other)
    # cuDNN has no kernel for a CPU, so whoever attends with it fails here.
    apply_plan(plan("resident", attention="_native_cudnn"), denoisers=[chosen])
    with pytest.raises(RuntimeError, match="No viable backend"):
        call(chosen)
    assert torch.equal(call(other), expected)


# Sizes


def test_sizes_count_weights_at_the_compute_dtype():
    with torch.device("meta"):
        module = transformer()
        vae = diffusers.AutoencoderKLWan(base_dim=4)
        encoders = [nn.Sequential(nn.Linear(8, 8, bias=False)), nn.Embedding(3, 5)]
    how = {"denoiser": module, "vae": vae, "encoders": encoders, "num_tokens": 12}
    sizes = run_sizes(**how, size_hw=(368, 512), dtype=torch.bfloat16)
    count = sum(p.numel() for p in module.parameters())
    block = sum(p.numel() for p in module.blocks[0].parameters())
    assert sizes.denoiser == 2 * count
    assert sizes.block == 2 * block
    assert sizes.outside_blocks == 2 * (count - 3 * block)
    assert sizes.vae == 2 * sum(p.numel() for p in vae.parameters())
    assert (sizes.encoders, sizes.largest_encoder) == (2 * (64 + 15), 2 * 64)
    assert sizes.largest_encoder_layer == 2 * 64
    double = run_sizes(**how, size_hw=(368, 512), dtype=torch.float32)
    for field in dataclasses.fields(sizes):
        assert getattr(double, field.name) == 2 * getattr(sizes, field.name)


def test_activations_grow_with_tokens_and_pixels_and_tiles_bound_them():
    module = transformer()
    vae = diffusers.AutoencoderKLWan(base_dim=4)
    small, large = (
        run_sizes(denoiser=module, vae=vae, num_tokens=tokens, size_hw=size, dtype=torch.bfloat16)
        for tokens, size in ((100, (128, 128)), (300, (1024, 1024)))
    )
    assert large.step_activations == 3 * small.step_activations
    assert large.vae_activations == 64 * small.vae_activations
    assert large.vae_tile_activations == 4 * small.vae_tile_activations
    assert small.vae_tile_activations == small.vae_activations


def test_the_motion_adapters_count_too_and_tiles_do_not_bound_them():
    vae = nn.ModuleList([diffusers.AutoencoderKLWan(base_dim=4), DecoderAdapter(128)])
    sizes = run_sizes(
        denoiser=transformer(), vae=vae, num_tokens=9, size_hw=(368, 512), dtype=torch.bfloat16
    )
    one_map = 16 * 128 * 368 * 512 * 2
    assert 4 * one_map < sizes.vae_activations == sizes.vae_tile_activations < 5 * one_map
