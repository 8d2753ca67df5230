"""From a rendered video with holes to a whole one: the Fun-InP transformer with the ViSM LoRA."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from ..wan.image_tokens import ImageTokenEncoder
from ..wan.latents import LATENT_CHANNELS, check_video_size, decode_video, latent_size
from ..wan.pipeline import WanPipeline
from ..wan.sampling import (
    Branch,
    Progress,
    SamplingError,
    SamplingSettings,
    Velocity,
    denoise,
    initial_noise,
)
from ..wan.text import TextEncoder, check_prompt
from ..wan.windows import Window, cross_fade, plan_windows
from .conditioning import check_holes, condition_latent, paste_back

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    from ..devices.memory_modes import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class VismSettings:
    """How holes are filled."""

    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    """Steps, guidance and schedule."""

    negative_prompt: str = ""
    """What guidance moves away from."""

    window_frames: int = 49
    """Frames that the network fills at one time, 4k + 1; it was trained on 49."""

    overlap_frames: int = 9
    """Frames that a window takes over, already filled, from the one before it."""

    paste_known_pixels: bool = False
    """Put the rendered pixels over the result, so that only holes are the network's."""

    feather_px: int = 8
    """Width of the seam between pasted and filled pixels."""


class VismPipeline(WanPipeline):
    """Fills the holes of rendered videos."""

    def __init__(
        self,
        transformer: "WanTransformer3DModel",
        vae: "AutoencoderKLWan",
        text_encoder: TextEncoder,
        image_encoder: ImageTokenEncoder | None = None,
        *,
        placement: "Placement | None" = None,
    ) -> None:
        """Join the networks; `placement` says where they compute (None: where they are)."""
        super().__init__(transformer, text_encoder, image_encoder, placement)
        self.vae = vae

    @torch.no_grad()
    def complete(
        self,
        rendered: Float[Tensor, "frame height width 3"],
        hole_mask: Bool[Tensor, "frame height width"],
        prompt: str,
        *,
        image: Float[Tensor, "image_height image_width 3"] | None = None,
        settings: VismSettings | None = None,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
    ) -> Float[Tensor, "frame height width 3"]:
        """Fill what `hole_mask` marks in a video, sRGB in [0, 1].

        `image` is the picture that the scene came from, for the network's image tokens; without
        one they are zero, as in the released inference. A video longer than a window may have any
        number of frames; a shorter one must have 4k + 1.

        Raises:
            PromptError: the prompt is empty.
            ShapeError, VideoSizeError, WindowError, ValueError: sizes or values cannot be used.
            SamplingError: a network returned NaN; names the step.
        """
        settings = settings or VismSettings()
        # 1. Refuse what cannot work before anything slow starts.
        prompt = check_prompt(prompt)
        check_holes(rendered, hole_mask)
        num_frames, height, width = hole_mask.shape
        windows = plan_windows(num_frames, settings.window_frames, settings.overlap_frames)
        check_video_size(windows[0].stop, height, width)

        # 2. Tell the network what is to be seen.
        text = self.encode_text(prompt, settings.negative_prompt)
        image_tokens = self.encode_image_tokens(image)

        # 3. Fill window after window; what one window filled, the next one knows.
        video, holes = rendered.to(self.device, copy=True), hole_mask.to(self.device, copy=True)
        for index, window in enumerate(windows):
            condition = self._encode_condition(video[window.frames], holes[window.frames])
            noise = self._noise(video[window.frames], generator)
            self.forget_cached_steps()
            with self.using(self.transformer):
                latent = denoise(
                    self._velocity(condition, image_tokens),
                    noise,
                    text,
                    self.planned(settings.sampling),
                    progress=_part_of(progress, index, len(windows)),
                )
            _insert(video, self._decode(latent), window)
            holes[window.frames] = False

        # 4. Keep the rendered pixels, if wanted.
        video = video.to(rendered.device)
        if settings.paste_known_pixels:
            video = paste_back(rendered, video, hole_mask, settings.feather_px)
        return video

    def _encode_condition(self, video: Tensor, holes: Tensor) -> Tensor:
        with self.using(self.vae):
            return condition_latent(self.vae, video, holes).to(self.device)

    def _noise(self, video: Tensor, generator: torch.Generator | None) -> Tensor:
        size = latent_size(*video.shape[:3])
        return initial_noise((1, LATENT_CHANNELS, *size), generator, self.device)

    def _velocity(self, condition: Tensor, image_tokens: Tensor | None) -> Velocity:
        dtype = self.transformer.dtype

        def velocity(latent: Tensor, timestep: Tensor, text: Tensor, branch: Branch) -> Tensor:
            batch = len(latent)
            known = condition.expand(batch, -1, -1, -1, -1)
            tokens = image_tokens
            if tokens is not None:
                tokens = tokens.expand(batch, -1, -1).to(dtype)
            with self.transformer.cache_context(branch):
                return self.transformer(
                    hidden_states=torch.cat([latent, known], dim=1).to(dtype),
                    timestep=timestep,
                    encoder_hidden_states=text.to(dtype),
                    encoder_hidden_states_image=tokens,
                    return_dict=False,
                )[0]

        return velocity

    def _decode(self, latent: Tensor) -> Tensor:
        with self.using(self.vae):
            video = decode_video(self.vae, latent).to(self.device)
        if not video.isfinite().all():
            raise SamplingError(
                "The VAE decoded NaN or infinity. Check that its weights are whole, and use "
                "bfloat16 or float32 instead of float16."
            )
        return rearrange((video + 1) / 2, "1 c f h w -> f h w c")


def _insert(video: Tensor, filled: Tensor, window: Window) -> None:
    shared = cross_fade(video[window.shared], filled[: window.num_shared])
    video[window.frames] = torch.cat([shared, filled[window.num_shared :]])


def _part_of(progress: Progress | None, index: int, num_windows: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total: progress(index * total + done, num_windows * total)
