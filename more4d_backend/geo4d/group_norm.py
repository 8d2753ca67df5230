"""Group norm, and SiLU after it, on activations with channels last.

On CUDA torch's own group norm wants channels first: it would copy activations there and back. The
kernels of `group_norm_triton` take them as they lie, where triton can be used and no gradient is
asked for.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..devices.triton_support import triton_runs


def group_norm(
    values: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool
) -> Tensor:
    """Normalise each (N ... C) over all its places and the channels of a group.

    Statistics are taken in float32 whatever the dtype.
    """
    if _fused(values, weight):
        from . import group_norm_triton

        return group_norm_triton.group_norm(values, groups, weight, bias, eps, silu)
    return group_norm_plain(values, groups, weight, bias, eps, silu)


def group_norm_plain(
    values: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool
) -> Tensor:
    """See `group_norm`: with plain torch, for any device and for gradients."""
    flat = values.flatten(1, -2)  # N L C
    if torch.is_grad_enabled() and weight.requires_grad and not values.requires_grad:
        # On CPUs the backward pass of torch 2.13 with channels last writes the gradient of the
        # input even where there is none, and crashes the process.
        normed = F.group_norm(flat.transpose(1, 2), groups, weight, bias, eps).transpose(1, 2)
    else:
        # Of four axes, so that torch keeps channels last where it can.
        pictures = flat.unsqueeze(2).permute(0, 3, 1, 2)  # N C L 1
        normed = F.group_norm(pictures, groups, weight, bias, eps).permute(0, 2, 3, 1)
    normed = F.silu(normed) if silu else normed
    return normed.reshape(values.shape)


def _fused(values: Tensor, weight: Tensor) -> bool:
    if not values.is_cuda or torch.compiler.is_compiling() or torch.is_autocast_enabled("cuda"):
        return False
    if torch.is_grad_enabled() and (values.requires_grad or weight.requires_grad):
        return False
    return triton_runs("Group norms run", values.device, (8, 0))
