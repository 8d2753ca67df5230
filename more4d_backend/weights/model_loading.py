"""From a weight file to a loaded network: sizes are read from the shapes in the file.

Networks are built without values and filled tensor by tensor, so loading needs the memory of the
network once, on the device that it is loaded to.
"""

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import load_into, load_weights
from .architectures import Stored
from .architectures import build_empty as build_empty
from .architectures import network_names as network_names
from .files import StoredTensor, WeightsError
from .kinds import WeightKind

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from transformers import CLIPVisionModel, UMT5EncoderModel

    from ..strag.motion_vae import MotionLatentSettings, MotionVAE
    from ..strag.transformer import StragTransformer
    from ..tiny.depth_network import DepthNetwork
    from ..tiny.text_encoder import ByteTextModel


def load_strag(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> "StragTransformer":
    """Load a 4D-STraG transformer, released or own. `dtype` None: as stored.

    Raises:
        WeightsError: not a whole STraG file.
    """
    return _load(path, WeightKind.STRAG, dtype, device)


def load_wan_transformer(
    path: str | os.PathLike[str],
    *kinds: WeightKind,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> "WanTransformer3DModel":
    """Load a plain Wan transformer of one of `kinds` (default: Fun-InP, the base of 4D-ViSM).

    Raises:
        WeightsError: not a whole file of one of these kinds.
    """
    return _load(path, kinds or (WeightKind.FUN_INP,), dtype, device)


def load_wan_vae(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> "AutoencoderKLWan":
    """Load a Wan2.1 VAE in either layout.

    Raises:
        WeightsError: not a whole Wan2.1 VAE.
    """
    return _load(path, WeightKind.WAN_VAE, dtype, device)


def load_motion_vae(
    path: str | os.PathLike[str],
    settings: "MotionLatentSettings",
    *,
    encoder: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> "MotionVAE":
    """Load the motion VAE, from one file or the folder of the three released ones.

    A file without the VAE's encoder (the embedded one) takes it from `encoder`, a Wan VAE.

    Raises:
        WeightsError: not a whole motion VAE.
    """
    kinds = (WeightKind.MOTION_VAE, WeightKind.MOTION_DECODER)
    tensors = load_weights(path, *kinds)
    vae = _filled(kinds[0], with_encoder(path, tensors, encoder), str(path), dtype, device)
    vae.settings = settings
    return vae


def with_encoder(
    path: str | os.PathLike[str], tensors: Stored, encoder: str | os.PathLike[str] | None
) -> dict[str, StoredTensor]:
    """Complete a motion VAE (library names) by a Wan VAE's encoder, if it comes without.

    Raises:
        WeightsError: it does, and no Wan VAE is named.
    """
    name = "vae.encoder."
    if any(known.startswith(name) for known in tensors):
        return dict(tensors)
    if encoder is None:
        raise WeightsError(
            f"{path} is {WeightKind.MOTION_DECODER.label}. Name that Wan VAE beside it."
        )
    wan = load_weights(encoder, WeightKind.WAN_VAE)
    return dict(tensors) | {f"vae.{k}": t for k, t in wan.items() if k.startswith("encoder.")}


def load_umt5(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> "UMT5EncoderModel":
    """Load the text encoder from Wan's original file or a converted one.

    Raises:
        WeightsError: not a whole UMT5 encoder.
    """
    return _load(path, WeightKind.UMT5, dtype, device)


def load_clip_vision(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> "CLIPVisionModel":
    """Load the image encoder from Wan's original CLIP file or a converted one.

    Raises:
        WeightsError: not a whole CLIP image encoder.
    """
    return _load(path, WeightKind.CLIP_VISION, dtype, device)


def load_byte_text(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> "ByteTextModel":
    """Load the embedded text encoder.

    Raises:
        WeightsError: not a whole one.
    """
    return _load(path, WeightKind.BYTE_TEXT, dtype, device)


def load_depth_network(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> "DepthNetwork":
    """Load the embedded depth network.

    Raises:
        WeightsError: not a whole one.
    """
    return _load(path, WeightKind.TINY_DEPTH, dtype, device)


def _load(
    path: str | os.PathLike[str],
    kinds: WeightKind | tuple[WeightKind, ...],
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> Any:
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    return _filled(kinds[0], load_weights(path, *kinds), str(path), dtype, device)


def _filled(
    kind: WeightKind,
    tensors: Stored,
    source: str,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> Any:
    module = build_empty(kind, tensors)
    assert module is not None
    load_into(
        module,
        network_names(module, kind, tensors),
        source=source,
        dtype=dtype,
        device=device,
        # diffusers' list for its class: modulation and norms are precise, and small.
        float32=_float32_parts(module) if dtype is not None else (),
    )
    return module


def _float32_parts(module: nn.Module) -> tuple[str, ...]:
    parts = tuple(getattr(module, "_keep_in_fp32_modules", None) or ())
    if not parts:
        return ()
    from diffusers import ModelMixin

    return parts if isinstance(module, ModelMixin) else ()
