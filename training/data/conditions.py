"""What a network is told besides noise: tokens from frozen encoders, sometimes left out.

Random numbers come in fixed counts from the given generator, whether or not anything is dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from more4d_backend.wan.text import TextEncoder

from .. import networks
from ..recipes import SizeName, WeightFiles

if TYPE_CHECKING:
    from more4d_backend.wan.image_tokens import ClipImageEncoder


@overload
def dropped(condition: Tensor, probability: float, generator: torch.Generator) -> Tensor: ...
@overload
def dropped(condition: None, probability: float, generator: torch.Generator) -> None: ...
def dropped(
    condition: Tensor | None, probability: float, generator: torch.Generator
) -> Tensor | None:
    """Put zeros in place of a condition for some samples of a batch; None stays None."""
    if condition is None:
        return None
    keep = torch.rand(len(condition), generator=generator, device=generator.device) >= probability
    return condition * keep.to(condition).view(-1, *[1] * (condition.ndim - 1))


def dropped_captions(
    captions: Sequence[str], probability: float, generator: torch.Generator
) -> tuple[str, ...]:
    """Put the empty text in place of some captions."""
    draw = torch.rand(len(captions), generator=generator, device=generator.device).tolist()
    return tuple("" if d < probability else c for d, c in zip(draw, captions, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenEncoders:
    """Captions and pictures to tokens."""

    text_encoder: TextEncoder
    """See `TextEncoder`."""

    image_encoder: "ClipImageEncoder | None"
    """None for sizes without image tokens."""

    device: torch.device
    """Where tokens are wanted."""

    @classmethod
    def load(
        cls,
        files: WeightFiles,
        size: SizeName,
        *,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
        text: TextEncoder | None = None,
    ) -> "FrozenEncoders":
        """Load the encoders onto the device, but for a text encoder that is given."""
        text = text or networks.text_encoder(files, size, seed=seed, dtype=dtype)
        image = networks.image_encoder(files, size, dtype=dtype)
        for encoder in (text, image):
            if encoder is not None:
                nn.Module.to(encoder.model, device)
        return cls(text_encoder=text, image_encoder=image, device=device)

    def text(
        self, captions: Sequence[str], dropout: float, generator: torch.Generator
    ) -> Float[Tensor, "batch 512 text_dim"]:
        """Encode captions; a share of them, drawn anew, as the empty text."""
        said = dropped_captions(captions, dropout, generator)
        return self.text_encoder.encode(said).to(self.device).float()

    def image_tokens(
        self, images: Float[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch token token_dim"] | None:
        """Encode pictures, sRGB in [0, 1]; None where the network takes no image tokens."""
        if self.image_encoder is None:
            return None
        tokens = [self.image_encoder.encode(image) for image in images]
        return torch.cat(tokens).to(self.device).float()
