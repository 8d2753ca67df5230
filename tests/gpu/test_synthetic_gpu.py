import pytest
import torch

from more4d_backend.synthetic import make_world

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_world_is_the_same_on_the_gpu(seed):
    world = make_world(seed, moving_camera=True)
    on_cpu = world.cameras(5, 96, 128, dtype=torch.float64)
    on_gpu = world.cameras(5, 96, 128, dtype=torch.float64, device="cuda")
    expected, view = world.view(on_cpu), world.view(on_gpu)
    assert view.rgb.is_cuda
    assert torch.equal(view.object_index.cpu(), expected.object_index)
    torch.testing.assert_close(view.depth.cpu(), expected.depth, atol=1e-9, rtol=1e-9)
    # A point on the edge of a box belongs to two faces; rounding decides which lights it.
    off = (view.rgb.cpu() - expected.rgb).abs().amax(-1)
    assert (off > 1e-7).float().mean() < 1e-3
    tracks, scene = world.tracks(on_cpu), world.scene(on_gpu)
    torch.testing.assert_close(scene.points.positions.cpu(), tracks.positions, atol=1e-9, rtol=1e-9)
    differs = scene.points.visibility.cpu() != tracks.visibility
    assert differs.float().mean() < 1e-4
