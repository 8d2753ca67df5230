"""Which network the tensors of a file belong to: sizes are read from shapes.

Networks are built without values, for `weights.load_into` to fill.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .files import StoredTensor, WeightsError
from .keys import num_blocks
from .kinds import WeightKind

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

Stored = Mapping[str, StoredTensor]

_HEAD_DIM = 128
"""Of every Wan transformer; it cannot be told from shapes."""
_KNOWN_DEPTHS = {5120: 40, 1536: 30}
"""Blocks of the published widths, so that a file without its last blocks is noticed."""
_OMNIMAE_HEADS = {768: 12, 128: 4, 96: 3, 64: 2}
"""Of ViT-B and of small ones, by width."""
_WITHOUT_BUFFERS = (
    WeightKind.BYTE_TEXT,
    WeightKind.TINY_DEPTH,
    WeightKind.GEO4D,
    WeightKind.GEO4D_CHECKPOINT,
    WeightKind.GEO4D_VAE,
)
_UMT5_BUCKETS_DISTANCE = 128


def build_empty(kind: WeightKind, tensors: Stored) -> nn.Module | None:
    """Build the network that tensors (under library names) belong to, without values.

    None for kinds that have no network here, or one that is loaded elsewhere.

    Raises:
        WeightsError: a tensor from which a size is read is missing.
    """
    builder = _BUILDERS.get(kind)
    if builder is None:
        return None
    try:
        with _without_values(kind):
            module = builder(tensors)
    except KeyError as e:
        raise WeightsError(f"{kind.label} cannot be without the tensor {e}.") from e
    tie = getattr(module, "tie_weights", None)
    if callable(tie):
        tie()
    return module.eval()


def _without_values(kind: WeightKind) -> AbstractContextManager[Any]:
    if kind in _WITHOUT_BUFFERS:  # a ComfyUI host, which loads these too, has no accelerate
        return torch.device("meta")
    from accelerate import init_empty_weights

    return init_empty_weights()  # unlike torch's own way, it leaves computed buffers as they are


def omnimae_heads(dim: int) -> int:
    """Return the attention heads of an OmniMAE encoder of a width: shapes do not tell."""
    return _OMNIMAE_HEADS.get(dim, max(dim // 64, 1))


def network_names(module: nn.Module, kind: WeightKind, tensors: Stored) -> dict[str, StoredTensor]:
    """Adapt names to the installed library: transformers 5 dropped CLIP's `vision_model.`."""
    if kind is WeightKind.CLIP_VISION and not hasattr(module, "vision_model"):
        return {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def _wan_config(tensors: Stored) -> dict[str, Any]:
    """Read a Wan transformer's sizes from its shapes (diffusers names)."""
    dim, in_channels, *patch = tensors["patch_embedding.weight"].shape
    image = tensors.get("condition_embedder.image_embedder.norm1.weight")
    positions = tensors.get("condition_embedder.image_embedder.pos_embed")
    head = tensors["proj_out.weight"].shape[0]
    return {
        "patch_size": tuple(patch),
        "num_attention_heads": dim // _HEAD_DIM,
        "attention_head_dim": _HEAD_DIM,
        "in_channels": in_channels,
        "out_channels": head // torch.Size(patch).numel(),
        "text_dim": tensors["condition_embedder.text_embedder.linear_1.weight"].shape[1],
        "freq_dim": tensors["condition_embedder.time_embedder.linear_1.weight"].shape[1],
        "ffn_dim": tensors["blocks.0.ffn.net.0.proj.weight"].shape[0],
        "num_layers": _KNOWN_DEPTHS.get(dim) or num_blocks(tensors, "blocks."),
        "image_dim": image.shape[0] if image is not None else None,
        "added_kv_proj_dim": dim if image is not None else None,
        "pos_embed_seq_len": positions.shape[1] if positions is not None else None,
    }


def _wan_transformer(tensors: Stored) -> nn.Module:
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    return WanTransformer3DModel(**_wan_config(tensors))


def _fun_control(tensors: Stored) -> nn.Module:
    module = _wan_transformer(tensors)
    if "ref_conv.weight" in tensors:  # V1.1 has it; diffusers' class does not
        dim, channels, *patch = tensors["ref_conv.weight"].shape
        module.ref_conv = nn.Conv2d(
            channels, dim, (patch[0], patch[1]), stride=(patch[0], patch[1])
        )
    return module


def _strag(tensors: Stored) -> nn.Module:
    from ..strag.transformer import StragTransformer

    dim = tensors["omnimae_extractor.trunk.norm.weight"].shape[0]
    return StragTransformer(
        **_wan_config(tensors),
        perception_dim=dim,
        perception_depth=num_blocks(tensors, "omnimae_extractor.trunk.blocks."),
        perception_heads=omnimae_heads(dim),
        feature_dim=tensors["feature_adapter.0.weight"].shape[0],
    )


def _wan_vae(tensors: Stored, prefix: str = "") -> "AutoencoderKLWan":
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    channels = tensors[f"{prefix}post_quant_conv.weight"].shape[0]
    if channels != 16:
        raise WeightsError(f"This VAE has {channels} latent channels; the Wan2.1 VAE has 16.")
    return AutoencoderKLWan(base_dim=tensors[f"{prefix}decoder.norm_out.gamma"].shape[0])


def _motion_vae(tensors: Stored) -> nn.Module:
    from ..strag.motion_vae import DecoderAdapter, EncoderAdapter, MotionLatentSettings, MotionVAE

    return MotionVAE(
        _wan_vae(tensors, "vae."),
        EncoderAdapter(
            tensors["encoder_prompt.conv_in.weight"].shape[0],
            normalize="encoder_prompt.norm_out.weight" in tensors,
        ),
        DecoderAdapter(
            tensors["decoder_prompt.conv_in.weight"].shape[0],
            normalize="decoder_prompt.norm_out.weight" in tensors,
        ),
        MotionLatentSettings(clamp_decoded=True),
    )


def _encoder_adapter(tensors: Stored) -> nn.Module:
    from ..strag.motion_vae import EncoderAdapter

    return EncoderAdapter(
        tensors["conv_in.weight"].shape[0], normalize="norm_out.weight" in tensors
    )


def _decoder_adapter(tensors: Stored) -> nn.Module:
    from ..strag.motion_vae import DecoderAdapter

    return DecoderAdapter(
        tensors["conv_in.weight"].shape[0], normalize="norm_out.weight" in tensors
    )


def _omnimae(tensors: Stored) -> nn.Module:
    from ..strag.omnimae import OmniMAE

    dim = tensors["trunk.norm.weight"].shape[0]
    depth = num_blocks(tensors, "trunk.blocks.")
    return OmniMAE(dim=dim, depth=depth, num_heads=omnimae_heads(dim))


def _byte_text(tensors: Stored) -> nn.Module:
    from ..tiny.text_encoder import ByteTextModel, ByteTextSize

    width, channels = tensors["output.weight"].shape
    return ByteTextModel(
        ByteTextSize(
            width=channels,
            num_convolutions=num_blocks(tensors, "convolutions."),
            num_layers=num_blocks(tensors, "layers."),
            num_heads=tensors["layers.0.distance.weight"].shape[1],
            text_dim=width,
        )
    )


def _depth_network(tensors: Stored) -> nn.Module:
    from ..tiny.depth_network import DepthNetwork, DepthNetworkSize

    num_stages = num_blocks(tensors, "stages.")
    widths = [tensors[f"down.{i}.weight"].shape for i in range(num_stages)]
    return DepthNetwork(
        DepthNetworkSize(
            widths=(*(shape[1] for shape in widths), widths[-1][0]),
            num_blocks=tuple(num_blocks(tensors, f"stages.{i}.") for i in range(num_stages)),
            num_layers=num_blocks(tensors, "layers."),
        )
    )


def _umt5(tensors: Stored) -> nn.Module:
    from transformers import UMT5Config, UMT5EncoderModel

    vocabulary, dim = tensors["shared.weight"].shape
    attention = "encoder.block.0.layer.0.SelfAttention"
    buckets, heads = tensors[f"{attention}.relative_attention_bias.weight"].shape
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary,
            d_model=dim,
            d_kv=tensors[f"{attention}.q.weight"].shape[0] // heads,
            d_ff=tensors["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0],
            num_layers={4096: 24}.get(dim) or num_blocks(tensors, "encoder.block."),
            num_heads=heads,
            relative_attention_num_buckets=buckets,
            relative_attention_max_distance=_UMT5_BUCKETS_DISTANCE,
            feed_forward_proj="gated-gelu",
        )
    )


