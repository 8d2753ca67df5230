"""The networks that a trainer begins with and those that it takes as given.

In the size `tiny`, what is taken as given and not named is the embedded file. Where that is not
wanted (`WeightFiles.from_scratch`) or not there, it gets random values from the run's seed.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from more4d_backend import tiny
from more4d_backend.strag.profile import OWN, RELEASED, StragWeightsProfile
from more4d_backend.strag.sizes import STRAG_SIZES, VISM_SIZES
from more4d_backend.tiny.text_encoder import ByteTextEncoder, ByteTextModel
from more4d_backend.wan.text import TEXT_TOKENS, TextEncoder, UMT5TextEncoder, load_tokenizer
from more4d_backend.weights import load_weights
from more4d_backend.weights.files import open_weights
from more4d_backend.weights.kinds import WeightKind, recognize
from more4d_backend.weights.model_loading import (
    load_byte_text,
    load_clip_vision,
    load_motion_vae,
    load_strag,
    load_umt5,
    load_wan_transformer,
    load_wan_vae,
)

from .recipes import MotionVaeConfig, ProfileName, SizeName, StragConfig, VismConfig, WeightFiles
from .run.settings import Precision, SettingsError

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    from more4d_backend.strag.motion_vae import MotionVAE
    from more4d_backend.strag.transformer import StragTransformer
    from more4d_backend.wan.image_tokens import ClipImageEncoder

_Module = TypeVar("_Module", bound=nn.Module)

_log = logging.getLogger(__name__)

PROFILES: dict[ProfileName, StragWeightsProfile] = {"released": RELEASED, "own": OWN}


def strag_profile(config: StragConfig) -> StragWeightsProfile:
    """Return the conventions of a training of 4D-STraG, without what it leaves out.

    An ablation's profile has a name of its own, so that nothing takes its weights for whole ones.
    """
    profile, ablation = PROFILES[config.profile], config.ablation
    if not ablation.left_out:
        return profile
    divide_by = "depth" if ablation.depth_normalization else "median"
    return replace(
        profile,
        name=f"{profile.name}-without-{'-'.join(ablation.left_out)}",
        motion=replace(profile.motion, divide_by=divide_by),
        depth_latent=ablation.depth_latent,
    )


TINY_VAE_WIDTH = 16
"""`base_dim` of the embedded VAE: 3.6 million parameters."""

_DOWNLOADED = {
    "omnimae": "omnimae",
    "motion_vae": "motion-vae",
    "wan_vae": "wan-vae",
    "umt5": "umt5",
    "umt5_tokenizer": "umt5-tokenizer",
    "clip": "clip",
}
"""Field of `WeightFiles` -> name that `download` knows it by."""

_EMBEDDED = {"motion_vae": "motion_vae", "wan_vae": "wan_vae", "text_encoder": "text_encoder"}
"""Field of `WeightFiles` -> name of the embedded file."""


class RandomTextEncoder:
    """Bytes to fixed random tokens that also tell their place: a stand-in for a text encoder."""

    def __init__(self, text_dim: int, seed: int) -> None:
        """Draw one token for each byte and one for each place."""
        self.model = _ByteTokens(text_dim, torch.Generator().manual_seed(seed)).eval()

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Float[Tensor, "prompt 512 text_dim"]:
        """Encode texts; tokens after a text's end are zero. See `TextEncoder`."""
        byte, place = self.model.byte, self.model.place
        tokens = place.new_zeros(len(prompts), *place.shape)
        for row, prompt in zip(tokens, prompts, strict=True):
            codes = torch.tensor(list(prompt.encode()[:TEXT_TOKENS]), dtype=torch.long)
            row[: len(codes)] = byte[codes.to(byte.device)] + place[: len(codes)]
        return tokens


class _ByteTokens(nn.Module):
    byte: Tensor
    place: Tensor

    def __init__(self, text_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        for name, rows in (("byte", 256), ("place", TEXT_TOKENS)):
            self.register_buffer(name, 0.5 * torch.randn(rows, text_dim, generator=generator))


def frozen_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of networks that are only run: bfloat16 where the training computes so."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def rgb_vae(
    files: WeightFiles, size: SizeName, *, seed: int, dtype: torch.dtype = torch.float32
) -> "AutoencoderKLWan":
    """Load the RGB VAE, frozen.

    Raises:
        SettingsError, WeightsError: no file, or not one of a Wan VAE.
    """
    path = _file(files, "wan_vae", size)
    if path is not None:
        return _frozen(load_wan_vae(path, dtype=dtype))
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    with _seeded(seed, "RGB VAE"):
        vae = AutoencoderKLWan(base_dim=TINY_VAE_WIDTH)
    return _frozen(_cast(vae, dtype))


