"""Norm and SiLU in one: what diffusers computes in passes, and its gradient."""

import copy

import diffusers
import torch
from torch.nn import functional as F

from more4d_backend.wan.rms_norm import fuse_norms, norm_silu
from more4d_backend.wan.whole_clip import run_whole_clips


def test_a_vae_with_joined_norms_encodes_decodes_and_learns_as_before():
    torch.manual_seed(0)
    plain = diffusers.AutoencoderKLWan(base_dim=4)
    for name, parameter in plain.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.normal_(parameter)
    joined = fuse_norms(copy.deepcopy(plain))
    assert joined.state_dict().keys() == plain.state_dict().keys()
    video = torch.randn(1, 3, 5, 16, 16)
    results = []
    for vae in (run_whole_clips(plain), run_whole_clips(joined)):
        latent = vae.encode(video).latent_dist.mean
        seen = vae.decode_unclamped(latent)
        seen.square().mean().backward()
        gradients = {n: p.grad for n, p in vae.named_parameters() if p.grad is not None}
        results.append({"latent": latent, "seen": seen, **gradients})
    before, after = results
    assert before.keys() == after.keys()
    for name, expected in before.items():
        torch.testing.assert_close(after[name], expected, atol=1e-5, rtol=1e-4, msg=name)


def test_inside_of_autocast_the_result_is_half_as_wide():
    values, gamma = torch.randn(1, 4, 2, 3, 3), torch.ones(4)
    assert norm_silu(values, gamma).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert norm_silu(values, gamma).dtype == torch.bfloat16
    expected = F.silu(2 * F.normalize(values, dim=1))
    torch.testing.assert_close(norm_silu(values, gamma), expected)


COMPARISON = """
import torch
from more4d_backend.wan.rms_norm import norm_silu
from more4d_backend.wan.rms_norm_triton import NormSilu

torch.manual_seed(0)
for shape in ((2, 16, 3, 20, 31), (1, 64, 1, 5, 7), (2, 12, 2, 9, 16)):
    values, gradient = torch.randn(2, *shape)
    values[0, :, 0, 0, 0] = 0  # the norm of nothing
    gamma = torch.randn(shape[1])

    def computed(function, values):
        values = values.clone(memory_format=torch.preserve_format).requires_grad_()
        factor = gamma.clone().requires_grad_()
        result = function(values, factor)
        result.backward(gradient.to(result))
        return result.float(), values.grad.float(), factor.grad

    expected = computed(norm_silu, values)
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        for dtype, atol, rtol in ((torch.float32, 2e-5, 1e-4), (torch.bfloat16, 0.06, 0.06)):
            laid = values.contiguous(memory_format=layout)
            fused = computed(lambda v, g: NormSilu.apply(v, g, dtype), laid)
            for name, ours, theirs in zip(("result", "values", "gamma"), fused, expected):
                summed = 21 if name == "gamma" else 1  # over all places
                torch.testing.assert_close(
                    ours, theirs, atol=atol * summed, rtol=rtol,
                    msg=lambda m: f"{name} {shape} {layout} {dtype}: {m}",
                )
    turned = values.transpose(3, 4).contiguous().transpose(3, 4)  # neither layout
    torch.testing.assert_close(
        computed(lambda v, g: NormSilu.apply(v, g, torch.float32), turned)[1], expected[1],
        atol=2e-5, rtol=1e-4,
    )
"""


def test_the_kernels_compute_what_plain_torch_does_and_its_gradient(assert_interpreted):
    assert_interpreted(COMPARISON)
