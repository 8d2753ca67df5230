"""An image to the 257 tokens by which the Wan networks see it: CLIP ViT-H/14, one layer short."""

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@runtime_checkable
class ImageTokenEncoder(Protocol):
    """Anything that makes image tokens."""

    @property
    def model(self) -> nn.Module:
        """The network inside, for whoever decides on which device it is."""
        ...

    def encode(self, image: Float[Tensor, "height width 3"]) -> Float[Tensor, "1 token token_dim"]:
        """Encode one image, sRGB in [0, 1]."""
        ...


class ClipImageEncoder:
    """CLIP's vision transformer through transformers, as Wan uses it."""

    def __init__(self, model: "CLIPVisionModel") -> None:
        self.model = model.eval()

    @torch.no_grad()
    def encode(self, image: Float[Tensor, "height width 3"]) -> Float[Tensor, "1 token token_dim"]:
        """Return the tokens before the last layer: (1, 257, 1280) for ViT-H/14.

        The whole image is squeezed into the model's square without antialiasing, as it was in
        Wan's training.
        """
        size: Any = self.model.config.image_size
        pixels = rearrange(image.float(), "h w c -> 1 c h w")
        pixels = torch.nn.functional.interpolate(
            pixels, size=(size, size), mode="bicubic", align_corners=False
        )
        mean, std = torch.tensor([_CLIP_MEAN, _CLIP_STD]).to(pixels).view(2, 1, 3, 1, 1)
        pixels = ((pixels - mean) / std).to(self.model.device, self.model.dtype)
        return self.model(pixels, output_hidden_states=True).hidden_states[-2]


def zero_image_tokens(
    num_tokens: int = 257, token_dim: int = 1280, *, device: torch.device | str = "cpu"
) -> Float[Tensor, "1 token token_dim"]:
    """Tokens of no image: what the networks are given where there is nothing to show."""
    return torch.zeros(1, num_tokens, token_dim, device=device)
