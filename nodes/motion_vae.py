"""The motion-sensitive VAE on the host's own Wan VAE: normalised motion to latents and back.

The host's VAE object around it decides about memory, precision and tiling, as for any VAE. Latents
here are in the units that the transformer predicts, as in the backend's `MotionVAE`.
"""

from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.ldm.wan.vae
import comfy.model_management
import comfy.ops
import comfy.sd
from torch import Tensor, nn

from ..more4d_backend.strag.motion_preview import LinearMotion, fit_linear_motion
from ..more4d_backend.strag.motion_vae import FRAMES_PER_CALL, DecoderAdapter, EncoderAdapter
from ..more4d_backend.strag.profile import OWN, RELEASED, StragWeightsProfile
from ..more4d_backend.tiny import embedded_file
from ..more4d_backend.wan.latents import PIXELS_PER_LATENT
from ..more4d_backend.weights import compare, load_into, load_weights
from ..more4d_backend.weights.conversion import open_model, to_original
from ..more4d_backend.weights.files import StoredTensor, WeightsError
from ..more4d_backend.weights.kinds import WeightKind
from ..more4d_backend.weights.model_loading import with_encoder

PROFILES = {profile.name: profile for profile in (RELEASED, OWN)}
"""How weights were trained, by name."""

_ADAPTER_BUFFERS = 4
"""Pictures of the adapter's width that are in memory at one time."""


class HostMotionVAE:
    """A motion VAE whose memory the host manages."""

    def __init__(self, vae: comfy.sd.VAE, profile: StragWeightsProfile) -> None:
        self.vae = vae
        self.profile = profile
        self._format = comfy.latent_formats.Wan21()
        self._linear: LinearMotion | None = None

    @classmethod
    def load(cls, path: Path, profile: StragWeightsProfile | None = None) -> "HostMotionVAE":
        """Load a motion VAE. `profile` None: as the file says, else that of the released one.

        Raises:
            WeightsError: not a whole motion VAE; names what it is.
        """
        profile = profile or profile_of(path)
        try:
            tensors = load_weights(path, WeightKind.MOTION_VAE, WeightKind.MOTION_DECODER)
        except WeightsError as e:
            raise WeightsError(
                f"{e} Choose another file in Load Motion VAE: more4d_tiny_motion_vae.safetensors "
                "comes with the pack, and its help page says how the published one is made."
            ) from e
        # Only the embedded file comes without an encoder, which is that of the embedded VAE.
        alone = not any(name.startswith("vae.encoder.") for name in tensors)
        whole = with_encoder(path, tensors, embedded_file("wan_vae") if alone else None)
        original = to_original(WeightKind.MOTION_VAE, whole)
        return cls(_vae_with_adapters(path, original, profile), profile)

    @property
    def linear(self) -> LinearMotion:
        """What latents say of motion without decoding; fitted when it is first asked for."""
        if self._linear is None:
            self._linear = fit_linear_motion(self.encode)
        return self._linear

    def encode(self, motion: Tensor) -> Tensor:
        """Encode normalised motion (frame, height, width, 3) to a latent (1, 16, ...)."""
        wan_units = self._format.process_in(self.vae.encode(motion).float())
        return self.profile.latents.standardized(wan_units)

    def decode(self, latent: Tensor) -> Tensor:
        """Decode a latent (1, 16, ...) to normalised motion (frame, height, width, 3)."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        wan_units = self.profile.latents.wan_units(latent.float())
        return self.vae.decode(self._format.process_out(wan_units))[0].float()


class _MotionWanVAE(comfy.ldm.wan.vae.WanVAE):
    """The host's Wan VAE with an adapter at each end, inside what the host tiles and offloads."""

    encoder_prompt: EncoderAdapter
    decoder_prompt: DecoderAdapter
    clamp_decoded: bool

    def encode(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().encode(self.encoder_prompt.adapt(x), *args, **kwargs)

    def decode(self, z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        video = super().decode(z, *args, **kwargs)
        return self.decoder_prompt.adapt(video.clamp(-1, 1) if self.clamp_decoded else video)


def profile_of(path: Path) -> StragWeightsProfile:
    """Return how a file's metadata says it was trained; the released way where it says nothing.

    Raises:
        WeightsError: an unknown way.
    """
    name = open_model(path).metadata.get("more4d_profile", RELEASED.name)
    if name not in PROFILES:
        known = ", ".join(PROFILES)
        raise WeightsError(
            f"{path} was trained with the profile {name!r}; known are {known}. Update the pack, or "
            "choose one of these as weights_profile."
        )
    return PROFILES[name]


def _vae_with_adapters(
    path: Path, tensors: dict[str, StoredTensor], profile: StragWeightsProfile
) -> comfy.sd.VAE:
    inner = {k.removeprefix("vae."): t for k, t in tensors.items() if k.startswith("vae.")}
    vae = comfy.sd.VAE(sd={name: tensor.read() for name, tensor in inner.items()})
    network: Any = vae.first_stage_model
    if differences := compare(network.state_dict(), inner):
        raise WeightsError(f"{path} does not fit the host's Wan VAE. {differences}")
    # The host has built the network already, around memory management of its own.
    network.__class__ = _MotionWanVAE
    network.clamp_decoded = profile.latents.clamp_decoded
    for name, adapter_class in (
        ("encoder_prompt", EncoderAdapter),
        ("decoder_prompt", DecoderAdapter),
    ):
        parts = {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(name)}
        adapter: nn.Module = adapter_class(
            parts["conv_in.weight"].shape[0],
            operations=comfy.ops.disable_weight_init,
            normalize="norm_out.weight" in parts,
        )
        load_into(adapter, parts, source=str(path))
        setattr(network, name, adapter.eval().requires_grad_(False).to(vae.vae_dtype))
    comfy.model_management.archive_model_dtypes(network)
    vae.process_input = vae.process_output = _unchanged
    vae.memory_used_encode = _with_adapter(vae.memory_used_encode, network.encoder_prompt, 1)
    vae.memory_used_decode = _with_adapter(
        vae.memory_used_decode, network.decoder_prompt, PIXELS_PER_LATENT
    )
    return vae


def _unchanged(motion: Tensor) -> Tensor:
    return motion


def _with_adapter(estimate: Any, adapter: Any, scale: int) -> Any:
    """The host's estimate of memory, or the adapter's where that is larger."""
    values = FRAMES_PER_CALL * _ADAPTER_BUFFERS * adapter.conv_in.out_channels * scale**2

    def larger(shape: Any, dtype: Any) -> float:
        size = comfy.model_management.dtype_size(dtype)
        return max(estimate(shape, dtype), values * shape[-2] * shape[-1] * size)

    return larger
