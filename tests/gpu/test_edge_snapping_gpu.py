"""Edge snapping on CUDA gives what it gives on the CPU."""

import pytest
import torch

from more4d_backend.strag.edge_snapping import snap_motion_to_edges

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_cuda_and_cpu_agree_at_the_released_size():
    generator = torch.Generator().manual_seed(0)
    motion = torch.zeros(49, 368, 512, 3)
    motion[:, 100:200, 150:300] = torch.randn(49, 1, 1, 3, generator=generator)
    motion += 0.01 * torch.randn(motion.shape, generator=generator)
    image = torch.rand(368, 512, 3, generator=generator)
    depth = 1 + torch.rand(368, 512, generator=generator)
    expected = snap_motion_to_edges(motion, image, depth)
    snapped = snap_motion_to_edges(motion.cuda(), image.cuda(), depth.cuda())
    torch.testing.assert_close(snapped.cpu(), expected, atol=1e-5, rtol=1e-5)
