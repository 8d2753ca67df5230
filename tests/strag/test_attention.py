"""The attention processor against diffusers' own."""

import copy

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from more4d_backend.strag import attention
from more4d_backend.strag.attention import rotate, use_wan_processor

CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 8,
    "out_channels": 4,
    "text_dim": 10,
    "freq_dim": 8,
    "ffn_dim": 16,
    "num_layers": 2,
}


def tables(tokens, channels, seed=0):
    """Angles as diffusers stores them: each one twice."""
    generator = torch.Generator().manual_seed(seed)
    angle_rad = torch.rand(1, tokens, 1, channels // 2, generator=generator) * 7
    angle_rad = angle_rad.repeat_interleave(2, dim=-1)
    return angle_rad.cos(), angle_rad.sin()


@pytest.mark.parametrize("image_dim", [None, 6])
@torch.no_grad()
def test_at_the_length_that_diffusers_expects_both_compute_the_same(image_dim):
    torch.manual_seed(0)
    added = None if image_dim is None else 24
    stock = WanTransformer3DModel(**CONFIG, image_dim=image_dim, added_kv_proj_dim=added).eval()
    ours = copy.deepcopy(stock)
    use_wan_processor(ours)
    inputs = {
        "hidden_states": torch.randn(2, 8, 3, 4, 4),
        "timestep": torch.tensor([10.0, 700.0]),
        "encoder_hidden_states": torch.randn(2, 512, 10),
        "encoder_hidden_states_image": None if image_dim is None else torch.randn(2, 257, 6),
    }
    torch.testing.assert_close(ours(**inputs).sample, stock(**inputs).sample, atol=1e-6, rtol=0)


def test_real_and_complex_rotation_agree():
    cos, sin = tables(tokens=5, channels=8)
    x = torch.randn(2, 5, 3, 8)
    torch.testing.assert_close(
        attention._rotate_real(x, cos, sin),
        attention._rotate_complex(x, cos, sin),
        atol=1e-6,
        rtol=0,
    )


def test_a_quarter_turn_swaps_the_channels_of_a_pair():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    cos, sin = torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 1, 4)
    assert rotate(x, cos, sin).flatten().tolist() == [-2.0, 1.0, -4.0, 3.0]


def test_rotation_is_computed_in_float32_and_returned_in_the_dtype_that_came():
    cos, sin = tables(tokens=5, channels=8)
    x = torch.randn(2, 5, 3, 8).bfloat16()
    turned = rotate(x, cos, sin)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(x.float(), cos, sin).bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tables_of_another_dtype_are_taken(dtype):
    # Of a model that was cast: torch has no complex numbers of two bfloat16.
    cos, sin = (table.to(dtype) for table in tables(tokens=5, channels=8))
    x = torch.randn(2, 5, 3, 8).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    expected = rotate(x.to(wide), cos.to(wide), sin.to(wide)).to(dtype)
    assert torch.equal(rotate(x, cos, sin), expected)