def motion_vae_to_train(config: MotionVaeConfig) -> "MotionVAE":
    """Make the motion VAE to begin with, in float32: adapters and the VAE's decoder learn.

    Raises:
        SettingsError, WeightsError: no file, or not one of a motion VAE or a Wan VAE.
    """
    from more4d_backend.strag.motion_vae import DecoderAdapter, EncoderAdapter, MotionVAE

    latents = PROFILES[config.profile].latents
    if config.weights.motion_vae is not None:
        encoder = _file(config.weights, "wan_vae", config.size)
        model = load_motion_vae(
            config.weights.motion_vae, latents, encoder=encoder, dtype=torch.float32
        )
    else:
        vae = rgb_vae(config.weights, config.size, seed=config.run.seed)
        with _seeded(config.run.seed, "adapters of the motion VAE"):
            width, norm = config.adapter_width, config.adapter_norm
            encoder = EncoderAdapter(width, normalize=norm)
            decoder = DecoderAdapter(width, normalize=norm)
            model = MotionVAE(vae, encoder, decoder, latents)
    model.requires_grad_(False)
    for part in (model.encoder_prompt, model.decoder_prompt, model.vae.decoder):
        part.requires_grad_(True)
    return model.train()


def motion_vae(
    files: WeightFiles,
    size: SizeName,
    profile: StragWeightsProfile,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> "MotionVAE":
    """Load the motion VAE, frozen.

    Raises:
        SettingsError, WeightsError: no file, not one of a motion VAE, or not for the RGB VAE.
    """
    path = _file(files, "motion_vae", size)
    if path is not None:
        if files.motion_vae is None and files.wan_vae is not None and size == "tiny":
            raise SettingsError(
                f"weights.wan_vae is {files.wan_vae}, and the embedded motion VAE was trained on "
                "another encoder. Name weights.motion_vae too, or set weights.from_scratch."
            )
        encoder = _file(files, "wan_vae", size)
        return _frozen(load_motion_vae(path, profile.latents, encoder=encoder, dtype=dtype))
    from more4d_backend.strag.motion_vae import DecoderAdapter, EncoderAdapter, MotionVAE

    vae = rgb_vae(files, size, seed=seed, dtype=dtype)
    with _seeded(seed, "adapters of the motion VAE"):
        adapters = EncoderAdapter(32, normalize=False), DecoderAdapter(32, normalize=False)
    return _frozen(_cast(MotionVAE(vae, *adapters, profile.latents), dtype))


def text_encoder(
    files: WeightFiles, size: SizeName, *, seed: int, dtype: torch.dtype = torch.float32
) -> TextEncoder:
    """Load the text encoder, frozen.

    Raises:
        SettingsError, WeightsError: no file, or not one of a text encoder.
    """
    if size == "tiny" and (path := _file(files, "text_encoder", size)) is not None:
        return ByteTextEncoder(_frozen(load_byte_text(path, dtype=dtype)))
    path, tokenizer = _file(files, "umt5", size), _file(files, "umt5_tokenizer", size)
    if path is None or tokenizer is None:
        _log.warning("The text encoder has random values from seed %d", seed)
        return RandomTextEncoder(STRAG_SIZES[size].wan.text_dim, seed)
    return UMT5TextEncoder(_frozen(load_umt5(path, dtype=dtype)), load_tokenizer(tokenizer))


def text_encoder_to_train(files: WeightFiles, seed: int) -> ByteTextModel:
    """Make the text encoder that reads bytes to begin with, in float32: everything learns.

    Raises:
        WeightsError: not a file of one.
    """
    if files.text_encoder is not None:
        return load_byte_text(files.text_encoder, dtype=torch.float32).train()
    with _seeded(seed, "text encoder"):
        return ByteTextModel().train()


def image_encoder(
    files: WeightFiles, size: SizeName, *, dtype: torch.dtype = torch.float32
) -> "ClipImageEncoder | None":
    """Load the image encoder, frozen; None for sizes without image tokens.

    Raises:
        SettingsError, WeightsError: no file, or not one of CLIP.
    """
    if STRAG_SIZES[size].wan.image_dim is None:
        return None
    from more4d_backend.wan.image_tokens import ClipImageEncoder

    path = _file(files, "clip", size)
    assert path is not None  # only tiny sizes go without, and those have no image tokens
    return ClipImageEncoder(_frozen(load_clip_vision(path, dtype=dtype)))


def strag_to_train(config: StragConfig) -> "StragTransformer":
    """Make the 4D-STraG transformer to begin with, in float32.

    Everything learns but, unless the recipe says so, the image encoder of motion perception.

    Raises:
        SettingsError, WeightsError: no file, or not one of Fun-Control or 4D-STraG.
    """
    from more4d_backend.strag.transformer import StragTransformer

    base = _base(config.weights, config.size, "fun-control")
    size = STRAG_SIZES[config.size]
    if base is None:
        with _seeded(config.run.seed, "4D-STraG transformer"):
            model = StragTransformer(**size.config())
    elif recognize(open_weights(base)).kind is WeightKind.STRAG:
        model = load_strag(base, dtype=torch.float32)
    else:
        omnimae = _file(config.weights, "omnimae", "14b")
        assert omnimae is not None
        with _seeded(config.run.seed, None):
            model = StragTransformer.from_fun_control(
                load_weights(base, WeightKind.FUN_CONTROL),
                load_weights(omnimae, WeightKind.OMNIMAE),
                size,
                dtype=torch.float32,
            )
    model = model.float().train().requires_grad_(True)
    model.omnimae_extractor.requires_grad_(config.train_perception)
    if not config.ablation.motion_perception:
        for name, parameter in model.named_parameters():
            if "omnimae_extractor" in name or "feature_adapter" in name or "guidance" in name:
                parameter.requires_grad_(False)
    return model


def vism_to_train(config: VismConfig) -> "WanTransformer3DModel":
    """Make the Fun-InP transformer to begin with: whole in float32, or frozen under a new LoRA.

    Raises:
        SettingsError, WeightsError: no file, or not one of Fun-InP.
    """
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    from more4d_backend.vism.lora import add_lora

    base = _base(config.weights, config.size, "fun-inp")
    if base is None and config.mode == "lora" and not config.weights.from_scratch:
        base = _embedded("vism")
    dtype = torch.float32 if config.mode == "full" else frozen_dtype(config.run.precision)
    if base is None:
        with _seeded(config.run.seed, "4D-ViSM transformer"):
            model = _cast(WanTransformer3DModel(**VISM_SIZES[config.size].config()), dtype)
    else:
        model = load_wan_transformer(base, WeightKind.FUN_INP, dtype=dtype)
    if config.mode == "full":
        return model.train().requires_grad_(True)
    model.requires_grad_(False)
    with _seeded(config.run.seed, None):
        add_lora(model, rank=config.lora_rank, alpha=config.lora_alpha)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model.train()


def fields_without_file(files: WeightFiles, size: SizeName, *fields: str) -> list[str]:
    """Return those of some fields whose network would get random values without being asked to.

    That is well for a training in small, which shows what it does. What is kept needs more.
    """
    if size != "tiny" or files.from_scratch:
        return []
    missing = [name for name in fields if getattr(files, name) is None]
    return [name for name in missing if not _embedded_path(name).is_file()]


def _base(files: WeightFiles, size: SizeName, downloaded: str) -> Path | None:
    if files.base is not None or size == "tiny":
        return files.base
    if size != "14b":
        raise SettingsError(f"weights.base must be named for the size {size}.")
    from more4d_backend.generation import find_files

    return find_files({}, needed=(downloaded,))[downloaded]


def _file(files: WeightFiles, field: str, size: SizeName) -> Path | None:
    path: Path | None = getattr(files, field)
    if path is not None:
        return path
    if size == "tiny":
        return None if files.from_scratch or field not in _EMBEDDED else _embedded(_EMBEDDED[field])
    from more4d_backend.generation import find_files

    name = _DOWNLOADED[field]
    return find_files({}, needed=(name,))[name]


def _embedded_path(field: str) -> Path:
    return tiny.WEIGHTS_FOLDER / tiny.relative_path(_EMBEDDED.get(field, field))


def _embedded(name: str) -> Path | None:
    path = _embedded_path(name)
    if not path.is_file():
        return None
    _log.info("Taken as given: the embedded %s", path)
    return path


def _frozen(module: _Module) -> _Module:
    return module.requires_grad_(False).eval()


def _cast(module: _Module, dtype: torch.dtype) -> _Module:
    nn.Module.to(module, dtype)  # in place; diffusers' own `to` has no type
    return module


@contextmanager
def _seeded(seed: int, what: str | None) -> Iterator[None]:
    """Draw new parameters from a seed, and leave the global random state as it was."""
    if what is not None:
        _log.warning("The %s has random values from seed %d", what, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
