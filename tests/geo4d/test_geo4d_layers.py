"""Layers on activations with channels last."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from more4d_backend.geo4d import layers
from more4d_backend.geo4d.group_norm import group_norm


def channels_first(values):
    return values.movedim(-1, 1)


@pytest.mark.parametrize("shape", [(2, 5, 7, 24), (3, 4, 5, 6, 8), (1, 9, 16)])
@pytest.mark.parametrize("silu", [True, False])
def test_group_norm_is_torchs_with_the_channels_last(shape, silu):
    values = 3 * torch.randn(shape, dtype=torch.float64) + 1
    weight, bias = torch.randn(2, shape[-1], dtype=torch.float64)
    expected = F.group_norm(channels_first(values), 4, weight, bias, 1e-5)
    expected = F.silu(expected) if silu else expected
    result = group_norm(values, 4, weight, bias, 1e-5, silu)
    torch.testing.assert_close(channels_first(result), expected, atol=1e-12, rtol=0)


FROZEN_INPUT = """
import torch
from more4d_backend.geo4d.layers import GroupNorm

norm = GroupNorm(4, 8, 1e-5, silu=True)
norm(torch.randn(2, 3, 5, 8)).pow(2).sum().backward()
assert norm.weight.grad.abs().min() > 0
"""


def test_a_norm_learns_although_what_it_sees_is_frozen():
    # torch crashes where this goes wrong: a process of its own.
    command = [sys.executable, "-c", FROZEN_INPUT]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


COMPARISON = """
import torch
from more4d_backend.geo4d import group_norm_triton
from more4d_backend.geo4d.group_norm import group_norm_plain

torch.manual_seed(0)
for shape, groups in (((2, 5, 7, 64), 8), ((3, 700, 40), 4), ((1, 4, 50, 3, 320), 32)):
    values = 3 * torch.randn(shape) + 1
    weight, bias = torch.randn(2, shape[-1])
    for silu in (True, False):
        arguments = groups, weight, bias, 1e-5, silu
        expected = group_norm_plain(values, *arguments)
        fused = group_norm_triton.group_norm(values, *arguments)
        torch.testing.assert_close(fused, expected, atol=1e-5, rtol=0)
        # A view that is not contiguous, and half precision in and out.
        turned = values.transpose(1, -2).contiguous().transpose(1, -2)
        torch.testing.assert_close(
            group_norm_triton.group_norm(turned, *arguments), expected, atol=1e-5, rtol=0
        )
        halved = group_norm_triton.group_norm(values.bfloat16(), *arguments)
        assert halved.dtype == torch.bfloat16
        torch.testing.assert_close(halved.float(), expected, atol=0.1, rtol=0.02)
"""


def test_the_fused_group_norm_computes_what_plain_torch_does(assert_interpreted):
    assert_interpreted(COMPARISON)


@torch.no_grad()
def test_convolutions_are_torchs_with_the_channels_last():
    picture = torch.randn(2, 6, 5, 8, dtype=torch.float64)
    conv = layers.Conv2d(8, 12, 3, padding=1).double()
    expected = F.conv2d(channels_first(picture), conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(channels_first(conv(picture)), expected, atol=1e-12, rtol=0)

    clip = torch.randn(2, 4, 6, 5, 8, dtype=torch.float64)
    temporal = layers.TemporalConv(8).double()
    expected = nn.Conv3d.forward(temporal, channels_first(clip))
    torch.testing.assert_close(channels_first(temporal(clip)), expected, atol=1e-12, rtol=0)

    point = layers.Pointwise2d(8, 3).double()
    expected = F.conv2d(channels_first(picture), point.weight, point.bias)
    torch.testing.assert_close(channels_first(point(picture)), expected, atol=1e-12, rtol=0)


def test_attention_is_softmax_of_scaled_products():
    queries, keys, values = (torch.randn(3, n, 8, dtype=torch.float64) for n in (5, 7, 7))
    heads = [x.view(3, -1, 2, 4).transpose(1, 2) for x in (queries, keys, values)]
    weights = torch.softmax(heads[0] @ heads[1].transpose(-1, -2) / 2, dim=-1)
    expected = (weights @ heads[2]).transpose(1, 2).reshape(3, 5, 8)
    result = layers.attention(queries, keys, values, 4)
    torch.testing.assert_close(result, expected, atol=1e-12, rtol=0)


def test_more_sequences_than_a_kernel_takes_are_split(monkeypatch):
    queries, keys, values = torch.randn(3, 11, 5, 8)
    whole = layers.attention(queries, keys, values, 4)
    monkeypatch.setattr(layers, "_MOST_SEQUENCES", 4)
    torch.testing.assert_close(layers.attention(queries, keys, values, 4), whole)


def test_weights_are_laid_out_for_cudnn_and_keep_their_values():
    stack = nn.ModuleList([layers.Conv2d(4, 8, 3), layers.TemporalConv(8), nn.Linear(3, 4)])
    before = {name: value.clone() for name, value in stack.state_dict().items()}
    layers.to_channels_last(stack)
    assert stack[0].weight.is_contiguous(memory_format=torch.channels_last)
    # What the temporal convolution hands to cuDNN, with the last axis taken off.
    assert stack[1].weight.squeeze(-1).is_contiguous(memory_format=torch.channels_last)
    for name, value in stack.state_dict().items():
        assert torch.equal(value, before[name])