def _clip_vision(tensors: Stored) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    embeddings = "vision_model.embeddings"
    dim, _, patch, _ = tensors[f"{embeddings}.patch_embedding.weight"].shape
    positions = tensors[f"{embeddings}.position_embedding.weight"].shape[0]
    layers = "vision_model.encoder.layers."
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=dim,
            intermediate_size=tensors[f"{layers}0.mlp.fc1.weight"].shape[0],
            projection_dim=1024,
            num_hidden_layers={1280: 32}.get(dim) or num_blocks(tensors, layers),
            # ViT-H/14 has 16 heads of 80; smaller ones have heads of 64.
            num_attention_heads=16 if dim == 1280 else max(dim // 64, 1),
            image_size=int((positions - 1) ** 0.5) * patch,
            patch_size=patch,
            hidden_act="gelu",
        )
    )


def _geo4d(tensors: Stored) -> nn.Module:
    from ..geo4d.model import Geo4DNetworks
    from .geo4d_sizes import size_from_shapes

    return Geo4DNetworks(size_from_shapes(tensors))


def _geo4d_checkpoint(tensors: Stored) -> nn.Module:
    from .geo4d_checkpoint import released_checkpoint

    return released_checkpoint(tensors)


def _geo4d_vae(tensors: Stored) -> nn.Module:
    from .geo4d_checkpoint import released_vae

    return released_vae(tensors)


_BUILDERS: dict[WeightKind, Callable[[Stored], nn.Module]] = {
    WeightKind.STRAG: _strag,
    WeightKind.FUN_CONTROL: _fun_control,
    WeightKind.FUN_INP: _wan_transformer,
    WeightKind.WAN: _wan_transformer,
    WeightKind.WAN_VAE: _wan_vae,
    WeightKind.MOTION_VAE: _motion_vae,
    WeightKind.ENCODER_ADAPTER: _encoder_adapter,
    WeightKind.DECODER_ADAPTER: _decoder_adapter,
    WeightKind.OMNIMAE: _omnimae,
    WeightKind.BYTE_TEXT: _byte_text,
    WeightKind.TINY_DEPTH: _depth_network,
    WeightKind.UMT5: _umt5,
    WeightKind.CLIP_VISION: _clip_vision,
    WeightKind.GEO4D: _geo4d,
    WeightKind.GEO4D_CHECKPOINT: _geo4d_checkpoint,
    WeightKind.GEO4D_VAE: _geo4d_vae,
}
