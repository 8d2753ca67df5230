"""Geo4D's networks on CUDA: what the CPU computes, with fused norms, in bfloat16, compiled."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from more4d_backend.geo4d import group_norm, layers
from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.sampling import sample_latents
from more4d_backend.geo4d.sizes import GEO4D_SIZES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("full_precision"),
]


@pytest.fixture
def networks():
    torch.manual_seed(0)
    made = Geo4DNetworks(GEO4D_SIZES["tiny"]).eval().requires_grad_(False)
    return made.to_channels_last()


def results(networks, device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    video = torch.rand(16, 3, 64, 96, generator=generator) * 2 - 1
    noise = torch.randn(2, 16, 16, 16, 24, generator=generator)
    networks = networks.to(device, dtype)
    with torch.no_grad():
        frames = networks.vae.encode(video.to(device))
        video_latents = frames.movedim(0, 1)[None].expand(2, -1, -1, -1, -1)
        latents = sample_latents(networks, video_latents, noise.to(device))
        points = networks.vae.decode_points(latents[0, :4].movedim(1, 0))
        disparity = networks.vae.decode(latents[0, 12:].movedim(1, 0), reduction=2)
    return [x.cpu() for x in (frames, latents, points.points, points.sigma, disparity)]


def test_they_compute_what_the_cpu_computes(networks):
    expected = results(networks, "cpu")
    for on_cuda, on_cpu in zip(results(networks, "cuda"), expected, strict=True):
        torch.testing.assert_close(on_cuda, on_cpu, atol=1e-3, rtol=1e-3)


def test_in_bfloat16_they_stay_near(networks):
    expected = results(networks, "cpu")
    for on_cuda, on_cpu in zip(results(networks, "cuda", torch.bfloat16), expected, strict=True):
        assert (on_cuda - on_cpu).norm() < 0.1 * on_cpu.norm()


@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((16, 40, 64, 320), 32),
        ((1, 16, 40, 64, 320), 32),
        ((2, 16, 5, 8, 1280), 32),
        ((4, 160, 256, 128), 32),
        ((3, 20, 32, 960), 32),
        ((2, 8, 12, 24), 8),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("silu", [True, False])
@torch.no_grad()
def test_the_fused_group_norm_computes_what_plain_torch_does(shape, groups, dtype, silu):
    pytest.importorskip("triton")
    torch.manual_seed(0)
    values = (3 * torch.randn(shape, device="cuda") + 1).to(dtype)
    weight, bias = torch.randn(2, shape[-1], device="cuda")
    arguments = groups, weight.to(dtype), bias.to(dtype), 1e-5, silu
    assert group_norm._fused(values, weight)
    fused = group_norm.group_norm(values, *arguments)
    plain = group_norm.group_norm_plain(values.double(), groups, weight.to(dtype).double(),
                                        bias.to(dtype).double(), 1e-5, silu)  # fmt: skip
    assert fused.is_contiguous()
    assert fused.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(fused.double(), plain, atol=tolerance, rtol=0.01)


def test_gradients_take_the_plain_group_norm(networks):
    values = torch.randn(2, 8, 8, 32, device="cuda")
    weight = torch.ones(32, device="cuda", requires_grad=True)
    assert not group_norm._fused(values, weight)
    networks = networks.cuda().requires_grad_(True).train()
    points = networks.vae.decode_points(torch.randn(1, 4, 4, 4, device="cuda"))
    points.sigma.sum().backward()
    branch = networks.vae.point_decoder.decoder_adaptor
    assert all(p.grad is not None and p.grad.isfinite().all() for p in branch.parameters())


@torch.no_grad()
def test_more_sequences_than_a_grid_axis_holds():
    queries, keys, values = torch.randn(3, 70000, 4, 16, device="cuda", dtype=torch.bfloat16)
    result = layers.attention(queries, keys, values, 8)
    expected = layers.attention(queries[-9:], keys[-9:], values[-9:], 8)
    torch.testing.assert_close(result[-9:], expected, atol=0.02, rtol=0)


@torch.no_grad()
def test_convolutions_keep_the_channels_last():
    conv = layers.Conv2d(64, 128, 3, padding=1).cuda().bfloat16()
    temporal = layers.TemporalConv(64).cuda().bfloat16()
    layers.to_channels_last(conv)
    layers.to_channels_last(temporal)
    picture = torch.randn(4, 16, 24, 64, device="cuda", dtype=torch.bfloat16)
    assert conv(picture).is_contiguous()
    assert temporal(picture[None]).is_contiguous()


COMPILED = """
import torch
from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.sampling import sample_latents
from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.geo4d.speed import compile_networks

torch.manual_seed(0)
networks = Geo4DNetworks(GEO4D_SIZES["toy"]).cuda().eval().requires_grad_(False)
video, noise = torch.randn(1, 4, 4, 8, 8, device="cuda"), torch.randn(1, 16, 4, 8, 8)
plain = sample_latents(networks, video, noise)
compile_networks(networks)
torch.testing.assert_close(sample_latents(networks, video, noise), plain, atol=1e-3, rtol=0)
"""


def test_compiled_networks_compute_the_same():
    # In a process of its own: the annotation checks of tests do not compile.
    told = subprocess.run(
        [sys.executable, "-c", COMPILED],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr[-3000:]
