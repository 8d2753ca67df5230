"""The 4D-STraG transformer: diffusers' Wan with a reference frame and motion perception.

Nothing of diffusers is copied, and blocks stay `WanTransformerBlock`, so that step caching,
offloading, regional compilation, LoRA and fp8 storage find what they know:

- The reference latent leads the video as one more latent frame. `patch_embedding` applies
  `ref_conv` to it, positions fit by themselves, and it is cut off the output.
- `attn1` and `ffn` of every block are guided at their inputs (`motion_perception.guide_block`). A
  call's guidance travels with the rotary embedding, which every block gets as an argument, and
  lives in a scope only while that block runs. So two calls never mix, a block that gradient
  checkpointing runs again sees the same guidance, and a compiled block has no graph break.

New parameters have the released names: `ref_conv`, `feature_adapter`, `omnimae_extractor` and
`blocks.{n}.spatial_guidance_{self,ffn}`.

Axes: latents (batch, channel, frame, height, width).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MethodType
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_wan import (
    WanRotaryPosEmbed,
    WanTransformer3DModel,
    WanTransformerBlock,
)
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..weights import load_into
from ..weights.files import StoredTensor, WeightsError, stored
from .attention import use_wan_processor
from .motion_perception import (
    FeatureAdapter,
    Guidance,
    encode_image,
    guidance_scope,
    guide_block,
    take_guidance,
)
from .omnimae import OmniMAE
from .sizes import FUN_CONTROL_CHANNELS, StragSize

REFERENCE_CHANNELS = 16


class GuidedRotation(NamedTuple):
    """What every block gets as its rotary embedding: the rotation, and the call's guidance."""

    cos: Tensor
    sin: Tensor
    guidance: Guidance | None


