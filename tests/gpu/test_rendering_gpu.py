"""Rendering on CUDA: equal to the CPU, and gsplat equal to its plain-torch twin."""

import dataclasses

import pytest
import torch

from more4d_backend.camera_paths import PathSettings, scene_path
from more4d_backend.devices.triton_support import triton_runs
from more4d_backend.rendering import (
    RenderSettings,
    gaussian_torch,
    gsplat_cuda,
    hole_mask,
    reference,
    render,
)
from more4d_backend.rendering.gaussians import blended, gaussians_of
from more4d_backend.rendering.surface import first_spacing, surface_of
from more4d_backend.rendering.view import point_frames
from more4d_backend.rendering.zbuffer import PackedZBuffer, TwoPassZBuffer
from more4d_backend.synthetic import make_world

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
_MISSING = gsplat_cuda.missing_gsplat(torch.device("cuda"))
needs_gsplat = pytest.mark.skipif(_MISSING is not None, reason=str(_MISSING))
FRAMES = 5


@pytest.fixture(scope="module")
def scene():
    world = make_world(1)
    return world.scene(world.cameras(FRAMES, 92, 128))


@pytest.fixture(scope="module")
def path(scene):
    return scene_path("orbit-left", scene, FRAMES, settings=PathSettings(angle_deg=15.0))


@pytest.mark.parametrize("mode", ["nearest", "splat"])
def test_cuda_agrees_with_the_cpu(scene, path, mode):
    settings = RenderSettings(mode=mode)
    here, there = render(scene, path, settings), render(scene.to("cuda"), path, settings)
    assert there.rgb.device.type == "cuda"
    # Rounding differs by device, so a point on the border of two pixels may fall either way.
    same = (here.alpha == there.alpha.cpu()) & ((here.depth - there.depth.cpu()).abs() < 1e-2)
    assert same.float().mean() > 0.995
    off = (here.rgb - there.rgb.cpu()).abs().amax(-1)[same]
    assert (off < 1e-2).float().mean() > 0.995


def _nearest_cases(scene):
    device = torch.device("cuda")
    tracks = point_frames(scene.to("cuda"), slice(0, FRAMES), device, draw_unseen=False)
    broken = tracks.positions.clone()
    broken[0, ::7, 0], broken[1, ::5, 2], broken[2, ::3, 1] = torch.nan, torch.inf, -torch.inf
    flicker = torch.rand(tracks.positions.shape, device=device)
    twice = {
        "positions": torch.cat([tracks.positions] * 2, dim=1),
        "usable": tracks.usable.repeat(1, 2),
        "colors": torch.cat([tracks.colors, 1 - tracks.colors], dim=1),
    }
    one_frame = {"positions": tracks.positions[:1], "usable": tracks.usable[:1]}
    return {
        "tracks": tracks,
        "seen by all the cameras": dataclasses.replace(tracks, **one_frame),
        "colours of each frame": dataclasses.replace(tracks, colors=flicker),
        "not finite": dataclasses.replace(tracks, positions=broken),
        "around the camera": dataclasses.replace(tracks, positions=tracks.positions * -flicker),
        "equal depths": dataclasses.replace(tracks, **twice),
    }


def test_the_triton_kernels_change_no_bit_of_nearest(scene, path):
    if not triton_runs(reference.DRAWN, torch.device("cuda", torch.cuda.current_device())):
        pytest.skip("the fused kernels need triton and a C compiler")
    from more4d_backend.rendering import nearest_triton

    for name, points in _nearest_cases(scene).items():
        for cameras in (path, path.to("cuda")):
            plain = reference.nearest_plain(points, cameras)
            fused = nearest_triton.nearest(points, cameras)
            for field in dataclasses.fields(plain):
                off = (getattr(plain, field.name) != getattr(fused, field.name)).sum()
                assert off == 0, (name, field.name, int(off))


def test_a_scene_on_the_cpu_is_rendered_on_the_device_asked_for(scene, path):
    output = render(scene, path, RenderSettings(device="cuda"))
    assert output.rgb.is_cuda
    assert torch.equal(output.rgb, render(scene.to("cuda"), path.to("cuda")).rgb)


