"""What a weight file is, told from the names and shapes in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from .files import StoredTensor, WeightFile, WeightsError, first_five

Names = Literal["original", "diffusers"]
"""Whose names a file uses: the authors', or those of the diffusers and transformers classes."""


class WeightKind(StrEnum):
    """Kinds of weight files that this project knows. The value is the word used on wires."""

    STRAG = "strag"
    FUN_CONTROL = "fun-control"
    FUN_INP = "fun-inp"
    WAN = "wan"
    VISM_LORA = "vism-lora"
    OTHER_LORA = "other-lora"
    MOTION_VAE = "motion-vae"
    MOTION_DECODER = "motion-decoder"
    ENCODER_ADAPTER = "encoder-adapter"
    DECODER_ADAPTER = "decoder-adapter"
    WAN_VAE = "wan-vae"
    UMT5 = "umt5"
    CLIP_VISION = "clip-vision"
    OMNIMAE = "omnimae"
    BYTE_TEXT = "byte-text"
    TINY_DEPTH = "tiny-depth"
    GEO4D = "geo4d"
    GEO4D_CHECKPOINT = "geo4d-checkpoint"
    GEO4D_VAE = "geo4d-vae"
    SCENE = "scene"
    UNKNOWN = "unknown"

    @property
    def label(self) -> str:
        """A name for sentences."""
        return _LABELS[self]


_LABELS = {
    WeightKind.STRAG: "the 4D-STraG transformer",
    WeightKind.FUN_CONTROL: "a Wan2.1 Fun-Control transformer (48 input channels)",
    WeightKind.FUN_INP: "a Wan2.1 Fun-InP or image-to-video transformer (36 input channels)",
    WeightKind.WAN: "another Wan transformer",
    WeightKind.VISM_LORA: "the 4D-ViSM LoRA (or another Wan2.1-Fun LoRA; their names are alike)",
    WeightKind.OTHER_LORA: "a LoRA for another model",
    WeightKind.MOTION_VAE: "the motion VAE with both adapters",
    WeightKind.MOTION_DECODER: "the motion VAE without its encoder (a Wan VAE has that)",
    WeightKind.ENCODER_ADAPTER: "the motion VAE's encoder adapter alone (encoder_prompt)",
    WeightKind.DECODER_ADAPTER: "the motion VAE's decoder adapter alone (decoder_prompt)",
    WeightKind.WAN_VAE: "a Wan2.1 VAE (plain, or the motion VAE's without its adapters)",
    WeightKind.UMT5: "the UMT5 text encoder",
    WeightKind.CLIP_VISION: "the CLIP ViT-H/14 image encoder",
    WeightKind.OMNIMAE: "the OmniMAE image features",
    WeightKind.BYTE_TEXT: "the embedded text encoder, which reads bytes",
    WeightKind.TINY_DEPTH: "the embedded depth network",
    WeightKind.GEO4D: "the Geo4D networks in one file (converted or trained)",
    WeightKind.GEO4D_CHECKPOINT: "a released Geo4D checkpoint (model.ckpt)",
    WeightKind.GEO4D_VAE: "a released Geo4D VAE (vae.ckpt)",
    WeightKind.SCENE: "a scene, not a model",
    WeightKind.UNKNOWN: "unknown",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognized:
    """What a file was taken for, and why its names can be read."""

    kind: WeightKind
    """UNKNOWN where no rule held."""

    names: Names
    """Whose names the file uses."""

    prefix: str = ""
    """What every name in the file starts with, on top of those names."""

    def stripped(self, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
        """Return the tensors without the prefix."""
        return {name.removeprefix(self.prefix): tensor for name, tensor in tensors.items()}


_MOST_LABELS = 4
"""Errors that would name more kinds than this name none."""

_PREFIXES = (
    "",
    "module.",
    "_forward_module.",
    "_orig_mod.",
    "model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
)

_ADAPTERS = ("encoder_prompt.conv_in.weight", "decoder_prompt.conv_in.weight")

_RULES: tuple[tuple[WeightKind, Names, tuple[str, ...]], ...] = (
    (
        WeightKind.GEO4D,
        "original",
        (
            "unet.input_blocks.0.0.weight",
            "vae.encoder.conv_in.weight",
            "vae.point_decoder.decoder_adaptor.conv_out.weight",
        ),
    ),
    (
        WeightKind.GEO4D_CHECKPOINT,
        "original",
        (
            "model.diffusion_model.input_blocks.0.0.weight",
            "first_stage_model.encoder.conv_in.weight",
        ),
    ),
    (
        WeightKind.GEO4D_VAE,
        "original",
        ("encoder.conv_in.weight", "decoder_adaptor.conv_out.weight"),
    ),
    (
        WeightKind.MOTION_VAE,
        "original",
        ("vae.decoder.head.0.gamma", "vae.encoder.head.0.gamma", *_ADAPTERS),
    ),
    (
        WeightKind.MOTION_VAE,
        "diffusers",
        ("vae.decoder.norm_out.gamma", "vae.encoder.norm_out.gamma", *_ADAPTERS),
    ),
    (WeightKind.MOTION_DECODER, "original", ("vae.decoder.head.0.gamma", *_ADAPTERS)),
    (WeightKind.MOTION_DECODER, "diffusers", ("vae.decoder.norm_out.gamma", *_ADAPTERS)),
    (
        WeightKind.ENCODER_ADAPTER,
        "original",
        ("conv_in.weight", "down.0.block.0.conv1.weight", "conv_out.weight"),
    ),
    (
        WeightKind.DECODER_ADAPTER,
        "original",
        ("conv_in.weight", "up.0.block.0.conv1.weight", "conv_out.weight"),
    ),
    (WeightKind.WAN_VAE, "original", ("decoder.head.0.gamma", "encoder.head.0.gamma")),
    (WeightKind.WAN_VAE, "diffusers", ("decoder.norm_out.gamma", "encoder.norm_out.gamma")),
    (
        WeightKind.UMT5,
        "original",
        ("token_embedding.weight", "blocks.0.pos_embedding.embedding.weight"),
    ),
    (
        WeightKind.UMT5,
        "diffusers",
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "encoder.final_layer_norm.weight"),
    ),
    (
        WeightKind.CLIP_VISION,
        "original",
        ("visual.cls_embedding", "visual.transformer.0.attn.to_qkv.weight"),
    ),
    (WeightKind.CLIP_VISION, "diffusers", ("vision_model.embeddings.class_embedding",)),
    (WeightKind.CLIP_VISION, "diffusers", ("embeddings.class_embedding", "pre_layrnorm.weight")),
    (
        WeightKind.OMNIMAE,
        "original",
        ("trunk.patch_embed.proj.1.weight", "trunk.blocks.0.attn.qkv.weight"),
    ),
    (
        WeightKind.BYTE_TEXT,
        "original",
        ("embedding.weight", "layers.0.distance.weight", "output.weight"),
    ),
    (
        WeightKind.TINY_DEPTH,
        "original",
        ("stem.weight", "stages.0.0.spatial.weight", "focal.0.weight"),
    ),
)

_LORA_PARTS: tuple[str, ...] = (
    "lora_down.weight",
    "lora_A.weight",
    "lora_A.default.weight",
    "lora.down.weight",
)


def recognize(file: WeightFile) -> Recognized:
    """Tell what a weight file is. Never raises: what it cannot tell is UNKNOWN."""
    if file.metadata.get("format", "").startswith("more4d-scene"):
        return Recognized(kind=WeightKind.SCENE, names="original")
    if any(name.endswith(_LORA_PARTS) for name in file.tensors):
        # The reference's trainer names the root module "": hence two underscores.
        own = "lora_unet__blocks_0_self_attn_q.lora_down.weight" in file.tensors
        kind = WeightKind.VISM_LORA if own else WeightKind.OTHER_LORA
        return Recognized(kind=kind, names="original")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in file.tensors):
            found = Recognized(kind=WeightKind.UNKNOWN, names="original", prefix=prefix)
            tensors = found.stripped(file.tensors)
            for kind, names, required in _RULES:
                if all(name in tensors for name in required):
                    return Recognized(kind=kind, names=names, prefix=prefix)
            if (transformer := _transformer(tensors)) is not None:
                return Recognized(kind=transformer[0], names=transformer[1], prefix=prefix)
    return Recognized(kind=WeightKind.UNKNOWN, names="original")


