"""4D-STraG as a native MODEL of the host: its own Wan, with motion perception on the blocks.

One more entry in the host's list of known models, tied to a weight that only 4D-STraG has, so that
the host's loaders, samplers, LoRA loaders and memory management all work as for any Wan model. New
layers are built with the host's operations and keep their released names, which LoRA keys follow.

Guidance comes once per image: the host asks for extra conditions when sampling begins, and there
the image is encoded. Every step then has it as one more condition, batched by the host like text.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.conds
import comfy.ldm.wan.model
import comfy.model_base
import comfy.supported_models
import torch
from torch import Tensor

from ..more4d_backend.strag.motion_perception import (
    FeatureAdapter,
    Guidance,
    guidance_scope,
    guide_block,
)
from ..more4d_backend.strag.motion_preview import MotionPreview
from ..more4d_backend.strag.omnimae import OmniMAE
from ..more4d_backend.weights.architectures import omnimae_heads
from ..more4d_backend.weights.conversion import OMNIMAE_PREFIX, omnimae_training_parts
from ..more4d_backend.weights.files import WeightsError, first_five
from .preview import MotionLatentFormat

CONDITION_KEY = "more4d_picture"
"""Of the conditioning: a `StragPicture`."""

GATE = "blocks.0.spatial_guidance_self.gate"
"""A weight that 4D-STraG has and no other Wan model."""

_GUIDANCE = "more4d_guidance"
"""Where blocks find a call's guidance, in the host's transformer_options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StragPicture:
    """What conditioning for 4D-STraG has besides the host's own entries."""

    image: Tensor | None
    """What motion perception is shown, (1, 3, height, width); None to leave blocks unguided."""

    unguided_frame: int | None
    """See the backend's `Guidance`."""

    preview: MotionPreview
    """How to show latents of this picture's motion."""


class _Layers:
    """The host's operations with device and dtype filled in, as the backend's factories take."""

    def __init__(self, operations: Any, **settings: Any) -> None:
        for name in ("Linear", "Conv2d", "Conv3d", "LayerNorm"):
            setattr(self, name, partial(getattr(operations, name), **settings))


class GuidedBlock(comfy.ldm.wan.model.WanAttentionBlock):
    """A Wan block, guided at the inputs of self-attention and of the feed-forward part."""

    def __init__(
        self, *args: Any, feature_dim: int, operation_settings: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, operation_settings=operation_settings, **kwargs)
        guide_block(
            self,
            dim=self.dim,
            feature_dim=feature_dim,
            attention="self_attn",
            feed_forward="ffn",
            operations=_Layers(**operation_settings),
        )

    def forward(self, *args: Any, transformer_options: Any = None, **kwargs: Any) -> Tensor:
        options = transformer_options or {}
        with guidance_scope(options.get(_GUIDANCE)):
            return super().forward(*args, transformer_options=options, **kwargs)


