"""The Perceiver that turns image tokens into context tokens, one group for each frame.

It runs once, when a released checkpoint is converted: the picture that it sees is always the same
grey one. Module names are those of the released files.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .layers import attention

HEAD_DIM = 64


class Resampler(nn.Module):
    """Learned queries that read the image tokens (Jaegle et al. 2021, as in Flamingo)."""

    def __init__(
        self,
        *,
        dim: int = 1024,
        depth: int = 4,
        heads: int = 12,
        head_dim: int = HEAD_DIM,
        num_queries: int = 256,
        embedding_dim: int = 1280,
        output_dim: int = 1024,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, num_queries, dim) / dim**0.5)
        self.proj_in = nn.Linear(embedding_dim, dim)
        self.proj_out = nn.Linear(dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim)
        self.layers = nn.ModuleList(_Layer(dim, heads, head_dim) for _ in range(depth))

    def forward(
        self, image_tokens: Float[Tensor, "batch image_token embedding_dim"]
    ) -> Float[Tensor, "batch query output_dim"]:
        """Return the tokens of all frames in a row."""
        tokens = self.proj_in(image_tokens)
        queries = self.latents.expand(len(tokens), -1, -1)
        for layer in self.layers:
            queries = layer(tokens, queries)
        return self.norm_out(self.proj_out(queries))


class _Layer(nn.ModuleList):
    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__([_Reading(dim, heads, head_dim), _feed_forward(dim)])

    def forward(self, tokens: Tensor, queries: Tensor) -> Tensor:
        queries = queries + self[0](tokens, queries)
        return queries + self[1](queries)


class _Reading(nn.Module):
    """Queries attend to the image tokens and to each other."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(self, tokens: Tensor, queries: Tensor) -> Tensor:
        tokens, queries = self.norm1(tokens), self.norm2(queries)
        keys, values = self.to_kv(torch.cat([tokens, queries], dim=1)).chunk(2, dim=-1)
        mixed = attention(self.to_q(queries), keys, values, self.head_dim)
        return self.to_out(mixed)


def _feed_forward(dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, 4 * dim, bias=False),
        nn.GELU(),
        nn.Linear(4 * dim, dim, bias=False),
    )
