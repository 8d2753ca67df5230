"""Operations that are counted by hand, against those that torch counts."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.model_flops import forward_flops
from more4d_backend.strag.motion_perception import Guidance
from more4d_backend.strag.sizes import STRAG_SIZES, VISM_SIZES
from more4d_backend.strag.transformer import StragTransformer


@pytest.mark.parametrize("image_dim", [None, 1280])
def test_every_matrix_product_of_a_forward_pass_is_counted(image_dim):
    tiny = STRAG_SIZES["tiny"]
    size = replace(tiny, wan=replace(tiny.wan, num_layers=2, image_dim=image_dim))
    transformer = StragTransformer(**size.config())
    tokens = None if image_dim is None else torch.randn(1, 257, image_dim)
    features = torch.randn(1, 8 // 2 * 12 // 2, size.perception.feature_dim)
    # torch does not count what its fused attention does on a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        transformer(
            torch.randn(1, size.wan.in_channels, 3, 8, 12),
            torch.tensor([500.0]),
            torch.randn(1, 512, size.wan.text_dim),
            tokens,
            reference_latent=torch.randn(1, 16, 8, 12),
            guidance=Guidance(features=features, unguided_frame=0),
        )
    counted = forward_flops(size.wan, (3, 8, 12), size.perception)
    # Besides: products with one vector for each sample; the reference has fewer channels.
    assert counted == pytest.approx(counter.get_total_flops(), rel=2e-3)


def test_the_full_size_has_the_published_amount():
    """493 TFLOP in linear layers and 174 in self-attention for two samples, and cross-attention."""
    strag = STRAG_SIZES["14b"]
    tflop = 2 * forward_flops(strag.wan, (13, 46, 64), strag.perception) / 1e12
    assert tflop == pytest.approx(493 + 174 + 13 + 5, rel=0.02)
    assert forward_flops(VISM_SIZES["14b"], (13, 46, 64)) < tflop * 1e12 / 2
