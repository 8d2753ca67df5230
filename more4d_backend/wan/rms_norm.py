"""The norms of a Wan VAE together with the SiLU after each of them, for training.

diffusers normalises, scales, adds nothing, and then applies SiLU, under autocast mostly in float32
and each in a pass of its own over the activations. Here it is one kernel, which reads and writes
them once, and one for the gradient, where triton runs.
"""

import math
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..devices.triton_support import triton_runs

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan


def fuse_norms(vae: "AutoencoderKLWan") -> "AutoencoderKLWan":
    """Join every norm that SiLU follows with it; in place, names of weights stay. Return the VAE.

    On a CPU, or without triton, plain torch computes the same.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanResidualBlock

    for module in vae.modules():
        if isinstance(module, WanResidualBlock):
            _join(module, module.norm1, module.norm2)
    for part in (vae.encoder, vae.decoder):
        _join(part, part.norm_out)
    return vae


def _join(owner: Any, *norms: nn.Module) -> None:
    owner.nonlinearity = nn.Identity()
    for norm in norms:
        norm.forward = MethodType(_norm_silu_of, norm)


def _norm_silu_of(norm: Any, values: Tensor) -> Tensor:
    return norm_silu(values, norm.gamma.flatten())


def norm_silu(values: Tensor, gamma: Tensor) -> Tensor:
    """Return SiLU(sqrt(C) gamma x / |x|) of each place of (N C T H W), |x| over the channels.

    Computed in float32. Inside of autocast the result has its dtype, else that of `values`.
    """
    device = values.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else values.dtype
    if values.is_cuda and triton_runs("Norms of the VAE run", values.device, (8, 0)):
        from . import rms_norm_triton

        return rms_norm_triton.NormSilu.apply(values, gamma, dtype)
    with torch.autocast(device, enabled=False):
        normed = F.normalize(values.float(), dim=1) * math.sqrt(values.shape[1])
        return F.silu(normed * gamma.float().view(-1, 1, 1, 1)).to(dtype)
