"""The released Geo4D checkpoints: what is in them, and what of it a converted file keeps.

`model.ckpt` holds the UNet, a stock VAE, a Resampler and two CLIP towers, `vae.ckpt` the VAE with
the fine-tuned point decoder; both are needed. Opened together they are one file in which the second
one's names start with `point_vae.`. The towers and the Resampler only ever see one prompt and one
grey picture: they become a constant context (weights/geo4d_context.py).
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import nn

from ..geo4d.layers import Pointwise2d
from ..geo4d.network import Geo4DUNet
from ..geo4d.sizes import (
    IMAGE_TOKENS_PER_FRAME,
    LATENT_CHANNELS,
    RELEASED_NUM_STEPS,
    Geo4DSize,
    VAESize,
)
from ..geo4d.vae import Decoder, Encoder, UncertaintyBranch
from .files import StoredTensor, WeightFile, WeightsError, stored
from .geo4d_context import (
    IMAGE_TOWER,
    RESAMPLER,
    TEXT_TOWER,
    build_resampler,
    fold_context,
    image_tower_shapes,
    text_tower_shapes,
)
from .geo4d_pair import POINT_VAE
from .geo4d_sizes import NUM_STEPS_KEY, SIZE_KEY, unet_size, vae_size
from .keys import Shape, Table, renamed, renamer
from .kinds import WeightKind

_log = logging.getLogger(__name__)

Stored = Mapping[str, StoredTensor]

_KEPT: Table = (
    ("model.diffusion_model.framestride_embed", "unet.fps_embedding"),
    ("model.diffusion_model", "unet"),
    ("first_stage_model.encoder", "vae.encoder"),
    ("first_stage_model.quant_conv", "vae.quant_conv"),
    ("first_stage_model.decoder", "vae.image_decoder.decoder"),
    ("first_stage_model.post_quant_conv", "vae.image_decoder.post_quant_conv"),
    ("point_vae.decoder", "vae.point_decoder.decoder"),
    ("point_vae.post_quant_conv", "vae.point_decoder.post_quant_conv"),
    ("point_vae.decoder_adaptor", "vae.point_decoder.decoder_adaptor"),
)
"""From the joined file to ours. Everything else is dropped, after a check of all shapes."""

_SCHEDULE = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
_NUM_TRAIN_TIMESTEPS, _NUM_SCALES = 1000, 1400

_SAME_ENCODER = 0.1
"""Largest relative difference of two encoders that were once one; strangers differ by 1.4."""


def released_checkpoint(tensors: Stored) -> nn.Module:
    """Build all that a released checkpoint of these sizes holds, under its own names."""
    size = _size(tensors)
    root = nn.Module()
    root.model = nn.Module()
    root.model.diffusion_model = Geo4DUNet(size)
    root.first_stage_model = _released_vae(size.vae)
    held = {n.removeprefix(RESAMPLER): t for n, t in tensors.items() if n.startswith(RESAMPLER)}
    root.image_proj_model = build_resampler(held)
    shapes = text_tower_shapes(tensors, TEXT_TOWER)
    shapes |= image_tower_shapes(tensors, IMAGE_TOWER)
    shapes |= dict.fromkeys(_SCHEDULE, (_NUM_TRAIN_TIMESTEPS,)) | {"scale_arr": (_NUM_SCALES,)}
    _add_parameters(root, shapes)
    if any(name.startswith(POINT_VAE) for name in tensors):
        root.point_vae = _released_vae(size.vae)
    return root


def released_vae(tensors: Stored) -> nn.Module:
    """Build all that a released `vae.ckpt` of these sizes holds, under its own names."""
    return _released_vae(vae_size(tensors, ""))


def converted(file: WeightFile, tensors: Stored) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return what our file keeps of a joined checkpoint whose names were checked, and its header.

    Raises:
        WeightsError: `vae.ckpt` is not there, or belongs to another checkpoint.
        ImportError: open_clip_torch is not installed; the message has the pip line.
    """
    if not any(name.startswith(POINT_VAE) for name in tensors):
        raise WeightsError(
            f"{file.path} is {WeightKind.GEO4D_CHECKPOINT.label} alone, without the decoder of "
            "point maps. Put vae.ckpt beside model.ckpt, in a folder of their own, and give that "
            "folder."
        )
    _refuse_strangers(file, tensors)
    size = _size(tensors)
    rename = renamer(_KEPT)
    kept = renamed({n: t for n, t in tensors.items() if rename(n) is not None}, _KEPT)
    kept |= stored({"context": fold_context(tensors)})
    header = {SIZE_KEY: json.dumps(asdict(size)), NUM_STEPS_KEY: str(RELEASED_NUM_STEPS)}
    return kept, header


def _size(tensors: Stored) -> Geo4DSize:
    queries = tensors["image_proj_model.latents"].shape[1]
    return Geo4DSize(
        unet=unet_size(tensors, "model.diffusion_model."),
        vae=vae_size(tensors, "first_stage_model."),
        num_frames=queries // IMAGE_TOKENS_PER_FRAME,
    )


def _refuse_strangers(file: WeightFile, tensors: Stored) -> None:
    """The encoder was frozen while the point decoder was fine-tuned: both files have it."""
    worst = 0.0
    for name in ("encoder.conv_in.weight", "encoder.conv_out.weight", "quant_conv.weight"):
        ours = tensors[f"first_stage_model.{name}"].read().float()
        theirs = tensors[f"{POINT_VAE}{name}"].read().float()
        worst = max(worst, float((ours - theirs).norm() / ours.norm().clamp(min=1e-12)))
    if worst > _SAME_ENCODER:
        raise WeightsError(
            f"The two checkpoints of {file.path} do not belong together: their encoders differ by "
            f"{worst:.0%}. Download model.ckpt and vae.ckpt of the same release."
        )
    if worst > 0:
        _log.warning("The encoders of the two checkpoints differ by %.2g of their size.", worst)


def _released_vae(size: VAESize) -> nn.Module:
    root = nn.Module()
    root.encoder = Encoder(size)
    root.decoder = Decoder(size)
    root.quant_conv = Pointwise2d(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS)
    root.post_quant_conv = Pointwise2d(LATENT_CHANNELS, LATENT_CHANNELS)
    root.decoder_adaptor = UncertaintyBranch(size)
    _add_parameters(root, _encoder_adaptor_shapes(size.channels))
    return root


def _encoder_adaptor_shapes(width: int) -> dict[str, Shape]:
    """Shapes of a part that is in the files, but that nothing ever runs."""
    shapes: dict[str, Shape] = {
        "conv_in.weight": (width, 3, 3, 3),
        "conv_in.bias": (width,),
        "conv_out.weight": (3, width, 3, 3),
        "conv_out.bias": (3,),
        "norm_out.weight": (width,),
        "norm_out.bias": (width,),
    }
    for number in "12":
        block = "down.0.block.0"
        shapes[f"{block}.norm{number}.weight"] = (width,)
        shapes[f"{block}.norm{number}.bias"] = (width,)
        shapes[f"{block}.conv{number}.weight"] = (width, width, 3, 3)
        shapes[f"{block}.conv{number}.bias"] = (width,)
    return {f"encoder_adaptor.{name}": shape for name, shape in shapes.items()}


def _add_parameters(root: nn.Module, shapes: Mapping[str, Shape]) -> None:
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        owner = root
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(leaf, nn.Parameter(torch.empty(shape, device="meta")))
