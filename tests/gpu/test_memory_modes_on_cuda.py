"""Memory modes on a real device: the same numbers, less memory, and errors that help."""

import dataclasses
import gc

import pytest
import torch

from more4d_backend.devices import (
    DeviceMemoryError,
    DevicePlan,
    DeviceRequest,
    detect_device,
    explaining_out_of_memory,
    plan_devices,
)
from more4d_backend.devices.memory_modes import apply_plan, run_sizes
from more4d_backend.strag.motion_perception import Guidance

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def plan(mode: str) -> DevicePlan:
    return DevicePlan(
        device=torch.device("cuda"),
        dtype=torch.bfloat16,
        memory_mode=mode,
        attention="native",
        vae_tiling=False,
        sequential_cfg=False,
        reason="test",
    )


def transformer():
    from more4d_backend.strag.transformer import StragTransformer

    torch.manual_seed(0)
    return StragTransformer(
        num_layers=12,
        num_attention_heads=4,
        ffn_dim=2048,
        text_dim=64,
        freq_dim=64,
        image_dim=None,
        added_kv_proj_dim=None,
        perception_dim=128,
        perception_depth=1,
        perception_heads=4,
        feature_dim=8,
    ).to(torch.bfloat16)


@torch.no_grad()
def call(module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to("cuda", torch.bfloat16)

    guidance = Guidance(features=normal(1, 16, 8), unguided_frame=-1)
    return module(
        hidden_states=normal(1, 64, 3, 8, 8),
        timestep=torch.tensor([500.0], device="cuda"),
        encoder_hidden_states=normal(1, 512, 64),
        reference_latent=normal(1, 16, 8, 8),
        guidance=guidance,
    ).sample.float()


def run(mode: str) -> tuple[torch.Tensor, int]:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()  # what earlier tests and libraries still hold
    module = transformer().eval()
    placement = apply_plan(plan(mode), denoisers=[module])
    with placement.using(module):
        outputs = [call(module)]  # finds the order of blocks
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        outputs += [call(module) for _ in range(2)]
        peak = torch.cuda.max_memory_allocated() - before
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[1], outputs[2])
    if mode != "resident":
        del outputs[1:]
        assert not any(p.is_cuda for p in module.parameters())
    return outputs[0], peak


def test_offloading_changes_no_number_and_streaming_needs_less_memory():
    expected, resident = run("resident")
    for mode in ("model-offload", "block-offload"):
        got, peak = run(mode)
        assert torch.equal(got, expected), mode
        if mode == "block-offload":
            assert peak < 0.6 * resident


def test_fp8_needs_less_memory_and_stays_close():
    expected, resident = run("resident")
    got, peak = run("fp8")
    assert (got - expected).norm() < 0.1 * expected.norm()
    assert peak < 0.8 * resident


def test_a_streamed_text_encoder_reads_and_writes_on_the_cpu():
    transformers = pytest.importorskip("transformers")
    config = transformers.UMT5Config(
        vocab_size=400, d_model=256, d_kv=32, d_ff=512, num_layers=4, num_heads=8
    )
    torch.manual_seed(0)
    module = transformers.UMT5EncoderModel(config).eval()
    ids = torch.arange(20)[None]
    mask = (ids < 15).long()
    with torch.no_grad():
        expected = module(ids, attention_mask=mask).last_hidden_state
        placement = apply_plan(plan("block-offload"), encoders=[module])
        with placement.using(module):
            for _ in range(3):
                got = module(ids, attention_mask=mask)[0]
                assert got.device.type == "cpu"
                torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


def test_a_cap_on_the_process_is_seen_and_running_out_names_a_way():
    module = transformer()
    sizes = run_sizes(denoiser=module, num_tokens=100, size_hw=(64, 64), dtype=torch.bfloat16)
    total = torch.cuda.get_device_properties(0).total_memory
    state = detect_device("cuda")
    resident = plan_devices(state, sizes, DeviceRequest(memory_mode="resident"))
    large = dataclasses.replace(sizes, denoiser=sizes.denoiser * 100)
    torch.cuda.set_per_process_memory_fraction((1 << 30) / total)
    try:
        if hasattr(torch.cuda, "get_per_process_memory_fraction"):
            assert detect_device("cuda").free <= 1 << 30
        with (
            pytest.raises(DeviceMemoryError, match=r"These need less: .*block-offload"),
            explaining_out_of_memory(resident, large),
        ):
            torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
