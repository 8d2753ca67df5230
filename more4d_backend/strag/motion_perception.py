"""Motion perception: image features that guide every block of a Wan transformer.

MoRe4D (arXiv 2512.05044, section 3.3): OmniMAE features of the input image, adapted once per image,
modulate the input of self-attention and of the feed-forward part of each block.

The parts attach to any stack of Wan blocks, diffusers' or the ComfyUI host's: layers come from a
factory (`operations`, torch.nn by default), and `guide_block` puts them into a block without
touching its class, its forward or the names of its children. How a call's guidance reaches them:

- `guidance_scope(guidance)` holds for what this thread calls inside it, and nothing is written to a
  module. Calls in other threads, or nested ones, each see their own guidance.
- A block that is run again later (gradient checkpointing), or compiled alone, must not depend on
  a scope around it. Hand the guidance to the block as an argument and open the scope inside, as
  `transformer.py` does through the rotary embedding.

Axes: B batch (1 where one image guides the whole batch), F latent frame of the token sequence,
N token of one latent frame, C channel.
"""

import threading
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .omnimae import GRID, OmniMAE

GATE_START = 1e-6
"""Initial gate of new guidance. Zero, as in the reference, would keep the gradient from the Linear
and the adapter; at this value the network still computes what its base did, within 1e-5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """What one image tells every block, in one call of the transformer."""

    features: Float[Tensor, "B N C"]
    """Adapted image features on the token grid of one latent frame; B is 1 or the batch's."""

    unguided_frame: int | None
    """Index, in the token sequence, of the one latent frame that is left as it is: the reference
    frame (0), or the last frame (-1) as in the released weights. None guides every frame."""

    def to(self, *args: Any, **kwargs: Any) -> "Guidance":
        """Return the guidance on another device or in another dtype, as `Tensor.to`.

        Libraries that move a module's arguments (offloading) look for a method of this name.
        """
        return replace(self, features=self.features.to(*args, **kwargs))


class FeatureAdapter(nn.ModuleDict):
    """Image features to what guides the blocks; keys `0` and `2` are those of the released file."""

    def __init__(self, dim: int = 768, feature_dim: int = 768, operations: Any = nn) -> None:
        first = operations.Conv2d(dim, feature_dim, 3, padding=1)
        super().__init__(
            {"0": first, "2": operations.Conv2d(feature_dim, feature_dim, 3, padding=1)}
        )

    def forward(
        self, features: Float[Tensor, "B patch C"], grid_hw: tuple[int, int]
    ) -> Float[Tensor, "B N feature"]:
        """Return features at the `grid_hw` tokens of a latent frame, row by row."""
        square = rearrange(features, "b (h w) c -> b c h w", h=GRID)
        adapted = self["2"](F.silu(self["0"](square)))
        resized = F.interpolate(adapted, size=grid_hw, mode="bilinear", align_corners=False)
        return rearrange(resized, "b c h w -> b (h w) c")


class SpatialGuidance(nn.Module):
    """Scale and shift of one place in one block, the same for all frames."""

    def __init__(self, dim: int, feature_dim: int, operations: Any = nn) -> None:
        super().__init__()
        self.spatial_guide = nn.Sequential(nn.SiLU(), operations.Linear(feature_dim, 2 * dim))
        self.gate = nn.Parameter(torch.full((dim,), GATE_START))

    def forward(
        self, hidden_states: Float[Tensor, "batch token C"], guidance: Guidance
    ) -> Float[Tensor, "batch token C"]:
        """Return `x * (1 + gate * scale) + gate * shift` on guided frames, x on the other one."""
        # One frame's tokens go through the Linear; the broadcast over frames is free.
        scale, shift = self.spatial_guide(guidance.features).chunk(2, dim=-1)
        gate = self.gate.to(scale)
        scale = (gate * scale).to(hidden_states).unsqueeze(1)  # B 1 N C
        shift = (gate * shift).to(hidden_states).unsqueeze(1)
        frames = hidden_states.unflatten(1, (-1, guidance.features.shape[1]))  # B F N C
        if torch.compiler.is_compiling():
            # Each element from itself alone: inductor fuses this with the norm before it, as it
            # does not with a frame that is copied over the others.
            on = _guided_frames(frames, guidance.unguided_frame)
            return (frames * (1 + on * scale) + on * shift).flatten(1, 2)
        guided = torch.addcmul(shift, frames, 1 + scale)
        if guidance.unguided_frame is not None:
            guided[:, guidance.unguided_frame] = frames[:, guidance.unguided_frame]
        return guided.flatten(1, 2)