class StragWanModel(comfy.ldm.wan.model.WanModel):
    """The host's Wan with guided blocks and the image encoder of motion perception."""

    def __init__(
        self,
        *,
        perception_dim: int,
        perception_depth: int,
        perception_heads: int,
        feature_dim: int,
        operations: Any,
        device: Any = None,
        **config: Any,
    ) -> None:
        block = partial(GuidedBlock, feature_dim=feature_dim)
        super().__init__(**config, wan_attn_block_class=block, operations=operations, device=device)
        # Precise, as the host has its patch embedding, and run once: not worth fewer bits.
        layers = _Layers(operations, device=device, dtype=torch.float32)
        self.omnimae_extractor = OmniMAE(perception_dim, perception_depth, perception_heads, layers)
        self.feature_adapter = FeatureAdapter(perception_dim, feature_dim, layers)

    def encode_image(self, image: Tensor, latent_hw: tuple[int, int]) -> Tensor:
        """Return the guidance features of an image (1, 3, height, width), where the image is."""
        grid_hw = [
            math.ceil(n / patch) for n, patch in zip(latent_hw, self.patch_size[1:], strict=True)
        ]
        return self.feature_adapter(self.omnimae_extractor(image), tuple(grid_hw))

    def forward_orig(
        self,
        *args: Any,
        transformer_options: Any = None,
        guidance_features: Tensor | None = None,
        unguided_frame: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        options = dict(transformer_options or {})
        if guidance_features is not None:
            options[_GUIDANCE] = Guidance(features=guidance_features, unguided_frame=unguided_frame)
        return super().forward_orig(*args, transformer_options=options, **kwargs)

    def load_state_dict(self, state_dict: Any, strict: bool = False, assign: bool = False) -> Any:
        # The host only logs what is missing, and would sample noise with it.
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        if result.missing_keys:
            raise WeightsError(
                f"The 4D-STraG file lacks {len(result.missing_keys)} weights: "
                f"{first_five(result.missing_keys)}. It is cut off or badly converted; download or "
                "convert it again: python -m more4d_backend download strag"
            )
        return result


class StragModel(comfy.model_base.WAN21):
    """What the host samples: asks for our conditioning, and encodes the image once."""

    diffusion_model: StragWanModel

    def __init__(self, model_config: Any, device: Any = None) -> None:
        # WAN21 fixes the network's class in its own constructor; its parent takes one.
        base: Any = super(comfy.model_base.WAN21, self)
        flow = comfy.model_base.ModelType.FLOW
        base.__init__(model_config, flow, device=device, unet_model=StragWanModel)
        self.image_to_video = False

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        noise = kwargs["noise"]
        picture = _checked(kwargs.get(CONDITION_KEY), kwargs.get("concat_latent_image"), noise)
        self.latent_format.begin(picture.preview)
        conds = super().extra_conds(**kwargs)
        if self.diffusion_model.img_emb is None:
            conds.pop("clip_fea", None)
        if picture.image is not None:
            image = picture.image.to(kwargs["device"], torch.float32)
            features = self.diffusion_model.encode_image(image, tuple(noise.shape[-2:]))
            conds["guidance_features"] = comfy.conds.CONDRegular(features)
            conds["unguided_frame"] = comfy.conds.CONDConstant(picture.unguided_frame)
        return conds


class STraG(comfy.supported_models.WAN21_T2V):
    """How the host recognises a 4D-STraG file."""

    unet_config = {"image_model": "wan2.1"}  # noqa: RUF012 (the host's own form)
    sampling_settings = {"shift": 5.0}  # noqa: RUF012
    latent_format = MotionLatentFormat

    @classmethod
    def matches(cls, unet_config: Any, state_dict: Any = None, unet_key_prefix: str = "") -> bool:
        # As `required_keys`, which older hosts look for without and newer ones with a prefix.
        if unet_config.get("image_model") != cls.unet_config["image_model"] or state_dict is None:
            return False
        return any(name.endswith(GATE) for name in state_dict)

    def get_model(self, state_dict: Any, prefix: str = "", device: Any = None) -> StragModel:
        # The file's metadata may say what shapes do not.
        self.unet_config = perception_sizes(state_dict, prefix) | self.unet_config
        return StragModel(self, device=device)

    def process_unet_state_dict(self, state_dict: Any) -> Any:
        # Only OmniMAE's own pretraining used them.
        unused = {OMNIMAE_PREFIX + name for name in omnimae_training_parts()}
        return {name: tensor for name, tensor in state_dict.items() if name not in unused}


def perception_sizes(state_dict: Any, prefix: str) -> dict[str, int]:
    """Read the sizes of motion perception from the shapes in a file.

    Raises:
        WeightsError: the file has gates but no image encoder.
    """
    trunk = f"{prefix}{OMNIMAE_PREFIX}trunk."
    norm, adapter = f"{trunk}norm.weight", f"{prefix}feature_adapter.0.weight"
    if norm not in state_dict or adapter not in state_dict:
        raise WeightsError(
            "This file has the gates of 4D-STraG but not its image encoder (omnimae_extractor, "
            "feature_adapter). Load the whole transformer: python -m more4d_backend download strag"
        )
    dim = state_dict[norm].shape[0]
    blocks = {name.removeprefix(f"{trunk}blocks.").split(".")[0] for name in state_dict}
    return {
        "perception_dim": dim,
        "perception_depth": sum(name.isdecimal() for name in blocks),
        "perception_heads": omnimae_heads(dim),
        "feature_dim": state_dict[adapter].shape[0],
    }


def register_models() -> None:
    """Make the host know 4D-STraG files and the folders of the embedded weights. Idempotent."""
    from .embedded import register_folders

    known = comfy.supported_models.models
    # First, or a file without image tokens is taken for plain text to video, and runs unguided.
    known[:] = [STraG, *(config for config in known if config.__name__ != STraG.__name__)]
    register_folders()


def _checked(picture: Any, channels: Tensor | None, noise: Tensor) -> StragPicture:
    if not isinstance(picture, StragPicture) or channels is None:
        raise ValueError(
            "The model is 4D-STraG, and its conditioning does not come from More4D STraG "
            "Conditioning. Connect that node's positive and negative outputs to the sampler, or "
            "load another model."
        )
    if channels.shape[2:] != noise.shape[2:]:
        raise ValueError(
            f"The latent has (frame, height, width) {tuple(noise.shape[2:])} and the conditioning "
            f"was made for {tuple(channels.shape[2:])}. Connect the latent output of More4D STraG "
            "Conditioning to the sampler."
        )
    return picture
