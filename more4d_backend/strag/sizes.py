"""Sizes of the networks: what the released weights have, and the embedded tiny ones.

A size is data only; `StragTransformer(**size.config())` and diffusers'
`WanTransformer3DModel(**size.config())` make the networks.
"""

from dataclasses import dataclass, replace
from typing import Any

STRAG_CHANNELS = 64
"""Noisy motion latent, control latent, zeros, depth latent: 16 each."""

FUN_CONTROL_CHANNELS = 48
"""The base model of 4D-STraG lacks the depth latent."""

FUN_INP_CHANNELS = 36
"""Noisy latent 16, hole mask 4, masked video latent 16."""

IMAGE_DIM = 1280
"""Width of CLIP's image tokens."""

IMAGE_TOKENS = 257
"""CLIP ViT-H/14 at 224x224: one class token and 16x16 patches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WanSize:
    """A Wan transformer."""

    in_channels: int
    """Latent channels of the input, conditioning included."""

    num_layers: int
    """Transformer blocks."""

    num_heads: int
    """Attention heads; the width of the network is `num_heads * head_dim`."""

    ffn_dim: int
    """Width inside the feed-forward part."""

    head_dim: int = 128
    """Channels per head. The ComfyUI host only detects 128."""

    out_channels: int = 16
    """Latent channels of the output."""

    freq_dim: int = 256
    """Channels of the timestep's sinusoids. The ComfyUI host only detects 256."""

    text_dim: int = 4096
    """Width of the text tokens (UMT5-XXL)."""

    image_dim: int | None = IMAGE_DIM
    """Width of the image tokens; None for a network without image cross-attention."""

    @property
    def dim(self) -> int:
        """Width of the network."""
        return self.num_heads * self.head_dim

    def config(self) -> dict[str, Any]:
        """Return the arguments of diffusers' `WanTransformer3DModel`."""
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "num_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "attention_head_dim": self.head_dim,
            "ffn_dim": self.ffn_dim,
            "freq_dim": self.freq_dim,
            "text_dim": self.text_dim,
            "image_dim": self.image_dim,
            "added_kv_proj_dim": None if self.image_dim is None else self.dim,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PerceptionSize:
    """The image encoder of motion perception, and what is made of its features."""

    dim: int = 768
    """Width of the vision transformer."""

    depth: int = 12
    """Its blocks."""

    num_heads: int = 12
    """Its attention heads."""

    feature_dim: int = 768
    """Channels of the adapted features that reach every transformer block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StragSize:
    """The 4D-STraG transformer."""

    wan: WanSize
    """The Wan transformer underneath."""

    perception: PerceptionSize
    """Motion perception."""

    def config(self) -> dict[str, Any]:
        """Return the arguments of `StragTransformer`."""
        perception = self.perception
        return self.wan.config() | {
            "perception_dim": perception.dim,
            "perception_depth": perception.depth,
            "perception_heads": perception.num_heads,
            "feature_dim": perception.feature_dim,
        }


_WAN_14B = WanSize(in_channels=FUN_INP_CHANNELS, num_layers=40, num_heads=40, ffn_dim=13824)
_WAN_1_3B = WanSize(in_channels=FUN_INP_CHANNELS, num_layers=30, num_heads=12, ffn_dim=8960)
_VISM_TINY = WanSize(
    in_channels=FUN_INP_CHANNELS, num_layers=3, num_heads=2, ffn_dim=512, image_dim=None
)
_STRAG_TINY = WanSize(
    in_channels=STRAG_CHANNELS, num_layers=6, num_heads=2, ffn_dim=512, image_dim=None
)

VISM_SIZES: dict[str, WanSize] = {"14b": _WAN_14B, "1.3b": _WAN_1_3B, "tiny": _VISM_TINY}
"""Wan2.1-Fun-V1.1-InP at 14B and 1.3B, and the embedded one."""

STRAG_SIZES: dict[str, StragSize] = {
    "14b": StragSize(
        wan=replace(_WAN_14B, in_channels=STRAG_CHANNELS), perception=PerceptionSize()
    ),
    "1.3b": StragSize(
        wan=replace(_WAN_1_3B, in_channels=STRAG_CHANNELS), perception=PerceptionSize()
    ),
    "tiny": StragSize(
        wan=_STRAG_TINY,
        perception=PerceptionSize(dim=64, depth=4, num_heads=2, feature_dim=64),
    ),
}
"""The released 4D-STraG, the same on the 1.3B base, and the embedded one."""