def _guided_frames(frames: Tensor, unguided_frame: int | None) -> Tensor:
    """Return 1 for guided frames and 0 for the other one, as (F, 1, 1)."""
    index = torch.arange(frames.shape[1], device=frames.device).view(-1, 1, 1)
    if unguided_frame is None:
        return torch.ones_like(index, dtype=frames.dtype)
    return (index != unguided_frame % frames.shape[1]).to(frames.dtype)


def encode_image(
    extractor: OmniMAE,
    adapter: FeatureAdapter,
    image: Float[Tensor, "B 3 height width"],
    grid_hw: tuple[int, int],
) -> Float[Tensor, "B N C"]:
    """Return the features of an image in [0, 1] for a latent frame of `grid_hw` tokens.

    Runs where the weights are (an offloaded model may leave them on the CPU); the result is on the
    image's device. Gradients reach the adapter, and the extractor where its parameters want them.
    """
    weight = extractor.trunk.norm.weight
    features = extractor(image.to(weight))
    adapter_weight = next(adapter.parameters())
    return adapter(features.to(adapter_weight), grid_hw).to(image.device)


class _Running(threading.local):
    def __init__(self) -> None:
        self.guidance: Guidance | None = None


_running = _Running()


class guidance_scope:
    """Let guided blocks that this thread calls inside see `guidance`; None is no guidance."""

    # A class, because older versions of torch.compile cannot see through `@contextmanager`.

    def __init__(self, guidance: Guidance | None) -> None:
        self.guidance = guidance

    def __enter__(self) -> None:
        self.outer = _running.guidance
        _running.guidance = self.guidance

    def __exit__(self, *exception: object) -> None:
        _running.guidance = self.outer


def current_guidance() -> Guidance | None:
    """Return the guidance of the innermost scope of this thread."""
    return _running.guidance


def take_guidance() -> Guidance | None:
    """Return the guidance of the innermost scope, which from here on holds none.

    For where it goes on as an argument: blocks then find the same around them when they run as when
    gradient checkpointing runs them again, outside of every scope. Else what is compiled for the
    one is, where FSDP2 splits parameters, compiled once more for the other.
    """
    guidance, _running.guidance = _running.guidance, None
    return guidance


def guide_block(
    block: nn.Module,
    *,
    dim: int,
    feature_dim: int,
    attention: str = "attn1",
    feed_forward: str = "ffn",
    operations: Any = nn,
) -> None:
    """Give a block guidance at the inputs of two of its children, which keep their names and keys.

    The new parameters are `spatial_guidance_self` and `spatial_guidance_ffn` of the block, as in
    the released file.
    """
    block.spatial_guidance_self = SpatialGuidance(dim, feature_dim, operations)
    block.spatial_guidance_ffn = SpatialGuidance(dim, feature_dim, operations)
    _guide_input(block.get_submodule(attention), block.spatial_guidance_self)
    _guide_input(block.get_submodule(feed_forward), block.spatial_guidance_ffn)


class _GuidedInput:
    """Mixed into a module's class: guides its first argument."""

    _spatial_guidance: tuple[SpatialGuidance]

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        guidance = _running.guidance
        if guidance is not None:
            hidden_states = self._spatial_guidance[0](hidden_states, guidance)
        return super().forward(hidden_states, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


@cache
def _guided(module_class: type[nn.Module]) -> type[nn.Module]:
    return type(f"Guided{module_class.__name__}", (_GuidedInput, module_class), {})


def _guide_input(module: nn.Module, guidance: SpatialGuidance) -> None:
    # A subclass rather than a wrapper keeps children's names, and a subclass rather than a forward
    # hook keeps one compiled graph for all blocks: torch guards on the ids of hooks, which differ.
    module.__class__ = _guided(type(module))
    # In a tuple, or it would be registered a second time under another name.
    module.__dict__["_spatial_guidance"] = (guidance,)
