"""Plans from numbers alone: no device is touched."""

import dataclasses
import logging
import sys

import pytest
import torch

from more4d_backend.devices import (
    DevicePlanError,
    DeviceRequest,
    DeviceState,
    RunSizes,
    detect_device,
    free_bytes,
    plan_devices,
    required_bytes,
    usable_bytes,
)
from more4d_backend.devices import state as device_state

GIB = 1 << 30
# 4D-STraG at 14B, 49x368x512, bf16, with its encoders.
SIZES = RunSizes(
    denoiser=int(32.3 * GIB),
    block=int(0.78 * GIB),
    outside_blocks=int(0.9 * GIB),
    vae=int(0.3 * GIB),
    encoders=int(11.8 * GIB),
    largest_encoder=int(10.6 * GIB),
    largest_encoder_layer=int(2.0 * GIB),
    step_activations=int(2.6 * GIB),
    vae_activations=int(1.5 * GIB),
    vae_tile_activations=int(0.5 * GIB),
)


def state(free_gib: float, *, device: str = "cuda", host_gib: float = 100) -> DeviceState:
    return DeviceState(
        device=torch.device(device),
        dtype=torch.bfloat16,
        free=int(free_gib * GIB),
        host_free=int(host_gib * GIB),
    )


@pytest.mark.parametrize(
    ("free_gib", "mode", "sequential", "tiling"),
    [
        (140, "resident", False, False),
        (80, "resident", False, False),
        (49.6, "resident", False, False),
        (48.2, "resident", True, False),
        (46, "model-offload", False, False),
        (36, "model-offload", True, False),
        (34, "block-offload", False, False),
        (16, "block-offload", False, False),
        (8, "block-offload", False, False),
        (6.2, "block-offload", True, False),
    ],
)
def test_the_fastest_exact_mode_that_fits_is_chosen(free_gib, mode, sequential, tiling):
    plan = plan_devices(state(free_gib), SIZES)
    assert (plan.memory_mode, plan.sequential_cfg, plan.vae_tiling) == (mode, sequential, tiling)
    assert "fastest exact mode that fits" in plan.reason
    assert plan.attention == "native"


@pytest.mark.parametrize("free_gib", [200, 100, 60, 45, 40, 36, 30, 24, 20, 16, 12, 10])
def test_what_is_planned_needs_no_more_than_what_is_free(free_gib):
    plan = plan_devices(state(free_gib), SIZES)
    needed = required_bytes(
        plan.memory_mode,
        SIZES,
        sequential_cfg=plan.sequential_cfg,
        vae_tiling=plan.vae_tiling,
    )
    assert needed <= usable_bytes(int(free_gib * GIB)) < free_gib * GIB


def test_the_vae_works_in_tiles_where_whole_frames_do_not_fit():
    big = dataclasses.replace(SIZES, vae_activations=9 * GIB)
    assert plan_devices(state(8), big).vae_tiling
    assert not plan_devices(state(12), big).vae_tiling
    assert plan_devices(state(140), big, DeviceRequest(vae_tiling=True)).vae_tiling
    assert not plan_devices(state(8), big, DeviceRequest(vae_tiling=False)).vae_tiling


def test_weights_are_rounded_only_where_nothing_exact_can_run(caplog):
    plan = plan_devices(state(24, host_gib=20), SIZES)
    assert plan.memory_mode == "fp8"
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "ROUNDED to 8 bits" in plan.reason
    assert plan_devices(state(24, host_gib=64), SIZES).memory_mode == "block-offload"


def test_every_wish_is_followed():
    wish = DeviceRequest(
        dtype=torch.float32,
        memory_mode="fp8",
        attention="_native_cudnn",
        vae_tiling=True,
        sequential_cfg=True,
    )
    plan = plan_devices(state(140), SIZES, wish)
    assert plan.dtype == torch.float32
    assert plan.memory_mode == "fp8"
    assert plan.attention == "_native_cudnn"
    assert plan.vae_tiling
    assert plan.sequential_cfg
    assert "fp8 was asked for" in plan.reason


