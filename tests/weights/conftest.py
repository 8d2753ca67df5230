"""Toy networks of every kind, and their files."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from more4d_backend.strag.motion_vae import (
    DecoderAdapter,
    EncoderAdapter,
    MotionLatentSettings,
    MotionVAE,
)
from more4d_backend.strag.omnimae import OmniMAE
from more4d_backend.weights.conversion import to_original
from more4d_backend.weights.files import stored
from more4d_backend.weights.kinds import WeightKind

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

TINY_WAN = {
    "num_layers": 2,
    "num_attention_heads": 1,
    "ffn_dim": 16,
    "text_dim": 32,
    "freq_dim": 16,
}


def on_disk(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: t.detach().clone().contiguous() for name, t in tensors.items()}, path)
    else:
        torch.save({name: t.detach() for name, t in tensors.items()}, path)
    return path


def originals(kind: WeightKind, module: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.read() for n, t in to_original(kind, stored(module.state_dict())).items()}


def fun_inp(**changes) -> nn.Module:
    settings = {"in_channels": 36, "image_dim": 48, "added_kv_proj_dim": 128} | changes
    return diffusers.WanTransformer3DModel(**TINY_WAN | settings)


def fun_control() -> nn.Module:
    module = fun_inp(in_channels=48)
    module.ref_conv = nn.Conv2d(16, 128, 2, stride=2)
    return module


def strag(**changes) -> nn.Module:
    from more4d_backend.strag.transformer import StragTransformer

    settings = {"image_dim": None, "added_kv_proj_dim": None} | changes
    perception = {
        "perception_dim": 128,
        "perception_depth": 1,
        "perception_heads": 4,
        "feature_dim": 8,
    }
    return StragTransformer(**TINY_WAN | perception | settings)


def wan_vae(**changes) -> nn.Module:
    return diffusers.AutoencoderKLWan(base_dim=4, **changes)


def motion_vae() -> MotionVAE:
    settings = MotionLatentSettings(clamp_decoded=True)
    return MotionVAE(wan_vae(), EncoderAdapter(32), DecoderAdapter(32), settings)


def umt5() -> nn.Module:
    config = transformers.UMT5Config(
        vocab_size=40,
        d_model=24,
        d_kv=4,
        d_ff=20,
        num_layers=2,
        num_heads=3,
        feed_forward_proj="gated-gelu",
    )
    return transformers.UMT5EncoderModel(config).eval()


def clip() -> nn.Module:
    config = transformers.CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        hidden_act="gelu",
    )
    module = transformers.CLIPVisionModel(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2)
    return module


def original_clip(module: nn.Module) -> dict[str, torch.Tensor]:
    """The layout of Wan's CLIP file, from the facts about it and not through our table."""
    state = {n.removeprefix("vision_model."): t for n, t in module.state_dict().items()}
    result = {
        "log_scale": torch.tensor(1.0),
        "textual.token_embedding.weight": torch.zeros(3, 4),
        "visual.head": torch.zeros(128, 5),
        "visual.cls_embedding": state["embeddings.class_embedding"].view(1, 1, -1),
        "visual.patch_embedding.weight": state["embeddings.patch_embedding.weight"],
        "visual.pos_embedding": state["embeddings.position_embedding.weight"][None],
    }
    for x in ("weight", "bias"):
        result[f"visual.pre_norm.{x}"] = state[f"pre_layrnorm.{x}"]
        result[f"visual.post_norm.{x}"] = state[f"post_layernorm.{x}"]
        for i in range(2):
            mine, theirs = f"visual.transformer.{i}", f"encoder.layers.{i}"
            fused = [state[f"{theirs}.self_attn.{p}_proj.{x}"] for p in "qkv"]
            result[f"{mine}.attn.to_qkv.{x}"] = torch.cat(fused)
            result[f"{mine}.attn.proj.{x}"] = state[f"{theirs}.self_attn.out_proj.{x}"]
            result[f"{mine}.norm1.{x}"] = state[f"{theirs}.layer_norm1.{x}"]
            result[f"{mine}.norm2.{x}"] = state[f"{theirs}.layer_norm2.{x}"]
            result[f"{mine}.mlp.0.{x}"] = state[f"{theirs}.mlp.fc1.{x}"]
            result[f"{mine}.mlp.2.{x}"] = state[f"{theirs}.mlp.fc2.{x}"]
    return result


MADE = {
    WeightKind.FUN_INP: fun_inp,
    WeightKind.FUN_CONTROL: fun_control,
    WeightKind.STRAG: strag,
    WeightKind.WAN_VAE: wan_vae,
    WeightKind.MOTION_VAE: motion_vae,
    WeightKind.UMT5: umt5,
    WeightKind.ENCODER_ADAPTER: lambda: EncoderAdapter(32),
    WeightKind.DECODER_ADAPTER: lambda: DecoderAdapter(32),
    WeightKind.OMNIMAE: lambda: OmniMAE(dim=128, depth=1, num_heads=4),
}


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    """Makers of toy networks, their original names, and files of them."""
    return SimpleNamespace(
        make=lambda kind: MADE[kind](),
        on_disk=on_disk,
        originals=originals,
        original_clip=original_clip,
        fun_inp=fun_inp,
        fun_control=fun_control,
        strag=strag,
        wan_vae=wan_vae,
        motion_vae=motion_vae,
        umt5=umt5,
        clip=clip,
    )
