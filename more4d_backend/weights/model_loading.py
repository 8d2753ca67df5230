"""From a weight file to a loaded network: sizes are read from the shapes in the file.

Networks are built without values and filled tensor by tensor, so loading needs the memory of the
network once, on the device that it is loaded to.
"""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import compare, load_into, load_weights
from .files import StoredTensor, WeightsError
from .kinds import WeightKind

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from transformers import CLIPVisionModel, UMT5EncoderModel

    from ..strag.motion_vae import MotionLatentSettings, MotionVAE
    from ..strag.omnimae import OmniMAE
    from ..strag.transformer import StragTransformer

Stored = Mapping[str, StoredTensor]

_HEAD_DIM = 128
"""Of every Wan transformer; it cannot be told from shapes."""
_KNOWN_DEPTHS = {5120: 40, 1536: 30}
"""Blocks of the published widths, so that a file without its last blocks is noticed."""
_OMNIMAE_HEADS = {768: 12, 128: 4}
"""Of ViT-B and of the embedded size; it cannot be told from shapes."""
_UMT5_BUCKETS_DISTANCE = 128


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
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> "MotionVAE":
    """Load the motion VAE, from one file or the folder of the three released ones.

    Raises:
        WeightsError: not a whole motion VAE.
    """
    vae = _load(path, WeightKind.MOTION_VAE, dtype, device)
    vae.settings = settings
    return vae


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


def load_omnimae(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> "OmniMAE":
    """Load the image features from their published file, for training.

    Raises:
        WeightsError: not a whole OmniMAE ViT.
    """
    return _load(path, WeightKind.OMNIMAE, dtype, device)


def load_tensors(
    path: str | os.PathLike[str], *kinds: WeightKind, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Read all tensors of a file under library names, checked against the network of its kind.

    What `StragTransformer.from_fun_control` starts from. Needs host memory for the whole file.

    Raises:
        WeightsError: not a whole file of one of `kinds`.
    """
    tensors = load_weights(path, *kinds)
    module = build_empty(kinds[0], tensors)
    if module is not None:
        tensors = network_names(module, kinds[0], tensors)
        if differences := compare(module.state_dict(keep_vars=True), tensors):
            raise WeightsError(f"{path} does not fit {type(module).__name__}. {differences}")
    return {name: _cast(tensor.read(), dtype) for name, tensor in tensors.items()}


def build_empty(kind: WeightKind, tensors: Stored) -> nn.Module | None:
    """Build the network that tensors (under library names) belong to, without values.

    None for kinds that have no network here, or one that is loaded elsewhere.

    Raises:
        WeightsError: a tensor from which a size is read is missing.
    """
    from accelerate import init_empty_weights

    builder = _BUILDERS.get(kind)
    if builder is None:
        return None
    try:
        with init_empty_weights():
            module = builder(tensors)
    except KeyError as e:
        raise WeightsError(f"{kind.label} cannot be without the tensor {e}.") from e
    tie = getattr(module, "tie_weights", None)
    if callable(tie):
        tie()
    return module.eval()


def network_names(module: nn.Module, kind: WeightKind, tensors: Stored) -> dict[str, StoredTensor]:
    """Adapt names to the installed library: transformers 5 dropped CLIP's `vision_model.`."""
    if kind is WeightKind.CLIP_VISION and not hasattr(module, "vision_model"):
        return {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def _load(
    path: str | os.PathLike[str],
    kinds: WeightKind | tuple[WeightKind, ...],
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> Any:
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    tensors = load_weights(path, *kinds)
    module = build_empty(kinds[0], tensors)
    assert module is not None
    load_into(
        module,
        network_names(module, kinds[0], tensors),
        source=str(path),
        dtype=dtype,
        device=device,
        # diffusers' list for its class: modulation and norms are precise, and small.
        float32=_float32_parts(module) if dtype is not None else (),
    )
    return module


def _cast(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value.to(dtype) if dtype is not None and value.is_floating_point() else value


def _float32_parts(module: nn.Module) -> tuple[str, ...]:
    from diffusers import ModelMixin

    return tuple(getattr(module, "_keep_in_fp32_modules", None) or ()) * isinstance(
        module, ModelMixin
    )


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
        "num_layers": _KNOWN_DEPTHS.get(dim) or _count(tensors, "blocks."),
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
        perception_depth=_count(tensors, "omnimae_extractor.trunk.blocks."),
        perception_heads=_OMNIMAE_HEADS.get(dim, max(dim // 64, 1)),
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
        EncoderAdapter(tensors["encoder_prompt.conv_in.weight"].shape[0]),
        DecoderAdapter(tensors["decoder_prompt.conv_in.weight"].shape[0]),
        MotionLatentSettings(clamp_decoded=True),
    )


def _encoder_adapter(tensors: Stored) -> nn.Module:
    from ..strag.motion_vae import EncoderAdapter

    return EncoderAdapter(tensors["conv_in.weight"].shape[0])


def _decoder_adapter(tensors: Stored) -> nn.Module:
    from ..strag.motion_vae import DecoderAdapter

    return DecoderAdapter(tensors["conv_in.weight"].shape[0])


def _omnimae(tensors: Stored) -> nn.Module:
    from ..strag.omnimae import OmniMAE

    dim = tensors["trunk.norm.weight"].shape[0]
    heads = _OMNIMAE_HEADS.get(dim, max(dim // 64, 1))
    return OmniMAE(dim=dim, depth=_count(tensors, "trunk.blocks."), num_heads=heads)


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
            num_layers={4096: 24}.get(dim) or _count(tensors, "encoder.block."),
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
            num_hidden_layers={1280: 32}.get(dim) or _count(tensors, layers),
            # ViT-H/14 has 16 heads of 80; smaller ones have heads of 64.
            num_attention_heads=16 if dim == 1280 else max(dim // 64, 1),
            image_size=int((positions - 1) ** 0.5) * patch,
            patch_size=patch,
            hidden_act="gelu",
        )
    )


def _count(tensors: Stored, prefix: str) -> int:
    """Number of blocks: one more than the largest index after `prefix`."""
    rest = (name.removeprefix(prefix) for name in tensors if name.startswith(prefix))
    indices = [int(i) for name in rest if (i := name.split(".")[0]).isdecimal()]
    return max(indices, default=-1) + 1


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
    WeightKind.UMT5: _umt5,
    WeightKind.CLIP_VISION: _clip_vision,
}
