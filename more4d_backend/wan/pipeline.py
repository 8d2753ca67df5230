"""What the STraG and ViSM pipelines have in common: encoders, placement, guidance settings."""

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor, nn

from ..shapes import check_shapes
from .image_tokens import ImageTokenEncoder, zero_image_tokens
from .sampling import PromptPair, SamplingSettings
from .text import TextEncoder

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    from ..devices.memory_modes import Placement

_log = logging.getLogger(__name__)


class WanPipeline:
    """A Wan transformer with its encoders, and where they compute."""

    def __init__(
        self,
        transformer: "WanTransformer3DModel",
        text_encoder: TextEncoder,
        image_encoder: ImageTokenEncoder | None,
        placement: "Placement | None",
    ) -> None:
        self.transformer = transformer
        self.text_encoder = text_encoder
        self.image_encoder = image_encoder
        self.placement = placement
        self.device = transformer.device if placement is None else placement.plan.device

    def using(self, *modules: nn.Module) -> AbstractContextManager[None]:
        """Have networks on the device inside the block."""
        return nullcontext() if self.placement is None else self.placement.using(*modules)

    def planned(self, sampling: SamplingSettings) -> SamplingSettings:
        """Return the settings as the memory plan allows them."""
        planned = self.placement is not None and self.placement.plan.sequential_cfg
        return replace(sampling, sequential_guidance=sampling.sequential_guidance or planned)

    def forget_cached_steps(self) -> None:
        """Empty diffusers' step caches: another run's last step is not this run's step before."""
        if self.transformer.is_cache_enabled:
            self.transformer._reset_stateful_cache()

    def encode_text(self, prompt: str, negative_prompt: str) -> PromptPair:
        """Encode both branches of guidance."""
        with self.using(self.text_encoder.model):
            tokens = self.text_encoder.encode([prompt, negative_prompt]).to(self.device)
        check_shapes(text_tokens=(tokens, f"2 512 {self.transformer.config['text_dim']}"))
        return PromptPair(prompt=tokens[:1], negative=tokens[1:])

    def encode_image_tokens(
        self, image: Float[Tensor, "height width 3"] | None
    ) -> Float[Tensor, "1 token token_dim"] | None:
        """Encode a picture for networks with image tokens; zeros, and a log line, without one."""
        token_dim = self.transformer.config["image_dim"]
        if token_dim is None:
            return None
        if image is not None and self.image_encoder is not None:
            with self.using(self.image_encoder.model):
                return self.image_encoder.encode(image).to(self.device)
        missing = "image" if image is None else "image encoder"
        _log.info("No %s was given: the network's image tokens are zero.", missing)
        return zero_image_tokens(token_dim=token_dim, device=self.device)
