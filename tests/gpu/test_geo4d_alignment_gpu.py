"""Alignment on a GPU against the CPU."""

import pytest
import torch

from more4d_backend.geo4d.alignment import align_windows
from more4d_backend.geo4d.synthetic_windows import Corruption, window_starts, windows_of_view
from more4d_backend.synthetic import make_world

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def view():
    world = make_world(
        5, setting="landscape", moving_camera=True, sky_radius_m=None, duration_s=2.5
    )
    return world.view(world.cameras(20, 48, 64))


@pytest.fixture(scope="module")
def windows(view):
    generator = torch.Generator().manual_seed(0)
    starts = window_starts(20, length=8)
    return windows_of_view(view, starts, generator, length=8, corruption=Corruption())


def test_a_gpu_finds_the_scene_that_the_cpu_finds(view, windows):
    on_cpu = align_windows(windows, view.rgb, 8.0, device="cpu")
    on_gpu = align_windows(windows, view.rgb, 8.0, device="cuda")
    assert on_gpu.report.converged
    assert on_gpu.depth.device.type == "cpu"
    assert torch.equal(on_cpu.scene.points.valid, on_gpu.scene.points.valid)
    known = on_cpu.scene.points.valid
    ratio = on_gpu.depth[known] / on_cpu.depth[known]
    # Single pixels may take another of two answers that are as good.
    assert ((ratio - 1).abs() < 5e-3).float().mean() > 0.99
    difference = on_gpu.scene.cameras.world_to_camera - on_cpu.scene.cameras.world_to_camera
    assert difference.abs().max() < 5e-3


def test_on_a_gpu_the_result_does_not_depend_on_chance(view, windows):
    first, second = (align_windows(windows, view.rgb, 8.0, device="cuda") for _ in range(2))
    assert torch.equal(first.depth, second.depth)