def test_what_does_not_fit_is_tried_with_a_warning(caplog):
    with caplog.at_level(logging.INFO):
        plan = plan_devices(state(4), SIZES)
    assert (plan.memory_mode, plan.sequential_cfg, plan.vae_tiling) == (
        "block-offload",
        True,
        False,
    )
    assert "does NOT fit" in plan.reason
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_the_choice_is_logged_in_one_line_with_its_reason(caplog):
    with caplog.at_level(logging.INFO):
        plan_devices(state(8), SIZES, DeviceRequest(vae_tiling=True, sequential_cfg=True))
    (record,) = caplog.records
    assert record.getMessage() == (
        "Device cuda, bfloat16, block-offload, VAE tiling, sequential guidance, attention native: "
        "8.0 GiB are free; block-offload is the fastest exact mode that fits, with about 4.5 GiB."
    )


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_devices_in_host_memory_have_one_mode(device):
    assert plan_devices(state(1, device=device), SIZES).memory_mode == "resident"
    for mode in ("model-offload", "block-offload", "fp8"):
        with pytest.raises(DevicePlanError, match="there is nothing to offload to"):
            plan_devices(state(99, device=device), SIZES, DeviceRequest(memory_mode=mode))


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"memory_mode": "disk"}, "memory_mode is 'disk'; expected one of resident"),
        ({"attention": "fastest"}, "attention is 'fastest'; expected one of native"),
    ],
)
def test_unknown_wishes_are_refused(as_users_run_it, wish, said):
    with pytest.raises(DevicePlanError, match=said):
        DeviceRequest(**wish)


def test_each_mode_needs_less_than_the_one_before():
    needs = [required_bytes(mode, SIZES) for mode in ("resident", "model-offload", "fp8")]
    needs.append(required_bytes("block-offload", SIZES))
    assert needs == sorted(needs, reverse=True)
    assert len(set(needs)) == 4


@pytest.mark.parametrize("mode", ["resident", "model-offload", "block-offload", "fp8"])
@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(RunSizes)])
def test_larger_parts_never_need_less(mode, field):
    larger = dataclasses.replace(SIZES, **{field: getattr(SIZES, field) + 20 * GIB})
    for sequential in (False, True):
        for tiling in (False, True):
            how = {"sequential_cfg": sequential, "vae_tiling": tiling}
            assert required_bytes(mode, larger, **how) >= required_bytes(mode, SIZES, **how)


# The machine


def test_a_machine_without_gpu_computes_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    found = detect_device()
    assert found.device == torch.device("cpu")
    assert found.dtype == torch.float32
    assert found.free > 0
    assert detect_device(dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cuda", "torch sees 0 CUDA devices"),
        ("cuda:3", "torch sees 0 CUDA devices"),
        ("mps", "no Mac with Metal"),
        ("xpu", "expected cuda, cuda:N, mps or cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused(monkeypatch, name, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DevicePlanError, match=said):
        detect_device(name)


@pytest.mark.parametrize(("name", "index"), [("cuda", 1), ("cuda:0", 0)])
def test_memory_that_torch_holds_in_reserve_and_a_cap_both_count(monkeypatch, name, index):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 * GIB, 100 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 50 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 20 * GIB)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    share = [1.0]
    # As torch, which refuses a device without a number here, though not in the calls above.
    shares = {index: lambda: share[0]}
    monkeypatch.setattr(
        torch.cuda, "get_per_process_memory_fraction", lambda i: shares[i](), raising=False
    )
    device = torch.device(name)
    assert free_bytes(device) == 40 * GIB
    share[0] = 0.25
    assert free_bytes(device) == 5 * GIB
    share[0] = 0.1
    assert free_bytes(device) == 0


@pytest.mark.parametrize(
    ("capability", "dtype"), [((9, 0), torch.bfloat16), ((7, 5), torch.float32)]
)
def test_gpus_without_bfloat16_compute_in_float32(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert device_state._best_dtype(torch.device("cuda")) == dtype


def test_a_missing_psutil_gives_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(DevicePlanError, match=r"pip install psutil"):
        free_bytes(torch.device("cpu"))
