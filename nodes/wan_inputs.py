"""What the STraG and ViSM nodes ask of the host's models: the right kind, and latents of videos."""

from collections.abc import Callable
from itertools import count
from typing import Any

import comfy.clip_vision
import comfy.latent_formats
import comfy.ldm.wan.vae
import comfy.model_base
import comfy.model_management
import node_helpers
import torch
from einops import rearrange
from torch import Tensor

from ..more4d_backend.strag.sizes import FUN_INP_CHANNELS, IMAGE_DIM, STRAG_SIZES
from ..more4d_backend.wan.image_tokens import zero_image_tokens
from ..more4d_backend.wan.latents import LATENT_CHANNELS, latent_size
from .memory import report_progress
from .wan_model import StragModel

Conditioning = list[list[Any]]

TINY_TEXT = "more4d_tiny_text"
"""Entry of conditioning whose text the embedded encoder read."""

_TINY_VAE_WIDTH, _FULL_VAE_WIDTH = 16, 96
"""Channels of the embedded VAEs' outermost layers, and of Wan's."""


class WrongModelError(ValueError):
    """A model of another kind than a node needs."""


def check_strag(model: Any) -> None:
    """Refuse models other than 4D-STraG.

    Raises:
        WrongModelError: says what it is and what to load.
    """
    if not isinstance(model.model, StragModel):
        raise WrongModelError(
            f"The model is {_described(model)}, not 4D-STraG. Choose a 4D-STraG transformer in "
            "Load Diffusion Model; more4d_tiny_strag.safetensors comes with the pack."
        )


def check_vism(model: Any) -> None:
    """Refuse models other than a Wan inpainting transformer.

    Raises:
        WrongModelError: says what it is and what to load.
    """
    wan = isinstance(model.model, comfy.model_base.WAN21) and not isinstance(
        model.model, StragModel
    )
    if not wan or _input_channels(model) != FUN_INP_CHANNELS:
        raise WrongModelError(
            f"The model is {_described(model)}. 4D-ViSM fills holes with a Wan2.1-Fun-InP "
            f"transformer ({FUN_INP_CHANNELS} input channels) and the ViSM LoRA on it: choose it "
            "in Load Diffusion Model; more4d_tiny_vism.safetensors comes with the pack."
        )


def check_text(model: Any, *conditionings: Conditioning) -> None:
    """Refuse text that was encoded for models of another size.

    Raises:
        WrongModelError: says which node to use instead.
    """
    tiny_model = _is_tiny(model)
    for _, entries in (entry for conditioning in conditionings for entry in conditioning):
        tiny_text = entries.get(TINY_TEXT, False)
        if tiny_text and not tiny_model:
            raise WrongModelError(
                "The text was encoded by Tiny Text Encode, which only the tiny models understand. "
                "Use Load CLIP (umt5_xxl, type wan) and CLIP Text Encode for this model."
            )
        if tiny_model and not tiny_text:
            raise WrongModelError(
                "The model is a tiny one, which only understands text of the node Tiny Text Encode "
                "(More4D). Use that instead of CLIP Text Encode, for both prompts."
            )


def check_vae_sizes(model: Any, vaes: dict[str, Any]) -> None:
    """Refuse the embedded VAEs for models of another size, and Wan's for the tiny ones.

    Both encode to latents of the same shape, and what the other model makes of them is noise.
    `vaes` are by the name of the node that loads them.

    Raises:
        WrongModelError: says which file to choose there.
    """
    for loader, vae in vaes.items():
        width = vae.first_stage_model.dim
        if width == _TINY_VAE_WIDTH and not _is_tiny(model):
            raise WrongModelError(
                f"The VAE of {loader} is a tiny one, which only the tiny models understand. Choose "
                "the file that belongs to this model there."
            )
        if width == _FULL_VAE_WIDTH and _is_tiny(model):
            raise WrongModelError(
                f"The model is a tiny one, and the VAE of {loader} is not. Choose the file there "
                "whose name begins with more4d_tiny."
            )


def video_encoder(vae: Any, num_videos: int = 1) -> Callable[[Tensor], Tensor]:
    """Return the backend's form of a host's VAE: video in [-1, 1] to normalised latent.

    It fills the node's progress bar by so many videos, and obeys Cancel before each.

    Raises:
        WrongModelError: not the Wan 2.1 VAE.
    """
    network = getattr(vae, "first_stage_model", None)
    if not isinstance(network, comfy.ldm.wan.vae.WanVAE) or vae.output_channels != 3:
        kind = type(network).__module__.removeprefix("comfy.ldm.").removesuffix(".vae")
        channels = getattr(vae, "latent_channels", "unknown")
        raise WrongModelError(
            f"The VAE is of another family ({kind}, {channels} latent channels). These models see "
            "pictures by the Wan 2.1 VAE (16 channels): choose wan_2.1_vae.safetensors in Load "
            "VAE; more4d_tiny_wan_vae.safetensors comes with the pack, for the tiny models."
        )

    progress, done = report_progress(), count()

    def encode(video: Tensor) -> Tensor:
        progress(next(done), num_videos)
        pixels = rearrange((video + 1) / 2, "1 c f h w -> f h w c")
        return comfy.latent_formats.Wan21().process_in(vae.encode(pixels).float())

    return encode


def raw_latent(normalized: Tensor) -> Tensor:
    """Give latents, stacked by channel, the units that the host's conditioning has."""
    raw = [
        comfy.latent_formats.Wan21().process_out(part)
        for part in normalized.split(LATENT_CHANNELS, dim=1)
    ]
    return torch.cat(raw, dim=1)


def empty_latent(num_frames: int, height: int, width: int) -> dict[str, Tensor]:
    """Return the latent that sampling starts from."""
    size = (1, LATENT_CHANNELS, *latent_size(num_frames, height, width))
    return {"samples": torch.zeros(size, device=comfy.model_management.intermediate_device())}


def image_tokens(given: Any, picture: Tensor | None = None) -> Any:
    """Return CLIP's output as the host keeps it: what was given, or of `picture`, or zeros.

    Always something: without it the host's networks with image tokens take the text for them.

    Raises:
        WrongModelError: of another CLIP.
    """
    if given is None:
        given = comfy.clip_vision.Output()
        given.penultimate_hidden_states = zero_image_tokens()
    elif isinstance(given, comfy.clip_vision.ClipVisionModel) and picture is not None:
        given = given.encode_image(picture[None], crop=False)
    width = given.penultimate_hidden_states.shape[-1]
    if width != IMAGE_DIM:
        raise WrongModelError(
            f"The CLIP vision model gives tokens of width {width}; Wan sees images by CLIP "
            f"ViT-H/14 ({IMAGE_DIM}). Choose clip_vision_h.safetensors in Load CLIP Vision."
        )
    return given


def conditioned(
    positive: Conditioning, negative: Conditioning, values: dict[str, Any]
) -> tuple[Conditioning, Conditioning]:
    """Tell both branches of guidance the same."""
    return (
        node_helpers.conditioning_set_values(positive, values),
        node_helpers.conditioning_set_values(negative, values),
    )


def _is_tiny(model: Any) -> bool:
    return model.model.diffusion_model.dim == STRAG_SIZES["tiny"].wan.dim


def _described(model: Any) -> str:
    name = type(model.model.model_config).__name__
    channels = _input_channels(model)
    return name if channels is None else f"{name} with {channels} input channels"


def _input_channels(model: Any) -> int | None:
    embedding = getattr(model.model.diffusion_model, "patch_embedding", None)
    weight = getattr(embedding, "weight", None)
    return None if weight is None else weight.shape[1]
