"""Video to Wan latent and back, in the units that the transformers were trained in.

Axes: video (batch, channel, frame, height, width) in [-1, 1]; latent (batch, 16, latent_frame,
latent_height, latent_width) with the VAE's published mean and std taken out. One latent frame is
the first frame, each further one is four frames; one latent pixel is 8x8 pixels.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

FRAMES_PER_LATENT = 4
PIXELS_PER_LATENT = 8
PIXELS_PER_TOKEN = 16
LATENT_CHANNELS = 16


class VideoSizeError(ValueError):
    """A frame count, height or width that the Wan networks cannot take."""


def valid_num_frames(num_frames: int) -> tuple[int, int]:
    """Return the nearest frame counts 4k + 1 at most and at least `num_frames`."""
    below = max(1, (num_frames - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1)
    above = max(1, math.ceil((num_frames - 1) / FRAMES_PER_LATENT) * FRAMES_PER_LATENT + 1)
    return below, above


def check_num_frames(num_frames: int, name: str = "num_frames") -> None:
    """Refuse frame counts other than 4k + 1, which the VAE would silently cut.

    Raises:
        VideoSizeError: names the nearest valid counts.
    """
    below, above = valid_num_frames(num_frames)
    if num_frames < 1 or below != num_frames:
        nearest = f"{below} or {above}" if below != above else f"{above}"
        raise VideoSizeError(f"{name} is {num_frames}; Wan needs 4k + 1 frames. Use {nearest}.")


def check_video_size(num_frames: int, height: int, width: int) -> None:
    """Refuse sizes that do not divide into latent frames and tokens.

    Raises:
        VideoSizeError: names the nearest valid frame counts, heights or widths.
    """
    check_num_frames(num_frames)
    for name, size in (("height", height), ("width", width)):
        if size < PIXELS_PER_TOKEN or size % PIXELS_PER_TOKEN:
            below = max(PIXELS_PER_TOKEN, size // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN)
            above = math.ceil(size / PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN
            nearest = f"{below} or {above}" if below < above else f"{below}"
            raise VideoSizeError(
                f"The {name} is {size}; Wan needs a multiple of {PIXELS_PER_TOKEN}. Use {nearest}."
            )


def latent_size(num_frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Return (latent_frame, latent_height, latent_width) of a video of a valid size."""
    check_video_size(num_frames, height, width)
    return (
        (num_frames - 1) // FRAMES_PER_LATENT + 1,
        height // PIXELS_PER_LATENT,
        width // PIXELS_PER_LATENT,
    )


def latent_statistics(
    vae: "AutoencoderKLWan", device: torch.device
) -> tuple[Float[Tensor, "1 channel 1 1 1"], Float[Tensor, "1 channel 1 1 1"]]:
    """Return the VAE's published latent mean and std."""
    mean = torch.tensor(vae.config["latents_mean"], dtype=torch.float32, device=device)
    std = torch.tensor(vae.config["latents_std"], dtype=torch.float32, device=device)
    return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)


def encode_distribution(
    vae: "AutoencoderKLWan", video: Float[Tensor, "batch 3 frame height width"]
) -> "DiagonalGaussianDistribution":
    """Encode a video to the VAE's posterior, in the VAE's own units. Gradients flow.

    Raises:
        VideoSizeError: the VAE would cut frames or pixels off.
    """
    check_video_size(*video.shape[2:])
    return vae.encode(video.to(vae.device, vae.dtype), return_dict=False)[0]


def encode_video(
    vae: "AutoencoderKLWan",
    video: Float[Tensor, "batch 3 frame height width"],
    *,
    sample: bool = False,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch channel latent_frame latent_height latent_width"]:
    """Encode a video in [-1, 1] to a normalised float32 latent: its mode, or a sample.

    Raises:
        VideoSizeError: the VAE would cut frames or pixels off.
    """
    posterior = encode_distribution(vae, video)
    latent = posterior.sample(generator) if sample else posterior.mode()
    mean, std = latent_statistics(vae, latent.device)
    return (latent.float() - mean) / std


def decode_video(
    vae: "AutoencoderKLWan",
    latent: Float[Tensor, "batch channel latent_frame latent_height latent_width"],
    *,
    clamp: bool = True,
) -> Float[Tensor, "batch 3 frame height width"]:
    """Decode a normalised latent to a float32 video. Inverse of `encode_video`, but for loss.

    diffusers clamps what the VAE decodes to [-1, 1], so no gradient comes from outside that
    range; `clamp=False` gives what the decoder computed.
    """
    mean, std = latent_statistics(vae, latent.device)
    own_units = (latent.float() * std + mean).to(vae.device, vae.dtype)
    if clamp:
        # Releases of diffusers differ in whether they clamp what was decoded in tiles.
        return vae.decode(own_units, return_dict=False)[0].float().clamp(-1, 1)
    if (unclamped := getattr(vae, "decode_unclamped", None)) is not None:
        return unclamped(own_units).float()  # runs on whole clips: `whole_clip.py`
    with _decoder_scaled(vae, _UNCLAMPED_SCALE):
        return vae.decode(own_units, return_dict=False)[0].float() / _UNCLAMPED_SCALE


_UNCLAMPED_SCALE = 2.0**-8
"""A power of two, so that scaling is exact; decoded values within +-256 pass the clamp."""


@contextmanager
def _decoder_scaled(vae: "AutoencoderKLWan", scale: float) -> Iterator[None]:
    # The clamp is the last line of diffusers' own decode loops. Scaling the last convolution's
    # output keeps values inside it, and keeps chunking, tiling and offload as they are.
    def scaled(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        return output * scale

    hook = vae.decoder.conv_out.register_forward_hook(scaled)
    try:
        yield
    finally:
        hook.remove()
