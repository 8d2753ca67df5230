"""A text encoder that reads bytes: no vocabulary file, small enough to lie beside the code.

Convolutions make words of letters, attention binds words to each other ("red ball" to "moves
left"), and a last layer widens the result to the text tokens that the Wan networks read. It is
trained together with 4D-STraG and frozen afterwards.

Axes: B text, N byte, C channel, H head, D channels per head.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..wan.text import TEXT_TOKENS

_log = logging.getLogger(__name__)

END = 256
"""Follows the last byte of every text, so that the empty text has a token too."""

_NUM_CODES = END + 1
_LONGEST_RAD = 100.0
_FARTHEST = 64
"""Bytes between two places beyond which distances count as equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteTextSize:
    """Sizes of the network."""

    width: int = 96
    """Channels inside."""

    num_convolutions: int = 2
    """Layers that make words of letters."""

    num_layers: int = 3
    """Layers of attention."""

    num_heads: int = 4
    """Attention heads."""

    text_dim: int = 4096
    """Channels of the tokens."""


class ByteTextModel(nn.Module):
    """Texts to tokens, with gradients."""

    def __init__(self, size: ByteTextSize | None = None) -> None:
        """Make a network with random values; `size` None is the embedded one."""
        super().__init__()
        size = size or ByteTextSize()
        self.embedding = nn.Embedding(_NUM_CODES, size.width)
        self.convolutions = nn.ModuleList(
            _Convolution(size.width) for _ in range(size.num_convolutions)
        )
        self.layers = nn.ModuleList(
            _Layer(size.width, size.num_heads) for _ in range(size.num_layers)
        )
        self.norm = nn.LayerNorm(size.width)
        self.output = nn.Linear(size.width, size.text_dim)

    def forward(self, prompts: Sequence[str]) -> Float[Tensor, "prompt 512 text_dim"]:
        """Encode texts; tokens after a text's end are zero. A longer text than fits is cut."""
        hidden, inside = self.read(prompts)
        tokens = self.output(hidden) * inside[..., None]
        return F.pad(tokens, (0, 0, 0, TEXT_TOKENS - tokens.shape[1]))

    def read(
        self, prompts: Sequence[str]
    ) -> tuple[Float[Tensor, "prompt byte width"], Bool[Tensor, "prompt byte"]]:
        """Return what the last layer widens to tokens, and where there is text (or its end)."""
        codes, inside = byte_codes(prompts, self.output.weight.device)
        hidden = self.embedding(codes) * inside[..., None]
        for convolution in self.convolutions:
            hidden = convolution(hidden, inside)
        for layer in self.layers:
            hidden = layer(hidden, inside)
        # Where a byte stands tells the transformer which words belong together: it finds a color
        # and looks beside it. Without, it knows for long only which words there are.
        places = _places(hidden.shape[1], hidden.shape[2], hidden.device)
        return self.norm(hidden) + places.to(hidden), inside


class ByteTextEncoder:
    """A trained network as the pipelines use it. See `wan.text.TextEncoder`."""

    def __init__(self, model: ByteTextModel) -> None:
        """Wrap a network; it is put into evaluation mode."""
        self.model = model.eval()

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Float[Tensor, "prompt 512 text_dim"]:
        """Encode texts; each keeps its own length, and what follows its end is zero.

        A text of more than 511 bytes is cut, and a warning says what was cut off.
        """
        for prompt in prompts:
            data = _bytes_of(prompt)
            if len(data) >= TEXT_TOKENS:
                _log.warning(
                    "The prompt has %d bytes and the text encoder reads %d. Cut off: %r",
                    len(data),
                    TEXT_TOKENS - 1,
                    data[TEXT_TOKENS - 1 :].decode(errors="replace"),
                )
        return self.model(prompts)


def byte_codes(
    prompts: Sequence[str], device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, "prompt byte"], Bool[Tensor, "prompt byte"]]:
    """Return the codes of texts, padded to the longest, and where there is text (or its end)."""
    rows = [[*_bytes_of(prompt)[: TEXT_TOKENS - 1], END] for prompt in prompts]
    longest = max(map(len, rows))
    codes = torch.tensor([row + [END] * (longest - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    inside = torch.arange(longest) < lengths[:, None]
    return codes.to(device), inside.to(device)


def _places(count: int, width: int, device: torch.device) -> Float[Tensor, "byte channel"]:
    """Sines and cosines of the place of each byte, with periods of 6 to 630 bytes."""
    rate = torch.exp(torch.linspace(0, -math.log(_LONGEST_RAD), width // 2, device=device))
    angle = torch.arange(count, device=device)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def _bytes_of(prompt: str) -> bytes:
    # Spare white space and capitals say nothing about motion.
    return " ".join(prompt.split()).lower().encode()


class _Convolution(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, 5, padding=2)

    def forward(self, x_BNC: Tensor, inside_BN: Tensor) -> Tensor:
        # What lies after the end must be zero here, or a text would depend on its neighbours.
        normed = self.norm(x_BNC) * inside_BN[..., None]
        return x_BNC + F.gelu(self.conv(normed.transpose(1, 2)).transpose(1, 2))


class _Layer(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.distance = nn.Embedding(2 * _FARTHEST + 1, num_heads)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)
        nn.init.normal_(self.distance.weight, std=0.02)

    def forward(self, x_BNC: Tensor, inside_BN: Tensor) -> Tensor:
        q_BHND, k_BHND, v_BHND = rearrange(
            self.qkv(self.norm1(x_BNC)),
            "b n (three h d) -> three b h n d",
            three=3,
            h=self.num_heads,
        )
        place = torch.arange(x_BNC.shape[1], device=x_BNC.device)
        distance = (place[:, None] - place).clamp(-_FARTHEST, _FARTHEST) + _FARTHEST
        bias = rearrange(self.distance(distance), "n m h -> h n m")
        # A finite number instead of -inf: rows of padding see only padding, and must not be NaN.
        bias = bias + torch.where(inside_BN, 0.0, -1e4)[:, None, None].to(bias)
        attended = F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND, attn_mask=bias)
        x_BNC = x_BNC + self.proj(rearrange(attended, "b h n d -> b n (h d)"))
        return x_BNC + self.fc2(F.gelu(self.fc1(self.norm2(x_BNC))))
