"""The spatial and temporal transformers of the UNet; names are those of the released files.

Axes: B window, T frame, H height, W width, C channel.
"""

from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import GroupNorm, Pointwise1d, attention, damped
from .sizes import IMAGE_TOKENS_PER_FRAME, TEXT_TOKENS, UNetSize

_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameContext:
    """Context tokens: those that every frame sees, and each frame's own."""

    shared: Tensor
    """(B or 1, token, context_dim): of the prompt."""

    per_frame: Tensor
    """(B or 1, T, token, context_dim): of the picture, one group for each frame of a window."""

    @classmethod
    def split(cls, context: Tensor) -> "FrameContext":
        """Split the one row of tokens in which they are stored."""
        shared, rest = context.split([TEXT_TOKENS, context.shape[1] - TEXT_TOKENS], dim=1)
        return cls(shared=shared, per_frame=rest.unflatten(1, (-1, IMAGE_TOKENS_PER_FRAME)))


class SelfAttention(nn.Module):
    """Tokens of a sequence attend to each other."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (sequence token C) to the same."""
        queries, keys, values = self.to_q(hidden), self.to_k(hidden), self.to_v(hidden)
        return self.to_out[0](attention(queries, keys, values, self.head_dim))


class ContextAttention(nn.Module):
    """Places attend to the prompt and to their frame's image tokens; both results are summed."""

    def __init__(self, dim: int, context_dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.to_k_ip = nn.Linear(context_dim, dim, bias=False)
        self.to_v_ip = nn.Linear(context_dim, dim, bias=False)

    def forward(self, hidden: Tensor, context: FrameContext) -> Tensor:
        """Map (B*T place C) to the same."""
        queries = self.to_q(hidden)
        keys, values = self.to_k(context.shared), self.to_v(context.shared)
        if torch.is_grad_enabled():
            # The gradient of keys is summed sequence by sequence: one long one leaves most of a GPU
            # idle.
            rows, copies = queries, len(hidden) // len(keys)
            keys, values = (repeat(x, "b k c -> (b f) k c", f=copies) for x in (keys, values))
        else:
            # Every place of every frame sees the same prompt: one long sequence for each prompt.
            rows = queries.reshape(len(keys), -1, queries.shape[-1])
        mixed = attention(rows, keys, values, self.head_dim).view_as(queries)

        frames = context.per_frame.shape[1]
        windows = len(hidden) // frames
        own = context.per_frame.expand(windows, -1, -1, -1).flatten(0, 1)
        mixed = mixed + attention(queries, self.to_k_ip(own), self.to_v_ip(own), self.head_dim)
        return self.to_out[0](mixed)


class _GatedLinear(nn.Module):
    """GEGLU (Shazeer 2020)."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner_dim)

    def forward(self, hidden: Tensor) -> Tensor:
        values, gates = self.proj(hidden).chunk(2, dim=-1)
        return values * F.gelu(gates)


class _FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(_GatedLinear(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.net(hidden)


class _Block(nn.Module):
    """Two attentions and a feed-forward; the second one sees the context, where there is one."""

    def __init__(self, dim: int, head_dim: int, context_dim: int | None) -> None:
        super().__init__()
        self.attn1 = SelfAttention(dim, head_dim)
        self.ff = _FeedForward(dim)
        if context_dim is None:
            self.attn2 = SelfAttention(dim, head_dim)
        else:
            self.attn2 = ContextAttention(dim, context_dim, head_dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, hidden: Tensor, context: FrameContext | None) -> Tensor:
        hidden = hidden + self.attn1(self.norm1(hidden))
        inner = self.norm2(hidden)
        if isinstance(self.attn2, ContextAttention):
            assert context is not None
            hidden = hidden + self.attn2(inner, context)
        else:
            hidden = hidden + self.attn2(inner)
        return hidden + self.ff(self.norm3(hidden))


class SpatialTransformer(nn.Module):
    """Places of one frame attend to each other, and to the context."""

    def __init__(self, channels: int, size: UNetSize) -> None:
        super().__init__()
        self.norm = GroupNorm(size.norm_groups, channels, _NORM_EPS)
        self.proj_in = nn.Linear(channels, channels)
        block = _Block(channels, size.head_dim, size.context_dim)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = damped(nn.Linear(channels, channels))

    def forward(self, hidden: Tensor, context: FrameContext) -> Tensor:
        """Map (B T H W C) to the same."""
        frames = hidden.flatten(0, 1)
        inner = self.proj_in(self.norm(frames).flatten(1, 2))
        inner = self.proj_out(self.transformer_blocks[0](inner, context))
        return hidden + inner.view_as(hidden)


class TemporalTransformer(nn.Module):
    """A place attends to itself in all frames. `heads` None: as many as the channels hold."""

    def __init__(self, channels: int, size: UNetSize, heads: int | None = None) -> None:
        super().__init__()
        dim = channels if heads is None else heads * size.head_dim
        linear = nn.Linear if heads is None else Pointwise1d
        self.norm = GroupNorm(size.norm_groups, channels, _NORM_EPS)
        self.proj_in = linear(channels, dim)
        self.transformer_blocks = nn.ModuleList([_Block(dim, size.head_dim, None)])
        self.proj_out = damped(linear(dim, channels))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B T H W C) to the same."""
        batch, frames, height, width, channels = hidden.shape
        # The one transposition: places become sequences of frames.
        sequences = self.norm(hidden).permute(0, 2, 3, 1, 4).contiguous()  # B H W T C
        sequences = sequences.view(-1, frames, channels)
        inner = self.transformer_blocks[0](self.proj_in(sequences), None)
        inner = self.proj_out(inner).view(batch, height, width, frames, channels)
        return hidden + inner.permute(0, 3, 1, 2, 4)  # B T H W C
