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

from collections.abc import Mapping
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

from ..weight_files import WeightsError, first_five
from .attention import use_wan_processor
from .motion_perception import (
    FeatureAdapter,
    Guidance,
    current_guidance,
    encode_image,
    guidance_scope,
    guide_block,
)
from .omnimae import OmniMAE
from .sizes import StragSize

REFERENCE_CHANNELS = 16

STRAG_KEY_RENAMES = (
    ("ref_conv", "ref_conv"),
    ("feature_adapter", "feature_adapter"),
    ("omnimae_extractor", "omnimae_extractor"),
    ("blocks.{n}.spatial_guidance_self", "blocks.{n}.spatial_guidance_self"),
    ("blocks.{n}.spatial_guidance_ffn", "blocks.{n}.spatial_guidance_ffn"),
)
"""Rows (released prefix, prefix in `StragTransformer`) to add to those of the plain Wan model."""

STRAG_DROPPED_KEYS = (
    "omnimae_extractor.trunk.mask_token",
    "omnimae_extractor.trunk.decoder",
    "omnimae_extractor.head",
)
"""Prefixes of released parameters that only OmniMAE's own training needs."""


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
        patch_size: tuple[int, ...] = (1, 2, 2),
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
            patch_size=patch_size,
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
        self.omnimae_extractor = OmniMAE(perception_dim, perception_depth, perception_heads)
        self.feature_adapter = FeatureAdapter(perception_dim, feature_dim)
        self.ref_conv = nn.Conv2d(
            REFERENCE_CHANNELS, dim, kernel_size=patch_size[1:], stride=patch_size[1:]
        )
        self.patch_embedding = _PatchEmbedding(in_channels, dim, patch_size, self.ref_conv)
        self.rope = _GuidedRotaryEmbedding(attention_head_dim, patch_size, rope_max_seq_len)
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
            (velocity,) = super().forward(
                _with_reference(hidden_states, reference_latent),
                timestep,
                encoder_hidden_states,
                encoder_hidden_states_image,
                return_dict=False,
                attention_kwargs=attention_kwargs,
            )
        velocity = velocity[:, :, 1:]
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    @classmethod
    def from_fun_control(
        cls, base: Mapping[str, Tensor], omnimae: Mapping[str, Tensor], size: StragSize
    ) -> "StragTransformer":
        """Start training from a 48-channel Fun-Control model, given by this class's names.

        The new input channels start at zero and the gates of guidance at almost zero, so that at
        first the model computes what its base does, while gradients reach every new parameter.
        `omnimae` is the published image encoder; tensors are used in place, not copied.

        Raises:
            WeightsError: parameters of the base are missing, unknown or of another size.
        """
        from accelerate import init_empty_weights

        with init_empty_weights(include_buffers=False):
            model = cls(**size.config())
        dtype = base["proj_out.weight"].dtype if "proj_out.weight" in base else None
        fresh = {f"omnimae_extractor.{name}": tensor for name, tensor in omnimae.items()}
        fresh |= _new_parameters(size, dtype)
        state = {**base, **fresh}
        if "patch_embedding.weight" in base:
            state["patch_embedding.weight"] = _widened(
                base["patch_embedding.weight"], size.wan.in_channels
            )
        _check_complete(state, model.state_dict(), overlap=base.keys() & fresh.keys())
        model.load_state_dict(state, strict=True, assign=True)
        return model


class _PatchEmbedding(nn.Conv3d):
    """Tokens of a video whose first latent frame is the reference."""

    def __init__(
        self, in_channels: int, dim: int, patch_size: tuple[int, ...], ref_conv: nn.Conv2d
    ) -> None:
        size = (patch_size[0], patch_size[1], patch_size[2])
        super().__init__(in_channels, dim, kernel_size=size, stride=size)
        # In a tuple: its parameters belong to the transformer, by their released name.
        self._ref_conv = (ref_conv,)

    def forward(self, input: Tensor) -> Tensor:
        reference = self._ref_conv[0](input[:, :REFERENCE_CHANNELS, 0])
        return torch.cat([reference.unsqueeze(2), super().forward(input[:, :, 1:])], dim=2)


class _GuidedRotaryEmbedding(WanRotaryPosEmbed):
    def forward(self, hidden_states: Tensor) -> GuidedRotation:
        return GuidedRotation(*super().forward(hidden_states), current_guidance())


def _run_in_scope(
    block: WanTransformerBlock,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    rotary_emb: GuidedRotation,
) -> Tensor:
    with guidance_scope(rotary_emb.guidance):
        return type(block).forward(
            block, hidden_states, encoder_hidden_states, temb, rotary_emb
        )


def _with_reference(hidden_states: Tensor, reference_latent: Tensor) -> Tensor:
    missing = hidden_states.shape[1] - reference_latent.shape[1]
    leading = F.pad(reference_latent.to(hidden_states), (0, 0, 0, 0, 0, missing))
    return torch.cat([leading.unsqueeze(2), hidden_states], dim=2)


def _new_parameters(size: StragSize, dtype: torch.dtype | None) -> dict[str, Tensor]:
    new = nn.Module()
    new.feature_adapter = FeatureAdapter(size.perception.dim, size.perception.feature_dim)
    new.blocks = nn.ModuleList()
    for _ in range(size.wan.num_layers):
        block = nn.ModuleDict({"attn1": nn.Identity(), "ffn": nn.Identity()})
        guide_block(block, dim=size.wan.dim, feature_dim=size.perception.feature_dim)
        new.blocks.append(block)
    return new.to(dtype).state_dict()


def _widened(weight: Tensor, in_channels: int) -> Tensor:
    return F.pad(weight, (0, 0, 0, 0, 0, 0, 0, in_channels - weight.shape[1]))


def _check_complete(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], overlap: set[str]
) -> None:
    problems = {
        "missing": wanted.keys() - state.keys(),
        "unknown": (state.keys() - wanted.keys()) | overlap,
        "of another size": {
            name
            for name in state.keys() & wanted.keys()
            if state[name].shape != wanted[name].shape
        },
    }
    told = [f"{len(n)} are {what}: {first_five(sorted(n))}" for what, n in problems.items() if n]
    if told:
        raise WeightsError(
            f"The parameters do not make up a 4D-STraG transformer; {'; '.join(told)}. Give a "
            "48-channel Fun-Control model with ref_conv, and an OmniMAE encoder, of this size."
        )
