"""From an image, its depth and a prompt to a moving scene: 4D-STraG."""

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..scene import Cameras, Scene4D
from ..wan.fitting import Fit, FittedImage, fit_to_size
from ..wan.image_tokens import ImageTokenEncoder
from ..wan.latents import LATENT_CHANNELS, check_video_size, latent_size
from ..wan.pipeline import WanPipeline
from ..wan.sampling import (
    Branch,
    Progress,
    SamplingSettings,
    Velocity,
    denoise,
    initial_noise,
)
from ..wan.text import TextEncoder, check_prompt
from .conditioning import StragCondition, clip_picture, encode_condition, perceived_picture
from .lifted import lift_fitted, moved_scene
from .motion_perception import Guidance
from .profile import RELEASED, StragWeightsProfile

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    from ..devices.memory_modes import Placement
    from .motion_vae import MotionVAE
    from .transformer import StragTransformer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StragSettings:
    """How motion is generated. The defaults are those that the released weights were made for."""

    num_frames: int = 49
    """4k + 1; the released weights know 49."""

    size_hw: tuple[int, int] = (368, 512)
    """Height and width at which the networks see the image; multiples of 16."""

    fit: Fit = "crop"
    """How an image of other proportions gets that size: cut, or continued at its border."""

    max_depth: float | None = None
    """Points farther than this are left out of the scene; None keeps all."""

    drop_edges: bool = False
    """Leave out the pixels on both sides of depth edges, where depth is least sure."""

    negative_prompt: str = ""
    """What guidance moves away from."""

    motion_perception: bool = True
    """Guide the blocks by image features; off only to see what they do."""

    snap_to_edges: bool | None = None
    """Sharpen the decoded motion along the edges of image and depth; None: as the weights'
    profile says."""

    fps: float = 8.0
    """Frames per second of the scene; the released data has 8."""

    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    """Steps, guidance and schedule. The shift is the weights' own (see the profile)."""


class StragPipeline(WanPipeline):
    """Generates the motion of every pixel of an image."""

    def __init__(
        self,
        transformer: "StragTransformer",
        vae: "AutoencoderKLWan",
        motion_vae: "MotionVAE",
        text_encoder: TextEncoder,
        image_encoder: ImageTokenEncoder | None = None,
        *,
        profile: StragWeightsProfile = RELEASED,
        placement: "Placement | None" = None,
    ) -> None:
        """Join the networks.

        `vae` encodes pictures, `motion_vae` decodes motion; they may share one Wan VAE.
        `placement` says where the networks compute (None: where they are).
        """
        super().__init__(transformer, text_encoder, image_encoder, placement)
        self.strag = transformer
        self.vae = vae
        self.motion_vae = motion_vae
        self.profile = profile

    @torch.no_grad()
    def generate(
        self,
        image: Float[Tensor, "image_height image_width 3"],
        depth: Float[Tensor, "image_height image_width"],
        camera: Cameras,
        prompt: str,
        *,
        settings: StragSettings | None = None,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
    ) -> Scene4D:
        """Make a scene of `num_frames` frames from a picture (sRGB in [0, 1]) and its depth.

        `camera` is the picture's, one frame. The scene's points are the pixels at the model's
        size that show the picture, its source camera the picture's own, scaled (and, with `crop`,
        cut). Visibility is True where depth was usable: the network does not predict who hides
        whom.

        Raises:
            PromptError: the prompt is empty.
            VideoSizeError: frames are not 4k + 1, or the size is not a multiple of 16.
            ShapeError, DepthError: image, depth and camera differ, or no depth is usable.
            SamplingError: a network returned NaN; names the step.
        """
        settings = settings or StragSettings()
        # 1. Refuse what cannot work before anything slow starts.
        prompt = check_prompt(prompt)
        check_video_size(settings.num_frames, *settings.size_hw)
        fitted = fit_to_size(image, depth, camera, settings.size_hw, settings.fit)
        # 2. Lift: where the points start.
        lifted = lift_fitted(fitted, max_depth=settings.max_depth, drop_edges=settings.drop_edges)
        # 3. Tell the network what is to be seen, and what is to happen.
        condition = self._encode_condition(fitted, settings)
        text = self.encode_text(prompt, settings.negative_prompt)
        tokens = self.encode_image_tokens(clip_picture(fitted.image, self.profile))
        guidance = self._guidance(fitted, settings)
        # 4. From noise to the latent of the motion.
        size = latent_size(settings.num_frames, *settings.size_hw)
        noise = initial_noise((1, LATENT_CHANNELS, *size), generator, self.device)
        sampling = replace(self.planned(settings.sampling), shift=self.profile.shift)
        self.forget_cached_steps()
        with self.using(self.transformer):
            velocity = self._velocity(condition, tokens, guidance)
            latent = denoise(velocity, noise, text, sampling, progress=progress)
        # 5. Decode, undo the normalisation, and move the points.
        with self.using(self.motion_vae):
            decoded = self.motion_vae.decode(latent)[0].to(lifted.positions.device)
        normalized = rearrange(decoded, "c f h w -> f h w c")
        return moved_scene(
            normalized,
            lifted,
            self.profile,
            fps=settings.fps,
            snap_to_edges=settings.snap_to_edges,
        )

    def _encode_condition(self, fitted: FittedImage, settings: StragSettings) -> StragCondition:
        with self.using(self.vae):
            condition = encode_condition(
                self.vae,
                fitted.image[None].to(self.device),
                fitted.depth[None].to(self.device),
                settings.num_frames,
                self.profile,
            )
        return replace(
            condition,
            channels=condition.channels.to(self.device),
            reference_latent=condition.reference_latent.to(self.device),
        )

    def _guidance(self, fitted: FittedImage, settings: StragSettings) -> Guidance | None:
        if not settings.motion_perception:
            _log.info("Motion perception is off: the blocks get no image features.")
            return None
        picture = perceived_picture(fitted.image, self.profile).to(self.device)
        _, *latent_hw = latent_size(settings.num_frames, *settings.size_hw)
        # Not the whole transformer: moving its other 33 GB here would be for nothing.
        with self.using(self.strag.omnimae_extractor, self.strag.feature_adapter):
            features = self.strag.encode_image(picture, (latent_hw[0], latent_hw[1]))
        return Guidance(features=features, unguided_frame=self.profile.unguided_frame)

    def _velocity(
        self, condition: StragCondition, image_tokens: Tensor | None, guidance: Guidance | None
    ) -> Velocity:
        dtype = self.transformer.dtype

        def velocity(latent: Tensor, timestep: Tensor, text: Tensor, branch: Branch) -> Tensor:
            batch = len(latent)
            channels = condition.channels.expand(batch, -1, -1, -1, -1)
            tokens = image_tokens
            if tokens is not None:
                tokens = tokens.expand(batch, -1, -1).to(dtype)
            with self.transformer.cache_context(branch):
                return self.strag(
                    hidden_states=torch.cat([latent, channels], dim=1).to(dtype),
                    timestep=timestep,
                    encoder_hidden_states=text.to(dtype),
                    encoder_hidden_states_image=tokens,
                    reference_latent=condition.reference_latent.expand(batch, -1, -1, -1),
                    guidance=guidance,
                    return_dict=False,
                )[0]

        return velocity