def expect(file: WeightFile, *kinds: WeightKind) -> Recognized:
    """Return what the file is, which must be one of `kinds`.

    Raises:
        WeightsError: it is something else; the message names both.
    """
    found = recognize(file)
    if found.kind in kinds:
        return found
    needed = " or ".join(kind.label for kind in kinds[:_MOST_LABELS])
    if len(kinds) > _MOST_LABELS:
        needed = "weights of this project, whole and of a known kind"
    if found.kind is WeightKind.UNKNOWN:
        raise WeightsError(
            f"{file.path} is not known: its {len(file.tensors)} tensors start with "
            f"{first_five(file.tensors)}. Needed here: {needed}."
        )
    raise WeightsError(f"{file.path} is {found.kind.label}. Needed here: {needed}.")


def _transformer(tensors: Mapping[str, StoredTensor]) -> tuple[WeightKind, Names] | None:
    names: Names
    if "blocks.0.self_attn.q.weight" in tensors:
        names = "original"
    elif "blocks.0.attn1.to_q.weight" in tensors:
        names = "diffusers"
    else:
        return None
    embedding = tensors.get("patch_embedding.weight")
    if embedding is None or len(embedding.shape) != 5:
        return None
    channels = embedding.shape[1]
    if "blocks.0.spatial_guidance_self.gate" in tensors or channels == 64:
        return WeightKind.STRAG, names
    by_channels = {48: WeightKind.FUN_CONTROL, 36: WeightKind.FUN_INP}
    return by_channels.get(channels, WeightKind.WAN), names