@pytest.mark.parametrize("mode", ["nearest", "splat"])
def test_chunking_changes_no_bit_on_cuda(scene, path, mode):
    scene = scene.to("cuda")
    whole = render(scene, path, RenderSettings(mode=mode, chunk_frames=FRAMES))
    parts = render(scene, path, RenderSettings(mode=mode, chunk_frames=2))
    for field in dataclasses.fields(whole):
        assert torch.equal(getattr(whole, field.name), getattr(parts, field.name)), field.name


@pytest.mark.parametrize("mode", ["nearest", "splat"])
def test_a_tf32_setting_of_the_host_moves_no_point(scene, path, mode, monkeypatch):
    settings = RenderSettings(mode=mode, device="cuda")
    expected = render(scene, path, settings)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    assert torch.equal(render(scene, path, settings).rgb, expected.rgb)


def test_both_buffers_agree_on_cuda():
    generator = torch.Generator("cuda").manual_seed(0)
    pixel = torch.randint(0, 5000, (100_000,), device="cuda", generator=generator)
    depth = torch.randint(1, 50, (100_000,), device="cuda", generator=generator) / 7
    point = torch.randperm(100_000, device="cuda", generator=generator)
    buffers = [kind(5000, torch.device("cuda")) for kind in (PackedZBuffer, TwoPassZBuffer)]
    for buffer in buffers:
        buffer.draw(pixel, depth, point)
    assert torch.equal(buffers[0].points(100_000), buffers[1].points(100_000))
    assert torch.equal(buffers[0].depth(), buffers[1].depth())


def test_memory_stays_within_the_estimate_for_chunks():
    """The number of frames in a chunk is chosen by `_BYTES_PER_POINT` and `_BYTES_PER_PIXEL`."""
    world = make_world(1)
    scene = world.scene(world.cameras(8, 368, 512, device="cuda"))
    path = scene_path("orbit-left", scene, 8, settings=PathSettings(angle_deg=15.0))
    for mode in ("nearest", "splat"):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        render(scene, path, RenderSettings(mode=mode))
        used = (torch.cuda.max_memory_allocated() - before) / (8 * 368 * 512)
        assert used < reference._BYTES_PER_POINT[mode] + reference._BYTES_PER_PIXEL[mode], mode


def test_hole_masks_agree_with_the_cpu(scene, path):
    alpha = render(scene, path).alpha
    options = {"grow_px": 3, "feather_px": 4, "min_area_px": 30}
    there = hole_mask(alpha.cuda(), **options)
    torch.testing.assert_close(there.cpu(), hole_mask(alpha, **options))


@pytest.fixture
def gaussians(scene):
    device = torch.device("cuda")
    points = point_frames(scene, slice(0, FRAMES), device, draw_unseen=False)
    return gaussians_of(points, surface_of(points, first_spacing(scene, device)), sigma=0.5)


@needs_gsplat
@pytest.mark.parametrize("batched", [True, False])
def test_gsplat_agrees_with_its_twin(gaussians, path, batched):
    fast = blended(*gsplat_cuda.rasterize(gaussians, path, batched=batched))
    twin = blended(*gaussian_torch.rasterize(gaussians, path))
    # gsplat bounds Gaussians by whole tiles and 3.33 sigma; the twin by alpha alone.
    off = (fast.alpha - twin.alpha).abs()
    assert off.mean() < 1e-3
    assert off.max() < 0.05
    solid = twin.alpha > 0.5
    assert (fast.rgb - twin.rgb).abs()[solid].mean() < 1e-3
    assert ((fast.depth - twin.depth).abs() / twin.depth.clamp(min=0.1))[solid].mean() < 1e-3


@needs_gsplat
def test_gsplat_is_taken_when_it_is_there(scene, path, caplog):
    with caplog.at_level("INFO", logger="more4d_backend.rendering"):
        output = render(scene, path, RenderSettings(mode="gaussian", device="cuda"))
    assert "rendered by gsplat" in caplog.text
    assert output.alpha.mean() > 0.5


@needs_gsplat
def test_one_scene_and_many_cameras_go_through_gsplat_in_one_call(scene, path):
    settings = RenderSettings(mode="gaussian", device="cuda")
    together = render(scene.frames([0]), path, settings)
    frozen = render(scene.frames([0] * FRAMES), path, settings)
    torch.testing.assert_close(together.rgb, frozen.rgb, atol=1e-4, rtol=0)
