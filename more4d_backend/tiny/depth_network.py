"""A small network from one picture to its depth and field of view.

A U-shape of convolutions; attention at its lowest resolution lets every place see the layout of
the whole picture. It was trained on procedural rooms and landscapes only.

Axes: B image, C channel, H height, W width, N place of the lowest resolution.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

SIZE_STEP_PX = 16
"""Heights and widths of what the network sees are multiples of this."""

_START_DEPTH_M = 5.0
_START_FOCAL = 0.96  # of 55 degrees
"""What a new network predicts for every picture: no training is spent on getting there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthNetworkSize:
    """Sizes of the network."""

    widths: tuple[int, ...] = (16, 32, 48, 72, 96)
    """Channels at full, half, quarter, eighth and sixteenth resolution."""

    num_blocks: tuple[int, ...] = (1, 2, 2, 3)
    """Convolution blocks at each resolution on the way down, but for the lowest."""

    num_layers: int = 3
    """Layers of attention at the lowest resolution."""

    num_heads: int = 4
    """Attention heads."""


class DepthNetwork(nn.Module):
    """Pictures to depth and field of view, with gradients."""

    def __init__(self, size: DepthNetworkSize | None = None) -> None:
        """Make a network with random values; `size` None is the embedded one."""
        super().__init__()
        size = size or DepthNetworkSize()
        widths = size.widths
        # Colours and the place in the picture: floors are below and skies above.
        self.stem = nn.Conv2d(5, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Block(width) for _ in range(count)))
            for width, count in zip(widths, size.num_blocks, strict=False)
        )
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.layers = nn.ModuleList(
            _Layer(widths[-1], size.num_heads) for _ in range(size.num_layers)
        )
        self.norm = nn.LayerNorm(widths[-1])
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairs)
        self.merged = nn.ModuleList(_Block(a) for a, _ in pairs)
        self.depth = nn.Conv2d(widths[0], 1, 3, padding=1)
        self.focal = nn.Sequential(
            nn.Linear(2 * widths[-1], widths[-1]), nn.GELU(), nn.Linear(widths[-1], 1)
        )
        self._start_from_the_usual()

    def _start_from_the_usual(self) -> None:
        for layer, value in ((self.depth, _START_DEPTH_M), (self.focal[-1], _START_FOCAL)):
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, math.log(value))

    def forward(
        self, images: Float[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B H W"], Float[Tensor, "B"]]:
        """Return log depth and log focal length of pictures, sRGB in [0, 1].

        Depth is camera z in the units of the training data (metres there, a guess elsewhere), the
        focal length a share of the picture's longer side. Heights and widths are multiples of 16.
        """
        hidden = self.stem(_with_places(images))
        kept = []
        for stage, down in zip(self.stages, self.down, strict=True):
            hidden = stage(hidden)
            kept.append(hidden)
            hidden = down(hidden)
        height = hidden.shape[2]
        seen_BNC = rearrange(hidden, "b c h w -> b (h w) c")
        for layer in self.layers:
            seen_BNC = layer(seen_BNC)
        seen_BNC = self.norm(seen_BNC)
        pooled = torch.cat([seen_BNC.mean(1), seen_BNC.amax(1)], dim=-1)
        hidden = rearrange(seen_BNC, "b (h w) c -> b c h w", h=height)
        for level in reversed(range(len(self.up))):
            larger = F.interpolate(self.up[level](hidden), scale_factor=2.0, mode="bilinear")
            hidden = self.merged[level](larger + kept[level])
        return self.depth(hidden)[:, 0], self.focal(pooled)[:, 0]


def network_size(height: int, width: int, *, area_px: int = 128 * 176) -> tuple[int, int]:
    """Size that a picture is resized to: about the training's area, aspect nearly kept."""
    scale = math.sqrt(area_px / (height * width))
    rows, columns = (max(2, round(side * scale / SIZE_STEP_PX)) for side in (height, width))
    return rows * SIZE_STEP_PX, columns * SIZE_STEP_PX


def _with_places(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 5 H W"]:
    batch, _, height, width = images.shape
    longer = max(height, width)
    y = (torch.arange(height, device=images.device) + 0.5 - height / 2) * (2 / longer)
    x = (torch.arange(width, device=images.device) + 0.5 - width / 2) * (2 / longer)
    places = torch.stack(torch.meshgrid(y, x, indexing="ij")).to(images)
    return torch.cat([2 * images - 1, places.expand(batch, -1, -1, -1)], dim=1)


class _Block(nn.Module):
    """Depthwise 7x7, then a pointwise layer of twice the width (after ConvNeXt)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.wide = nn.Conv2d(width, 2 * width, 1)
        self.narrow = nn.Conv2d(2 * width, width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.narrow(F.gelu(self.wide(self.norm(self.spatial(hidden)))))


class _Layer(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x_BNC: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.qkv(self.norm1(x_BNC)),
            "b n (three h d) -> three b h n d",
            three=3,
            h=self.num_heads,
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        x_BNC = x_BNC + self.proj(rearrange(attended, "b h n d -> b n (h d)"))
        return x_BNC + self.fc2(F.gelu(self.fc1(self.norm2(x_BNC))))
