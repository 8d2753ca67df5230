"""From a file's own names to those of the library classes, and back, kind by kind.

Lossless both ways, except for what no network here uses: the decoder, mask token and head of
OmniMAE, whose shapes are checked before they are dropped, and the text half of CLIP.
"""

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from .files import StoredTensor, WeightFile, WeightsError, first_five, open_weights
from .geo4d_pair import current_names, geo4d_pair
from .keys import (
    CLIP_VISION,
    MOTION_VAE,
    STRAG_TRANSFORMER,
    UMT5,
    WAN_TRANSFORMER,
    WAN_VAE,
    Shape,
    Table,
    renamed,
)
from .kinds import Recognized, WeightKind, expect

TABLES: dict[WeightKind, Table] = {
    WeightKind.STRAG: STRAG_TRANSFORMER,
    WeightKind.FUN_CONTROL: STRAG_TRANSFORMER,
    WeightKind.FUN_INP: WAN_TRANSFORMER,
    WeightKind.WAN: WAN_TRANSFORMER,
    WeightKind.MOTION_VAE: MOTION_VAE,
    WeightKind.MOTION_DECODER: MOTION_VAE,
    WeightKind.WAN_VAE: WAN_VAE,
    WeightKind.UMT5: UMT5,
    WeightKind.CLIP_VISION: CLIP_VISION,
}
"""Kinds whose two sets of names differ. The others have one."""

_MOTION_VAE_PARTS = {
    "vae": WeightKind.WAN_VAE,
    "encoder_prompt": WeightKind.ENCODER_ADAPTER,
    "decoder_prompt": WeightKind.DECODER_ADAPTER,
}
"""Folders of the released motion VAE, which are also the prefixes in a joined file."""

OMNIMAE_PREFIX = "omnimae_extractor."
"""Of the image features inside a STraG file."""


def open_model(path: str | os.PathLike[str]) -> WeightFile:
    """Read names and shapes of a weight file, or of the files of one released model as one file.

    These are the motion VAE's folder, and Geo4D's two checkpoints in a folder of their own.

    Raises:
        WeightsError: see `open_weights`; or a part of the motion VAE is missing or another kind.
    """
    path = Path(path)
    if (pair := geo4d_pair(path)) is not None:
        return pair
    if not (path / "encoder_prompt").is_dir():
        return open_weights(path)
    tensors: dict[str, StoredTensor] = {}
    for part, kind in _MOTION_VAE_PARTS.items():
        if not (path / part).is_dir():
            raise WeightsError(
                f"{path} has no folder {part}. The motion VAE is in three folders: "
                f"{', '.join(_MOTION_VAE_PARTS)}."
            )
        file = open_weights(path / part)
        found = expect(file, kind)
        stripped = found.stripped(file.tensors)
        if found.names == "diffusers":
            stripped = to_original(kind, stripped)
        tensors |= {f"{part}.{name}": tensor for name, tensor in stripped.items()}
    return WeightFile(path=path, tensors=tensors)