class StragTransformer(WanTransformer3DModel):
    """Velocity of the motion latent, from the noisy latent and its conditions."""

    _skip_layerwise_casting_patterns = [  # noqa: RUF012
        "patch_embedding",
        "condition_embedder",
        "norm",
        "ref_conv",
        "feature_adapter",
        "omnimae_extractor",
    ]
    _keep_in_fp32_modules = [  # noqa: RUF012
        "rope",
        "time_embedder",
        "scale_shift_table",
        "norm1",
        "norm2",
        "norm3",
        "feature_adapter",
        "omnimae_extractor",
    ]
    # Splitting the sequence over devices would cut through guided frames.
    _cp_plan = None

    # One parameter per entry of config.json, as diffusers needs it; `StragSize` is for people.
    @register_to_config
    def __init__(
        self,
        patch_size: Sequence[int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 64,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = 1280,
        added_kv_proj_dim: int | None = 5120,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        perception_dim: int = 768,
        perception_depth: int = 12,
        perception_heads: int = 12,
        feature_dim: int = 768,
    ) -> None:
        super().__init__(
            patch_size=tuple(patch_size),
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            cross_attn_norm=cross_attn_norm,
            qk_norm=qk_norm,
            eps=eps,
            image_dim=image_dim,
            added_kv_proj_dim=added_kv_proj_dim,
            rope_max_seq_len=rope_max_seq_len,
            pos_embed_seq_len=pos_embed_seq_len,
        )
        dim = num_attention_heads * attention_head_dim
        frames, height, width = patch_size
        self.omnimae_extractor = OmniMAE(perception_dim, perception_depth, perception_heads)
        self.feature_adapter = FeatureAdapter(perception_dim, feature_dim)
        patch_hw, patch = (height, width), (frames, height, width)
        self.ref_conv = nn.Conv2d(REFERENCE_CHANNELS, dim, kernel_size=patch_hw, stride=patch_hw)
        self.patch_embedding = _PatchEmbedding(in_channels, dim, patch, self.ref_conv)
        self.rope = _GuidedRotaryEmbedding(attention_head_dim, patch, rope_max_seq_len)
        for block in self.blocks:
            guide_block(block, dim=dim, feature_dim=feature_dim)
            block.forward = MethodType(_run_in_scope, block)
        use_wan_processor(self)

    def encode_image(
        self, image: Float[Tensor, "batch 3 height width"], latent_size_hw: tuple[int, int]
    ) -> Float[Tensor, "batch token feature"]:
        """Return the guidance features of an image in [0, 1]; constant over steps and frames.

        Put them into a `Guidance`, together with the frame that the weights leave unguided.
        """
        _, patch_height, patch_width = self.config["patch_size"]
        grid_hw = (latent_size_hw[0] // patch_height, latent_size_hw[1] // patch_width)
        return encode_image(self.omnimae_extractor, self.feature_adapter, image, grid_hw)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states: Float[Tensor, "batch channel frame height width"],
        timestep: Tensor,
        encoder_hidden_states: Float[Tensor, "batch text text_dim"],
        encoder_hidden_states_image: Float[Tensor, "batch image image_dim"] | None = None,
        *,
        reference_latent: Float[Tensor, "batch 16 height width"],
        guidance: Guidance | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict noise minus latent.

        Args:
            hidden_states: noisy motion latent and conditioning latents, stacked by channel.
            timestep: 1000 times the noise level, one per batch entry.
            encoder_hidden_states: text tokens, zero-padded to the length they were trained at.
            encoder_hidden_states_image: 257 CLIP tokens, for sizes with image tokens.
            reference_latent: leads the video; zeros where the weights were trained so.
            guidance: None runs without motion perception.
            return_dict: False gives a tuple of the sample alone.
            attention_kwargs: as in diffusers (LoRA scale).

        Raises:
            ValueError: image tokens are missing, or there is no place for them.
        """
        if (encoder_hidden_states_image is None) != (self.config["image_dim"] is None):
            wants = "none" if self.config["image_dim"] is None else "257 image tokens"
            got = "none" if encoder_hidden_states_image is None else "image tokens"
            raise ValueError(
                f"This transformer takes {wants} in encoder_hidden_states_image and got {got}. "
                "To drop the image, pass zeros."
            )
        with guidance_scope(None if guidance is None else guidance.to(hidden_states)):
            output: Any = super().forward(
                _with_reference(hidden_states, reference_latent),
                timestep,  # pyright: ignore[reportArgumentType]
                encoder_hidden_states,
                encoder_hidden_states_image,
                return_dict=False,
                attention_kwargs=attention_kwargs,
            )
        velocity: Tensor = output[0][:, :, 1:]
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    @classmethod
    def from_fun_control(
        cls,
        base: Mapping[str, StoredTensor],
        omnimae: Mapping[str, StoredTensor],
        size: StragSize,
        *,
        dtype: torch.dtype | None = None,
    ) -> "StragTransformer":
        """Start training from a 48-channel Fun-Control model and the published image encoder.

        Both by the names of the library classes (`weights.load_weights`). The new input channels
        start at zero and the gates of guidance at almost zero, so that at first the model computes
        what its base does, while gradients reach every new parameter. `dtype` None keeps that of
        the files.

        Raises:
            WeightsError: parameters are missing, unknown or of another size.
        """
        from accelerate import init_empty_weights

        with init_empty_weights(include_buffers=False):
            model = cls(**size.config())
        given = dict(base)
        if (patches := base.get("patch_embedding.weight")) is not None:
            given["patch_embedding.weight"] = _with_zero_channels(patches, size.wan.in_channels)
        given |= {f"omnimae_extractor.{name}": tensor for name, tensor in omnimae.items()}
        given |= stored(_new_parameters(size))
        load_into(model, given, source="A Fun-Control model with OmniMAE", dtype=dtype)
        return model


class _PatchEmbedding(nn.Conv3d):
    """Tokens of a video whose first latent frame is the reference."""

    def __init__(
        self, in_channels: int, dim: int, patch: tuple[int, int, int], ref_conv: nn.Conv2d
    ) -> None:
        super().__init__(in_channels, dim, kernel_size=patch, stride=patch)
        # In a tuple: its parameters belong to the transformer, by their released name.
        self._ref_conv = (ref_conv,)

    def forward(self, input: Tensor) -> Tensor:
        reference = self._ref_conv[0](input[:, :REFERENCE_CHANNELS, 0])
        return torch.cat([reference.unsqueeze(2), super().forward(input[:, :, 1:])], dim=2)


class _GuidedRotaryEmbedding(WanRotaryPosEmbed):
    def _apply(self, fn: Any, recurse: bool = True) -> "_GuidedRotaryEmbedding":
        # A model that is cast to 16 bits moves, but its angles stay exact.
        tables = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, table in tables.items():
            moved = self.get_buffer(name)
            if moved.dtype != table.dtype:
                setattr(self, name, table.to(moved.device))
        return self

    def forward(self, hidden_states: Tensor) -> Any:
        cos, sin = super().forward(hidden_states)
        return GuidedRotation(cos, sin, take_guidance())


_block_forward: Any = WanTransformerBlock.forward


def _run_in_scope(
    block: WanTransformerBlock,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    rotary_emb: GuidedRotation,
) -> Tensor:
    with guidance_scope(rotary_emb.guidance):
        return _block_forward(block, hidden_states, encoder_hidden_states, temb, rotary_emb)


def _with_reference(hidden_states: Tensor, reference_latent: Tensor) -> Tensor:
    missing = hidden_states.shape[1] - reference_latent.shape[1]
    leading = F.pad(reference_latent.to(hidden_states), (0, 0, 0, 0, 0, missing))
    return torch.cat([leading.unsqueeze(2), hidden_states], dim=2)


def _new_parameters(size: StragSize) -> dict[str, Tensor]:
    new = nn.Module()
    new.feature_adapter = FeatureAdapter(size.perception.dim, size.perception.feature_dim)
    new.blocks = nn.ModuleList()
    for _ in range(size.wan.num_layers):
        block = nn.ModuleDict({"attn1": nn.Identity(), "ffn": nn.Identity()})
        guide_block(block, dim=size.wan.dim, feature_dim=size.perception.feature_dim)
        new.blocks.append(block)
    return new.state_dict()


def _with_zero_channels(weight: StoredTensor, in_channels: int) -> StoredTensor:
    extra = in_channels - FUN_CONTROL_CHANNELS
    if weight.shape[1] != FUN_CONTROL_CHANNELS:
        raise WeightsError(
            f"The base model takes {weight.shape[1]} input channels; a Fun-Control model takes "
            f"{FUN_CONTROL_CHANNELS}. Give Wan2.1-Fun-Control weights."
        )
    # The depth latent comes last, so the channels that the base knows stay where they are.
    widened = (weight.shape[0], in_channels, *weight.shape[2:])
    return replace(weight, shape=widened, read=lambda: F.pad(weight.read(), (0,) * 7 + (extra,)))
