"""How large the networks of a Geo4D file are: from its header, or from the shapes in it."""

import json
from collections.abc import Mapping
from math import gcd
from typing import Any

from ..geo4d.sizes import IMAGE_TOKENS_PER_FRAME, TEXT_TOKENS, Geo4DSize, UNetSize, VAESize
from .files import StoredTensor, WeightFile, WeightsError
from .keys import num_blocks

Stored = Mapping[str, StoredTensor]

SIZE_KEY = "geo4d_size"
"""In the header of our file: the sizes as JSON."""
NUM_STEPS_KEY = "more4d_num_steps"
"""In the header of our file: denoising steps that the weights are made for."""
CAMERA_WEIGHT_KEY = "more4d_camera_weight"
"""In the header of our file: how much the cameras of their ray maps count in alignment."""
MIRRORED_WINDOWS_KEY = "more4d_mirrored_windows"
"""In the header of our file: yes or no, whether they see each window a second time, mirrored."""


def stored_size(file: WeightFile) -> Geo4DSize | None:
    """Read the sizes in the header of our file; None where they were lost.

    Raises:
        WeightsError: they cannot be read.
    """
    if SIZE_KEY not in file.metadata:
        return None
    try:
        held = json.loads(file.metadata[SIZE_KEY])
        return Geo4DSize(
            unet=UNetSize(**_with_tuples(held["unet"])),
            vae=VAESize(**_with_tuples(held["vae"])),
            num_frames=int(held["num_frames"]),
        )
    except (ValueError, KeyError, TypeError) as e:
        raise WeightsError(
            f"{file.path} has sizes in its header that cannot be read: {e}. It may be damaged, or "
            "written by a newer version."
        ) from e


def size_from_shapes(tensors: Stored) -> Geo4DSize:
    """Read the sizes of our file; what shapes cannot tell is as released.

    Raises:
        KeyError: a tensor from which a size is read is missing.
    """
    frames = (tensors["context"].shape[1] - TEXT_TOKENS) // IMAGE_TOKENS_PER_FRAME
    return Geo4DSize(
        unet=unet_size(tensors, "unet."), vae=vae_size(tensors, "vae."), num_frames=frames
    )


def unet_size(tensors: Stored, prefix: str) -> UNetSize:
    """Read the sizes of a UNet whose names start with `prefix`."""
    channels = tensors[f"{prefix}input_blocks.0.0.weight"].shape[0]
    context_dim = tensors[f"{prefix}middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1]
    released = UNetSize(context_dim=context_dim)
    if channels == released.model_channels:  # so that missing blocks are noticed
        return released
    widths: list[list[int]] = [[]]
    with_attention = set()
    index = 1
    while f"{prefix}input_blocks.{index}.0.op.weight" in tensors or (
        f"{prefix}input_blocks.{index}.0.in_layers.2.weight" in tensors
    ):
        block = f"{prefix}input_blocks.{index}"
        if f"{block}.0.op.weight" in tensors:
            widths.append([])
        else:
            widths[-1].append(tensors[f"{block}.0.in_layers.2.weight"].shape[0])
        if f"{block}.1.norm.weight" in tensors:
            with_attention.add(len(widths) - 1)
        index += 1
    inner = tensors[f"{prefix}init_attn.0.proj_in.weight"].shape[0]
    return UNetSize(
        model_channels=channels,
        channel_mult=tuple(level[-1] // channels for level in widths if level),
        num_res_blocks=len(widths[0]),
        attention_levels=tuple(sorted(with_attention)),
        head_dim=inner // released.init_heads,
        context_dim=context_dim,
        norm_groups=gcd(released.norm_groups, channels),
    )


def vae_size(tensors: Stored, prefix: str) -> VAESize:
    """Read the sizes of a VAE whose names start with `prefix`."""
    channels = tensors[f"{prefix}encoder.conv_in.weight"].shape[0]
    released = VAESize()
    if channels == released.channels:
        return released
    levels = num_blocks(tensors, f"{prefix}encoder.down.")
    widths = [
        tensors[f"{prefix}encoder.down.{level}.block.0.conv1.weight"].shape[0]
        for level in range(levels)
    ]
    return VAESize(
        channels=channels,
        channel_mult=tuple(width // channels for width in widths),
        num_res_blocks=num_blocks(tensors, f"{prefix}encoder.down.0.block."),
        norm_groups=gcd(released.norm_groups, channels),
    )


def _with_tuples(held: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in held.items()}