def to_library(found: Recognized, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Give the tensors of a file the names and shapes of the diffusers or transformers class.

    Names that no table knows stay as they are, so that a strict load can report them.

    Raises:
        WeightsError: two names become one, or something to be dropped has an unexpected shape.
    """
    tensors = found.stripped(tensors)
    if found.kind is WeightKind.STRAG:
        tensors = without_omnimae_training_parts(tensors, OMNIMAE_PREFIX)
    if found.kind is WeightKind.OMNIMAE:
        tensors = without_omnimae_training_parts(tensors, "")
    if found.kind is WeightKind.UMT5:
        tensors = _one_umt5_embedding(tensors)
    if found.kind is WeightKind.GEO4D_CHECKPOINT:
        tensors = current_names(tensors)
    if found.names == "diffusers":
        return _current_clip_names(tensors) if found.kind is WeightKind.CLIP_VISION else tensors
    if found.kind is WeightKind.CLIP_VISION:
        tensors = _clip_vision_part(tensors)
    table = TABLES.get(found.kind)
    return dict(tensors) if table is None else renamed(tensors, table)


def to_original(kind: WeightKind, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Give the tensors of a library class their original names. Inverse of `to_library`.

    Raises:
        WeightsError: CLIP, whose original file is fused with a text encoder that is not here.
    """
    if kind is WeightKind.CLIP_VISION:
        raise WeightsError(
            "The original CLIP file also holds a text encoder, which the transformers class does "
            "not have; it cannot be made from it."
        )
    if kind is WeightKind.UMT5:
        tensors = _one_umt5_embedding(tensors)
    table = TABLES.get(kind)
    return dict(tensors) if table is None else renamed(tensors, table, inverse=True)


def omnimae_training_parts() -> dict[str, Shape]:
    """Names and shapes of what ViT-B OmniMAE needs for its own pretraining only."""
    parts: dict[str, Shape] = {
        "trunk.mask_token": (1, 768),
        "trunk.decoder.pos_embed": (1, 1568, 768),
        "trunk.decoder.decoder_embed.weight": (384, 768),
        "trunk.decoder.decoder_embed.bias": (384,),
        "trunk.decoder.norm.weight": (384,),
        "trunk.decoder.norm.bias": (384,),
        "head.weight": (1536, 384),
        "head.bias": (1536,),
    }
    for i in range(4):
        block = f"trunk.decoder.decoder_blocks.{i}"
        parts |= {f"{block}.{norm}.{x}": (384,) for norm in ("norm1", "norm2") for x in _BOTH}
        parts |= {
            f"{block}.attn.qkv.weight": (1152, 384),
            f"{block}.attn.proj.weight": (384, 384),
            f"{block}.attn.proj.bias": (384,),
            f"{block}.mlp.fc1.weight": (1536, 384),
            f"{block}.mlp.fc1.bias": (1536,),
            f"{block}.mlp.fc2.weight": (384, 1536),
            f"{block}.mlp.fc2.bias": (384,),
        }
    return parts


_BOTH = ("weight", "bias")


def without_omnimae_training_parts(
    tensors: Mapping[str, StoredTensor], prefix: str
) -> dict[str, StoredTensor]:
    """Drop what only OmniMAE's own pretraining used. All of it is there, or none.

    Raises:
        WeightsError: a part is missing, or has another shape.
    """
    parts = {prefix + name: shape for name, shape in omnimae_training_parts().items()}
    present = parts.keys() & tensors.keys()
    if present and (lost := sorted(parts.keys() - present)):
        raise WeightsError(f"The OmniMAE decoder is incomplete; missing: {first_five(lost)}.")
    wrong = [
        f"{name} {tensors[name].shape} (expected {parts[name]})"
        for name in sorted(present)
        if tensors[name].shape != parts[name]
    ]
    if wrong:
        raise WeightsError(f"Not OmniMAE ViT-B; unexpected shapes: {first_five(wrong)}.")
    return {name: tensor for name, tensor in tensors.items() if name not in present}


def _clip_vision_part(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Drop the text half and the projection; split the fused query, key and value."""
    result: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("textual.") or name in ("log_scale", "visual.head"):
            continue
        if fused := re.fullmatch(r"(.*\.attn\.)to_qkv(\.\w+)", name):
            rows = tensor.shape[0] // 3
            for i, part in enumerate(("to_q", "to_k", "to_v")):
                result[f"{fused[1]}{part}{fused[2]}"] = StoredTensor(
                    shape=(rows, *tensor.shape[1:]),
                    dtype=tensor.dtype,
                    read=partial(_rows, tensor, i * rows, rows),
                )
        elif name in ("visual.cls_embedding", "visual.pos_embedding"):
            shape = tensor.shape[2:] if name == "visual.cls_embedding" else tensor.shape[1:]
            result[name] = StoredTensor(
                shape=shape, dtype=tensor.dtype, read=partial(_reshaped, tensor, shape)
            )
        else:
            result[name] = tensor
    return result


def _one_umt5_embedding(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Drop the second name that transformers gives the token embedding (2 GB at full size)."""
    result = dict(tensors)
    copy = result.pop("encoder.embed_tokens.weight", None)
    if copy is not None:
        result.setdefault("shared.weight", copy)
    return result


def _current_clip_names(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """`vision_model.` in front, as transformers 4 and published files have it."""
    prefix = "vision_model."
    return {prefix + name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _rows(tensor: StoredTensor, start: int, count: int) -> Tensor:
    return tensor.read()[start : start + count].contiguous()


def _reshaped(tensor: StoredTensor, shape: Shape) -> Tensor:
    return tensor.read().reshape(shape)
