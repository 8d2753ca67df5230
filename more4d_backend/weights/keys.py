"""Names of weights: original layouts <-> those of the diffusers and transformers classes.

A table is a tuple of rows (original prefix, library prefix); `{n}` stands for an index. A row holds
for a name that equals its prefix or goes on with a dot. Tables are read in both directions, so what
one direction does the other undoes.
"""

import re
from collections.abc import Callable, Iterable, Mapping

from .files import StoredTensor, WeightsError

Table = tuple[tuple[str, str], ...]
Shape = tuple[int, ...]


def _attention(original: str, library: str) -> Table:
    names = [("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0")]
    names += [("norm_q", "norm_q"), ("norm_k", "norm_k")]
    names += [("k_img", "add_k_proj"), ("v_img", "add_v_proj"), ("norm_k_img", "norm_added_k")]
    return tuple((f"{original}.{a}", f"{library}.{b}") for a, b in names)


WAN_TRANSFORMER: Table = (
    ("patch_embedding", "patch_embedding"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
    ("img_emb.proj.0", "condition_embedder.image_embedder.norm1"),
    ("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
    ("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
    ("img_emb.proj.4", "condition_embedder.image_embedder.norm2"),
    *_attention("blocks.{n}.self_attn", "blocks.{n}.attn1"),
    *_attention("blocks.{n}.cross_attn", "blocks.{n}.attn2"),
    ("blocks.{n}.norm3", "blocks.{n}.norm2"),
    ("blocks.{n}.ffn.0", "blocks.{n}.ffn.net.0.proj"),
    ("blocks.{n}.ffn.2", "blocks.{n}.ffn.net.2"),
    ("blocks.{n}.modulation", "blocks.{n}.scale_shift_table"),
    ("head.modulation", "scale_shift_table"),
    ("head.head", "proj_out"),
)

STRAG_TRANSFORMER: Table = (
    *WAN_TRANSFORMER,
    ("ref_conv", "ref_conv"),
    ("feature_adapter", "feature_adapter"),
    ("omnimae_extractor", "omnimae_extractor"),
    ("blocks.{n}.spatial_guidance_self", "blocks.{n}.spatial_guidance_self"),
    ("blocks.{n}.spatial_guidance_ffn", "blocks.{n}.spatial_guidance_ffn"),
)
"""Motion perception keeps its released names."""

_RESIDUAL: Table = (
    (".residual.0", ".norm1"),
    (".residual.2", ".conv1"),
    (".residual.3", ".norm2"),
    (".residual.6", ".conv2"),
    (".shortcut", ".conv_shortcut"),
)


def _residual(original: str, library: str) -> Table:
    return tuple((original + a, library + b) for a, b in _RESIDUAL)


def _wan_vae() -> Table:
    rows: list[tuple[str, str]] = [
        ("conv1", "quant_conv"),
        ("conv2", "post_quant_conv"),
        *_residual("encoder.downsamples.{n}", "encoder.down_blocks.{n}"),
        ("encoder.downsamples.{n}.resample", "encoder.down_blocks.{n}.resample"),
        ("encoder.downsamples.{n}.time_conv", "encoder.down_blocks.{n}.time_conv"),
    ]
    for half in ("encoder", "decoder"):
        rows += [
            (f"{half}.conv1", f"{half}.conv_in"),
            (f"{half}.head.0", f"{half}.norm_out"),
            (f"{half}.head.2", f"{half}.conv_out"),
            (f"{half}.middle.1", f"{half}.mid_block.attentions.0"),
            *_residual(f"{half}.middle.0", f"{half}.mid_block.resnets.0"),
            *_residual(f"{half}.middle.2", f"{half}.mid_block.resnets.1"),
        ]
    # The original decoder counts three blocks and an upsampler as four; diffusers nests them.
    for stage in range(4):
        for i in range(3):
            library = f"decoder.up_blocks.{stage}.resnets.{i}"
            rows += _residual(f"decoder.upsamples.{4 * stage + i}", library)
        sampler = f"decoder.upsamples.{4 * stage + 3}"
        for part in ("resample", "time_conv"):
            rows.append((f"{sampler}.{part}", f"decoder.up_blocks.{stage}.upsamplers.0.{part}"))
    return tuple(rows)


WAN_VAE: Table = _wan_vae()

_ADAPTERS: Table = (("encoder_prompt", "encoder_prompt"), ("decoder_prompt", "decoder_prompt"))
MOTION_VAE: Table = tuple((f"vae.{a}", f"vae.{b}") for a, b in WAN_VAE) + _ADAPTERS

_UMT5_ATTENTION = "encoder.block.{n}.layer.0.SelfAttention"
_UMT5_FFN = "encoder.block.{n}.layer.1.DenseReluDense"
UMT5: Table = (
    ("token_embedding", "shared"),
    ("norm", "encoder.final_layer_norm"),
    ("blocks.{n}.norm1", "encoder.block.{n}.layer.0.layer_norm"),
    ("blocks.{n}.norm2", "encoder.block.{n}.layer.1.layer_norm"),
    *((f"blocks.{{n}}.attn.{x}", f"{_UMT5_ATTENTION}.{x}") for x in "qkvo"),
    ("blocks.{n}.pos_embedding.embedding", f"{_UMT5_ATTENTION}.relative_attention_bias"),
    ("blocks.{n}.ffn.gate.0", f"{_UMT5_FFN}.wi_0"),
    ("blocks.{n}.ffn.fc1", f"{_UMT5_FFN}.wi_1"),
    ("blocks.{n}.ffn.fc2", f"{_UMT5_FFN}.wo"),
)

_CLIP_LAYER = "vision_model.encoder.layers.{n}"
CLIP_VISION: Table = (
    ("visual.cls_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.patch_embedding", "vision_model.embeddings.patch_embedding"),
    ("visual.pos_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.pre_norm", "vision_model.pre_layrnorm"),
    ("visual.transformer.{n}.norm1", f"{_CLIP_LAYER}.layer_norm1"),
    ("visual.transformer.{n}.attn.to_q", f"{_CLIP_LAYER}.self_attn.q_proj"),
    ("visual.transformer.{n}.attn.to_k", f"{_CLIP_LAYER}.self_attn.k_proj"),
    ("visual.transformer.{n}.attn.to_v", f"{_CLIP_LAYER}.self_attn.v_proj"),
    ("visual.transformer.{n}.attn.proj", f"{_CLIP_LAYER}.self_attn.out_proj"),
    ("visual.transformer.{n}.norm2", f"{_CLIP_LAYER}.layer_norm2"),
    ("visual.transformer.{n}.mlp.0", f"{_CLIP_LAYER}.mlp.fc1"),
    ("visual.transformer.{n}.mlp.2", f"{_CLIP_LAYER}.mlp.fc2"),
    ("visual.post_norm", "vision_model.post_layernorm"),
)


def renamer(table: Table, *, inverse: bool = False) -> Callable[[str], str | None]:
    """Return a function from a name to its new name, or to None where no row holds."""
    rules = []
    for original, library in table:
        source, target = (library, original) if inverse else (original, library)
        pattern = re.escape(source).replace(r"\{n\}", r"(\d+)")
        rules.append((re.compile(rf"{pattern}(?=\.|$)"), target.replace("{n}", r"\1")))

    def rename(name: str) -> str | None:
        for pattern, target in rules:
            if match := pattern.match(name):
                return match.expand(target) + name[match.end() :]
        return None

    return rename


def renamed(
    tensors: Mapping[str, StoredTensor], table: Table, *, inverse: bool = False
) -> dict[str, StoredTensor]:
    """Give tensors their names in the other layout; names without a row stay as they are.

    Raises:
        WeightsError: two names become one.
    """
    rename = renamer(table, inverse=inverse)
    result: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        new = rename(name) or name
        if new in result:
            raise WeightsError(f"Two names become {new}; one of them is {name}.")
        result[new] = tensor
    return result


def num_blocks(names: Iterable[str], prefix: str) -> int:
    """Return the number of blocks under a prefix: one more than the largest index after it."""
    rest = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    indices = [int(i) for name in rest if (i := name.split(".")[0]).isdecimal()]
    return max(indices, default=-1) + 1
