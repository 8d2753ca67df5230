"""The constant context of the released Geo4D: made once, by the checkpoint's own CLIP towers.

In the released setup the cross-attention sees one prompt and one grey picture for every video
(reference notes A.5). What CLIP ViT-H/14 and the Resampler make of them never changes, so a
converted file has the result instead of 1.1 billion parameters.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..geo4d.resampler import HEAD_DIM, Resampler
from .files import StoredTensor, WeightsError
from .keys import Shape, num_blocks

_log = logging.getLogger(__name__)

Stored = Mapping[str, StoredTensor]

PROMPT = "Output a video that assigns each 3D location in the world a consistent color."
PROMPT_TOKENS = (
    49406, 17255, 320, 1455, 682, 587, 4659, 2416, 274, 323, 4372, 530, 518, 1002, 320, 16439,
    3140, 269, 49407,
)  # fmt: skip
"""CLIP's token ids of `PROMPT`; zeros follow up to the length of the context."""

_TEXT_HEAD_DIM, _IMAGE_HEAD_DIM = 64, 80
"""Of ViT-H/14; they cannot be told from shapes."""
_TEXT_LAYERS, _IMAGE_LAYERS, _RESAMPLER_LAYERS = {1024: 24}, {1280: 32}, {1024: 4}
"""Of the released widths, so that a file without its last blocks is noticed."""

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_GREY = 0.5

TEXT_TOWER, IMAGE_TOWER = "cond_stage_model.model.", "embedder.model."
RESAMPLER = "image_proj_model."
"""What names in a released checkpoint start with."""


@torch.no_grad()
def fold_context(tensors: Stored) -> Float[Tensor, "1 token context_dim"]:
    """Run the towers and the Resampler of a released checkpoint on what they always see.

    Returns the tokens of the prompt, then those of the grey picture, in float32.

    Raises:
        WeightsError: a tower does not fit ViT-H/14 of open_clip.
        ImportError: open_clip_torch is not installed; the message has the pip line.
    """
    _log.info("Folding the context: running both CLIP towers once, on the CPU.")
    text = prompt_features(_tower(tensors, TEXT_TOWER, unused="visual"))
    tokens = grey_picture_features(_tower(tensors, IMAGE_TOWER, unused="transformer"))
    held = _under(tensors, RESAMPLER)
    with torch.device("meta"):
        resampler = build_resampler(held)
    resampler.load_state_dict({n: t.read().float() for n, t in held.items()}, assign=True)
    return torch.cat([text, resampler.eval()(tokens)], dim=1)


def prompt_features(clip: Any) -> Float[Tensor, "1 token text_dim"]:
    """Return what the last but one block makes of the prompt, after the final norm."""
    ids = torch.zeros(1, clip.positional_embedding.shape[0], dtype=torch.long)
    ids[0, : len(PROMPT_TOKENS)] = torch.tensor(PROMPT_TOKENS)
    hidden = clip.token_embedding(ids) + clip.positional_embedding
    length = ids.shape[1]
    causal = torch.full((length, length), -torch.inf).triu(1)
    return clip.ln_final(
        _through(clip.transformer, clip.transformer.resblocks[:-1], hidden, causal)
    )


def grey_picture_features(clip: Any) -> Float[Tensor, "1 token image_dim"]:
    """Return what all blocks make of the grey picture, class token first, without a final norm."""
    visual = clip.visual
    positions = visual.positional_embedding
    side = round((len(positions) - 1) ** 0.5) * visual.conv1.stride[0]
    grey = [(_GREY - mean) / std for mean, std in zip(_CLIP_MEAN, _CLIP_STD, strict=True)]
    picture = torch.tensor(grey).view(1, 3, 1, 1).expand(1, 3, side, side)
    patches = visual.conv1(picture).flatten(2).transpose(1, 2)
    hidden = torch.cat([visual.class_embedding.view(1, 1, -1), patches], dim=1) + positions
    return _through(visual.transformer, visual.transformer.resblocks, visual.ln_pre(hidden), None)


def build_resampler(held: Stored) -> Resampler:
    """Build the Resampler that tensors under its own names belong to, with random values."""
    queries, dim = held["latents"].shape[1:]
    return Resampler(
        dim=dim,
        depth=_RESAMPLER_LAYERS.get(dim) or num_blocks(held, "layers."),
        heads=held["layers.0.0.to_q.weight"].shape[0] // HEAD_DIM,
        num_queries=queries,
        embedding_dim=held["proj_in.weight"].shape[1],
        output_dim=held["proj_out.weight"].shape[0],
    )


