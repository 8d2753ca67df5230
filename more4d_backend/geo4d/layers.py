"""Layers on activations whose channels lie last in memory.

Linear layers, attention and group norms read such activations as they lie, and the fastest
convolutions of cuDNN want them so: nothing is transposed between one layer and the next. Axes: N
picture, B window, T frame, H height, W width, C channel; `...` stands for places.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .group_norm import group_norm

_MOST_SEQUENCES = 65535
"""CUDA's attention kernels put sequences on a grid axis that ends here."""

_START = 0.05
"""Of a residual branch's last layer in a new network: near the identity, yet with gradients."""


class GroupNorm(nn.GroupNorm):
    """Group norm over all places of each (N ... C), followed by SiLU where asked for."""

    def __init__(self, groups: int, channels: int, eps: float, *, silu: bool = False) -> None:
        super().__init__(groups, channels, eps)
        self.silu = silu

    def forward(self, input: Tensor) -> Tensor:
        """Return what a norm and SiLU on (N C ...) would, with the channels last."""
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps, self.silu)


class Conv2d(nn.Conv2d):
    """A convolution of (N H W C)."""

    def forward(self, input: Tensor) -> Tensor:
        """Return (N H W C)."""
        return super().forward(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # N C H W and back


class TemporalConv(nn.Conv3d):
    """A convolution of three frames, each place by itself, of (B T H W C)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, input: Tensor) -> Tensor:
        """Return (B T H W C).

        With all places in a row, frames and places are a picture, whose convolution in cuDNN is
        the faster one.
        """
        frames_by_places = input.flatten(2, 3).permute(0, 3, 1, 2)  # B C T HW
        result = F.conv2d(
            frames_by_places, self.weight.squeeze(-1), self.bias, padding=(1, 0)
        ).permute(0, 2, 3, 1)  # B T HW C
        return result.unflatten(2, input.shape[2:4])


class Pointwise2d(nn.Conv2d):
    """A 1x1 convolution of (... C): a linear layer."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Return (... C)."""
        return F.linear(input, self.weight.flatten(1), self.bias)


class Pointwise1d(nn.Conv1d):
    """The same, with the shape of weights that the first temporal attention has."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Return (... C)."""
        return F.linear(input, self.weight.flatten(1), self.bias)


def upsampled(input: Tensor) -> Tensor:
    """Double height and width of (N H W C), repeating each place."""
    doubled = F.interpolate(input.permute(0, 3, 1, 2), scale_factor=2.0, mode="nearest")
    return doubled.permute(0, 2, 3, 1)  # N H W C


def attention(queries: Tensor, keys: Tensor, values: Tensor, head_dim: int) -> Tensor:
    """Attend with heads: (sequence token channel) each, sequences with themselves."""
    q, k, v = (
        x.unflatten(-1, (-1, head_dim)).transpose(1, 2).split(_MOST_SEQUENCES)
        for x in (queries, keys, values)
    )
    parts = [F.scaled_dot_product_attention(*part) for part in zip(q, k, v, strict=True)]
    mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
    return mixed.transpose(1, 2).flatten(2)


def damped(layer: nn.Conv2d | nn.Conv1d | nn.Conv3d | nn.Linear) -> nn.Module:
    """Make the last layer of a residual branch small. A zero would stop gradients behind it."""
    with torch.no_grad():
        layer.weight.mul_(_START)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer


def to_channels_last(module: nn.Module) -> None:
    """Lay the weights of all convolutions as cuDNN wants them beside such activations, in place."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
