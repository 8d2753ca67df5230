import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def tensors_of(sample):
    return [sample.video, sample.depth, sample.motion, sample.visibility, sample.novel_video]


@pytest.fixture(scope="module")
def settings():
    from training.data.samples import SampleSize
    from training.procedural.settings import ProceduralSettings

    return ProceduralSettings(size=SampleSize(num_frames=9, height=96, width=128))


@pytest.mark.parametrize("seed", range(6))
def test_a_sample_made_on_the_gpu_is_that_of_the_cpu_but_for_rounding(seed, settings):
    from training.procedural.dataset import on_cpu, procedural_sample

    expected = procedural_sample(seed, settings)
    sample = procedural_sample(seed, settings, device="cuda")
    assert sample.video.is_cuda
    sample = on_cpu(sample)
    assert (sample.caption, sample.objects) == (expected.caption, expected.objects)
    same = sample.object_index == expected.object_index
    assert same.float().mean() > 0.999
    for there, here in ((sample.video, expected.video), (sample.novel_video, expected.novel_video)):
        off = (there.int() - here.int()).abs().amax(-1)
        assert (off > 1).float().mean() < 2e-3  # silhouettes and edges of boxes
    torch.testing.assert_close(sample.depth[same], expected.depth[same], atol=0, rtol=1e-4)
    differs = sample.visibility != expected.visibility
    assert differs.float().mean() < 2e-3
    motion = (sample.motion.float() - expected.motion.float()).abs().amax((0, 3))
    assert (motion[same] > 1e-2).float().mean() < 1e-3


def test_a_seed_means_one_sample_to_the_last_bit_on_the_gpu(settings):
    from training.procedural.dataset import procedural_sample

    one, again = (procedural_sample(3, settings, device="cuda") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(one), tensors_of(again), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_the_fused_kernels_do_what_the_plain_ones_do(seed, settings, monkeypatch):
    from more4d_backend.devices.triton_support import triton_runs
    from more4d_backend.synthetic import casting as synthetic_casting
    from training.procedural.scenes import draw_scene

    if not triton_runs(synthetic_casting.CAST, torch.device("cuda", torch.cuda.current_device())):
        pytest.skip("the fused kernels need triton and a C compiler")
    world = draw_scene(seed, settings).world
    cameras = world.cameras(9, 96, 128, device="cuda")
    fused, tracks = world.view(cameras), world.tracks(cameras)
    monkeypatch.setattr(synthetic_casting, "triton_runs", lambda *_: False)
    plain, plain_tracks = world.view(cameras), world.tracks(cameras)
    same = fused.object_index == plain.object_index
    assert same.float().mean() > 0.9999
    torch.testing.assert_close(fused.depth[same], plain.depth[same], atol=0, rtol=1e-5)
    off = (fused.rgb - plain.rgb)[same].abs().amax(-1)
    assert (off > 1e-3).float().mean() < 1e-3
    assert (tracks.visibility != plain_tracks.visibility).float().mean() < 1e-3


def test_the_benchmark_runs():
    script = Path(__file__).parents[2] / "benchmarks" / "procedural_data.py"
    command = [sys.executable, str(script), "--num-samples", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=script.parents[1])
    assert done.returncode == 0, done.stderr
    assert "samples/min" in done.stdout
