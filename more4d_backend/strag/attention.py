"""Attention of Wan blocks in diffusers: any text length, and a faster rotary embedding.

diffusers' own processor takes the text to be exactly 512 tokens long and everything before it to be
image tokens. Here the number of image tokens is what is fixed. Numerically the two agree.

Axes: B batch, S token, H head, D channel of a head, P pair of channels that rotates together.
"""

from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from jaxtyping import Float
from torch import Tensor

from .sizes import IMAGE_TOKENS

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformer3DModel

Rotation = tuple[Any, ...]
"""Cosines and sines, each (1, S, 1, D) with every number twice, as diffusers' Wan makes them; what
follows them is not for attention."""


class WanProcessor(WanAttnProcessor):
    """Self- and cross-attention of a Wan block."""

    def __call__(
        self,
        attn: "WanAttention",
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotation | None = None,
    ) -> Tensor:
        """Attend to the tokens themselves, or to image tokens and text tokens apart."""
        image = None
        if encoder_hidden_states is not None and attn.add_k_proj is not None:
            image = encoder_hidden_states[:, :IMAGE_TOKENS]
            encoder_hidden_states = encoder_hidden_states[:, IMAGE_TOKENS:]
        query, key, value = _project(attn, hidden_states, encoder_hidden_states)
        query = attn.norm_q(query).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(key).unflatten(2, (attn.heads, -1))
        value = value.unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            query = rotate(query, rotary_emb[0], rotary_emb[1])
            key = rotate(key, rotary_emb[0], rotary_emb[1])
        output = self._attend(query, key, value, attention_mask)
        if image is not None:
            key, value = _project_image(attn, image)
            key = attn.norm_added_k(key).unflatten(2, (attn.heads, -1))
            output = output + self._attend(query, key, value.unflatten(2, (attn.heads, -1)))
        return attn.to_out[1](attn.to_out[0](output))

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        backend: Any = self._attention_backend
        attended = dispatch_attention_fn(query, key, value, attn_mask=mask, backend=backend)
        return attended.flatten(2, 3).type_as(query)


def use_wan_processor(transformer: "WanTransformer3DModel") -> None:
    """Give every attention of a Wan transformer this module's processor."""
    processor: Any = WanProcessor()
    transformer.set_attn_processor(processor)


def rotate(
    x: Float[Tensor, "B S H D"], cos: Float[Tensor, "1 S 1 D"], sin: Float[Tensor, "1 S 1 D"]
) -> Float[Tensor, "B S H D"]:
    """Turn neighbouring channels as pairs by rotary position embedding, in at least float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    wide, cos, sin = x.to(dtype), cos.to(dtype), sin.to(dtype)
    if torch.compiler.is_compiling() or x.device.type == "mps":
        return _rotate_real(wide, cos, sin).type_as(x)
    return _rotate_complex(wide, cos, sin).type_as(x)


def _rotate_complex(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # Without a compiler this is three passes, where the same in real numbers takes eight.
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.complex(cos[..., 0::2], sin[..., 1::2])).flatten(-2)


def _rotate_real(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # Inductor and Apple's GPUs do not know complex numbers. Nothing is stacked, so that inductor
    # makes one kernel of this and of the norm before it.
    other = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    is_second = torch.arange(x.shape[-1], device=x.device) % 2 == 1
    return x * cos + other * torch.where(is_second, sin, -sin)


def _project(
    attn: "WanAttention", hidden_states: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    if not attn.fused_projections:
        source = hidden_states if context is None else context
        return attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
    if context is None:
        query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        return query, key, value
    key, value = attn.to_kv(context).chunk(2, dim=-1)
    return attn.to_q(hidden_states), key, value


def _project_image(attn: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    if attn.fused_projections:
        key, value = attn.to_added_kv(image).chunk(2, dim=-1)
        return key, value
    return attn.add_k_proj(image), attn.add_v_proj(image)
