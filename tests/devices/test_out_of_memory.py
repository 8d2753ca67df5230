"""What users read when a device is full."""

import pytest
import torch

from more4d_backend.devices import (
    DeviceMemoryError,
    DevicePlan,
    RunSizes,
    explaining_out_of_memory,
    out_of_memory_message,
)

GIB = 1 << 30
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


def a_plan(**changes) -> DevicePlan:
    settings = {
        "device": torch.device("cuda"),
        "dtype": torch.bfloat16,
        "memory_mode": "resident",
        "attention": "native",
        "vae_tiling": False,
        "sequential_cfg": False,
        "reason": "test",
    }
    return DevicePlan(**settings | changes)


def test_running_out_of_memory_says_which_modes_would_fit():
    told = out_of_memory_message(a_plan(), SIZES, 3 * GIB)
    assert "cuda ran out of memory in mode resident, which needs about 47.0 GiB; 3.0 GiB" in told
    for words in ("model-offload (34.9 GiB)", "block-offload (5.8 GiB)", "fp8 ("):
        assert words in told
    told = out_of_memory_message(a_plan(memory_mode="block-offload"), SIZES, GIB)
    assert "These need less: block-offload with sequential guidance (4.5 GiB). Close" in told


def test_the_smallest_plan_and_other_devices_can_only_shrink_the_job():
    smallest = a_plan(memory_mode="block-offload", sequential_cfg=True, vae_tiling=True)
    assert "No mode needs less: use fewer frames" in out_of_memory_message(smallest, SIZES, 0)
    on_cpu = a_plan(device=torch.device("cpu"))
    assert "cpu has no other mode" in out_of_memory_message(on_cpu, SIZES, 0)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_every_backends_error_becomes_the_helpful_one(error):
    plan = a_plan(device=torch.device("cpu"))
    with (
        pytest.raises(DeviceMemoryError, match="ran out of memory in mode resident") as raised,
        explaining_out_of_memory(plan, SIZES),
    ):
        raise error
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("x"), KeyError("y")])
def test_other_errors_pass_unchanged(error):
    with pytest.raises(type(error)) as raised, explaining_out_of_memory(a_plan(), SIZES):
        raise error
    assert raised.value is error
