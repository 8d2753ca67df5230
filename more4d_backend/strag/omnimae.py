"""OmniMAE ViT-B/16 (Girdhar et al. 2023, arXiv 2206.08356): image features of motion perception.

Only what inference needs: the encoder of one image. The published file's decoder, mask token and
head have no place here (`weights` drops them). Module names are those of the published file, and
layers come from a factory, so that the ComfyUI host can build them through its own operations.

Axes: B batch, N patch token (row-major), C channel, H head, D channels per head.
"""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE_SIZE_PX = 224
PATCH_SIZE_PX = 16
GRID = IMAGE_SIZE_PX // PATCH_SIZE_PX
FRAMES_PER_PATCH = 2
NUM_CLIP_FRAMES = 16
"""OmniMAE's position table covers a clip; an image uses the positions of its first two frames."""

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_NORM_EPS = 1e-6


class OmniMAE(nn.Module):
    """One image to patch features."""

    def __init__(
        self, dim: int = 768, depth: int = 12, num_heads: int = 12, operations: Any = nn
    ) -> None:
        super().__init__()
        self.trunk = _Trunk(dim, depth, num_heads, operations)

    def forward(self, image: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B N C"]:
        """Return the features of the last block of an image in [0, 1], 14x14 per image.

        The image is squashed to 224x224 whatever its aspect, as the features were trained.
        """
        square = F.interpolate(
            image, size=(IMAGE_SIZE_PX, IMAGE_SIZE_PX), mode="bilinear", align_corners=False
        )
        mean, std = (square.new_tensor(v).view(3, 1, 1) for v in (_IMAGENET_MEAN, _IMAGENET_STD))
        return self.trunk((square - mean) / std)


class _Trunk(nn.Module):
    pos_embed: Tensor

    def __init__(self, dim: int, depth: int, num_heads: int, operations: Any) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbedding(dim, operations)
        positions = NUM_CLIP_FRAMES // FRAMES_PER_PATCH * GRID**2
        self.register_buffer("pos_embed", sinusoid_table(positions, dim)[None])
        self.blocks = nn.ModuleList(_Block(dim, num_heads, operations) for _ in range(depth))
        self.norm = operations.LayerNorm(dim, eps=_NORM_EPS)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        x_BNC = self.patch_embed(image_BCHW)
        x_BNC = x_BNC + self.pos_embed[:, : x_BNC.shape[1]].to(x_BNC)
        for block in self.blocks:
            x_BNC = block(x_BNC)
        return self.norm(x_BNC)


class _PatchEmbedding(nn.Module):
    def __init__(self, dim: int, operations: Any) -> None:
        super().__init__()
        size = (FRAMES_PER_PATCH, PATCH_SIZE_PX, PATCH_SIZE_PX)
        # The published file counts a parameterless padding step as `proj.0`.
        self.proj = nn.Sequential(
            _StillClip(), operations.Conv3d(3, dim, kernel_size=size, stride=size)
        )

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return rearrange(self.proj(image_BCHW), "b c 1 h w -> b (h w) c")


class _StillClip(nn.Module):
    """An image to a clip of equal frames, one temporal patch long."""

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return image_BCHW.unsqueeze(2).expand(-1, -1, FRAMES_PER_PATCH, -1, -1)


class _Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, operations: Any) -> None:
        super().__init__()
        self.norm1 = operations.LayerNorm(dim, eps=_NORM_EPS)
        self.attn = _Attention(dim, num_heads, operations)
        self.norm2 = operations.LayerNorm(dim, eps=_NORM_EPS)
        self.mlp = _FeedForward(dim, operations)

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = x_BNC + self.attn(self.norm1(x_BNC))
        return x_BNC + self.mlp(self.norm2(x_BNC))


class _Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, operations: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = operations.Linear(dim, 3 * dim)
        self.proj = operations.Linear(dim, dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        q_BHND, k_BHND, v_BHND = rearrange(
            self.qkv(x_BNC), "b n (three h d) -> three b h n d", three=3, h=self.num_heads
        )
        attended = F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND)
        return self.proj(rearrange(attended, "b h n d -> b n (h d)"))


class _FeedForward(nn.Module):
    def __init__(self, dim: int, operations: Any) -> None:
        super().__init__()
        self.fc1 = operations.Linear(dim, 4 * dim)
        self.fc2 = operations.Linear(4 * dim, dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BNC)))


def sinusoid_table(num_positions: int, dim: int) -> Float[Tensor, "N C"]:
    """Return OmniMAE's fixed positions: sines in even channels, cosines in odd ones."""
    # "Attention is all you need", section 3.5: a pair of channels shares one frequency.
    frequency = 10000.0 ** (-2.0 * (torch.arange(dim, dtype=torch.float64) // 2) / dim)
    angle_rad = torch.arange(num_positions, dtype=torch.float64)[:, None] * frequency
    even = torch.arange(dim) % 2 == 0
    return torch.where(even, angle_rad.sin(), angle_rad.cos()).float()