def text_tower_shapes(tensors: Stored, prefix: str) -> dict[str, Shape]:
    """Names and shapes of open_clip's text tower, as far as sizes are read from `tensors`."""
    shapes = _text_ends(tensors, prefix)
    width = tensors[f"{prefix}token_embedding.weight"].shape[1]
    blocks = f"{prefix}transformer.resblocks."
    for layer in range(_TEXT_LAYERS.get(width) or num_blocks(tensors, blocks)):
        shapes |= _block_shapes(f"{blocks}{layer}.", width)
    return shapes


def image_tower_shapes(tensors: Stored, prefix: str) -> dict[str, Shape]:
    """Names and shapes of open_clip's image tower; the text tower's ends are in the file too."""
    shapes = _text_ends(tensors, prefix)
    width, _, patch, _ = tensors[f"{prefix}visual.conv1.weight"].shape
    joint = tensors[f"{prefix}text_projection"].shape[1]
    positions = tensors[f"{prefix}visual.positional_embedding"].shape[0]
    visual: dict[str, Shape] = {
        "class_embedding": (width,),
        "positional_embedding": (positions, width),
        "proj": (width, joint),
        "conv1.weight": (width, 3, patch, patch),
    }
    visual |= {f"{norm}.{x}": (width,) for norm in ("ln_pre", "ln_post") for x in _BOTH}
    shapes |= {f"{prefix}visual.{name}": shape for name, shape in visual.items()}
    blocks = f"{prefix}visual.transformer.resblocks."
    for layer in range(_IMAGE_LAYERS.get(width) or num_blocks(tensors, blocks)):
        shapes |= _block_shapes(f"{blocks}{layer}.", width)
    return shapes


_BOTH = ("weight", "bias")


def _text_ends(tensors: Stored, prefix: str) -> dict[str, Shape]:
    words, width = tensors[f"{prefix}token_embedding.weight"].shape
    return {
        f"{prefix}positional_embedding": (tensors[f"{prefix}positional_embedding"].shape[0], width),
        f"{prefix}text_projection": (width, tensors[f"{prefix}text_projection"].shape[1]),
        f"{prefix}logit_scale": (),
        f"{prefix}token_embedding.weight": (words, width),
        f"{prefix}ln_final.weight": (width,),
        f"{prefix}ln_final.bias": (width,),
    }


def _block_shapes(prefix: str, width: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
    }
    shapes |= {f"{norm}.{x}": (width,) for norm in ("ln_1", "ln_2") for x in _BOTH}
    return {prefix + name: shape for name, shape in shapes.items()}


def _through(transformer: nn.Module, blocks: Any, hidden: Tensor, mask: Tensor | None) -> Tensor:
    # Older versions of open_clip have the tokens first.
    batch_first = getattr(transformer, "batch_first", False)
    hidden = hidden if batch_first else hidden.transpose(0, 1)
    for block in blocks:
        hidden = block(hidden, attn_mask=mask)
    return hidden if batch_first else hidden.transpose(0, 1)


def _tower(tensors: Stored, prefix: str, unused: str) -> Any:
    """Build open_clip's model of the sizes in the file, with one of its towers taken off."""
    try:
        from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg  # pyright: ignore
    except ImportError as e:
        raise ImportError(
            "Folding the context of a released Geo4D checkpoint runs its CLIP towers once, which "
            "needs open_clip_torch: pip install open_clip_torch."
        ) from e
    held = _under(tensors, prefix)
    words, width = held["token_embedding.weight"].shape
    text = CLIPTextCfg(
        context_length=held["positional_embedding"].shape[0],
        vocab_size=words,
        width=width,
        heads=width // _TEXT_HEAD_DIM,
        layers=num_blocks(held, "transformer.resblocks.") or 1,  # no less can be built
    )
    vision = CLIPVisionCfg(layers=1, width=_IMAGE_HEAD_DIM, head_width=_IMAGE_HEAD_DIM)
    if unused != "visual":
        image_width, _, patch, _ = held["visual.conv1.weight"].shape
        side = round((held["visual.positional_embedding"].shape[0] - 1) ** 0.5)
        vision = CLIPVisionCfg(
            layers=num_blocks(held, "visual.transformer.resblocks."),
            width=image_width,
            head_width=_IMAGE_HEAD_DIM,
            patch_size=patch,
            image_size=side * patch,
        )
    with torch.device("meta"):
        clip = CLIP(held["text_projection"].shape[1], vision, text)
    delattr(clip, unused)
    values = {name: tensor.read().float() for name, tensor in held.items()}
    try:
        clip.load_state_dict(values, assign=True)
    except RuntimeError as e:
        raise WeightsError(f"The CLIP tower {prefix} does not fit open_clip's: {e}") from e
    return clip.eval()


def _under(tensors: Stored, prefix: str) -> dict[str, StoredTensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
