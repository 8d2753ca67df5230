"""Latents of windows to geometry on the CPU, decoding no more than the alignment needs.

Point maps are decoded in full. A ray map only has to give a camera and a disparity map its scale
and shift, so they are decoded from averaged latents. benchmarks/geo4d_end_to_end.py and
docs/geo4d.md say what that costs and saves.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .batching import ShrinkingBatches
from .framing import Framing
from .modalities import (
    DISPARITY,
    POINTS,
    RAY_DIRECTIONS,
    RAY_MOMENTS,
    ModalitySettings,
    window_from_images,
)
from .model import Geo4DNetworks
from .predictions import RayMaps, WindowPrediction
from .sizes import VAESize
from .windows import Window

_SMALLEST_LATENT = 8
"""Sides of a reduced latent, at least: below, the decoder's convolutions see mostly its border, and
cameras become worse."""
_SMALLEST_SIGMA = 1e-4
"""So that sigma does not become 0 in half precision."""


class DecodingError(ValueError):
    """Settings that cannot work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingSettings:
    """What is decoded, and how finely."""

    ray_reduction: int | None = None
    """1, 2 or 4: ray maps are smaller by it along each side. None: 4, or less for small latents,
    and 1 for a VAE that is smaller than the released one."""

    disparity_reduction: int | None = None
    """The same for disparity. None: 2, or less in the same way."""

    disparity: bool = True
    """Decode disparity; without it alignment must not ask for it."""

    rays: bool = True
    """Decode ray maps; likewise."""

    pictures_per_batch: int = 8
    """Pictures that are decoded at one time. Where memory runs out, fewer are tried."""

    modalities: ModalitySettings = field(default_factory=ModalitySettings)
    """See `ModalitySettings`."""

    def __post_init__(self) -> None:
        for name in ("ray_reduction", "disparity_reduction"):
            if getattr(self, name) not in (None, 1, 2, 4):
                raise DecodingError(f"{name} is {getattr(self, name)}; expected 1, 2, 4 or None.")
        if self.pictures_per_batch < 1:
            raise DecodingError(
                f"pictures_per_batch is {self.pictures_per_batch}; expected at least 1."
            )

    def for_latents(self, latent_hw: tuple[int, int], vae: VAESize) -> "DecodingSettings":
        """Return settings with both reductions chosen.

        Latents are averaged for VAEs as wide as the released one only. The embedded one decodes
        averaged ones badly: moments are then wrong by three quarters of their deviation, instead of
        a fifth.

        Raises:
            DecodingError: one that was asked for does not divide the latents.
        """
        for name in ("ray_reduction", "disparity_reduction"):
            asked = getattr(self, name) or 1
            if any(side % asked for side in latent_hw):
                raise DecodingError(
                    f"{name} is {asked}, which does not divide latents of {latent_hw[0]} x "
                    f"{latent_hw[1]}. Use a smaller one, or None: the largest that fits."
                )
        rays, disparity = (4, 2) if vae.channels >= VAESize().channels else (1, 1)
        return replace(
            self,
            ray_reduction=self.ray_reduction or _reduction(latent_hw, rays),
            disparity_reduction=self.disparity_reduction or _reduction(latent_hw, disparity),
        )


@torch.no_grad()
def decode_windows(
    networks: Geo4DNetworks,
    latents: Float[Tensor, "window 16 frame latent_height latent_width"],
    windows: Sequence[Window],
    framing: Framing,
    settings: DecodingSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[WindowPrediction]:
    """Decode windows one after the other; the predictions are on the CPU, in half precision.

    What repeats the last frame of a short video is not decoded, and the border of a padded
    picture is not valid.

    Raises:
        DecodingError: a reduction does not divide the latents.
        DeviceMemoryError: not even one picture fits the device.
    """
    latent_hw = latents.shape[-2], latents.shape[-1]
    settings = (settings or DecodingSettings()).for_latents(latent_hw, networks.size.vae)
    batches = ShrinkingBatches(
        settings.pictures_per_batch,
        "pictures to decode",
        networks.device,
        "Use a smaller network size.",
    )
    predictions = []
    for number, (latent, window) in enumerate(zip(latents, windows, strict=True)):
        of_frames = rearrange(latent[:, : window.num_frames], "c f h w -> f c h w")
        prediction = _decode_window(networks, of_frames, window, settings, batches)
        predictions.append(_on_cpu(_without_border(prediction, framing)))
        if progress is not None:
            progress(number + 1, len(windows))
    return predictions


def window_bytes(num_frames: int, network_hw: tuple[int, int]) -> int:
    """Host memory that a decoded window takes, at most."""
    per_pixel = 2 * (3 + 1) + 1 + 2 * 1 + 2 * 6  # points, sigma, valid, disparity, rays
    return num_frames * math.prod(network_hw) * per_pixel


def _decode_window(
    networks: Geo4DNetworks,
    latents: Float[Tensor, "frame 16 height width"],
    window: Window,
    settings: DecodingSettings,
    batches: ShrinkingBatches,
) -> WindowPrediction:
    vae, device = networks.vae, networks.device

    def images(maps: Tensor, reduction: int | None) -> Tensor:
        parts = batches.run(
            len(maps), lambda part: vae.decode(maps[part].to(device), reduction=reduction or 1)
        )
        return torch.cat(parts)

    directions = moments = disparity = None
    if settings.rays:  # both kinds at one time: fewer and fuller calls
        both = torch.cat([latents[:, RAY_DIRECTIONS], latents[:, RAY_MOMENTS]])
        directions, moments = images(both, settings.ray_reduction).chunk(2)
    if settings.disparity:
        disparity = images(latents[:, DISPARITY], settings.disparity_reduction)
    decoded = batches.run(
        len(latents), lambda part: vae.decode_points(latents[part, POINTS].to(device))
    )
    prediction = window_from_images(
        window.start,
        point_image=torch.cat([part.points for part in decoded]),
        sigma_logit=torch.cat([part.logit for part in decoded]),
        direction_image=directions,
        moment_image=moments,
        disparity_image=disparity,
        settings=settings.modalities,
    )
    return prediction.mirrored() if window.mirrored else prediction


def _without_border(prediction: WindowPrediction, framing: Framing) -> WindowPrediction:
    """Take the border of a padded picture out of everything that is looked at."""
    if (framing.rows, framing.columns) == tuple(slice(0, size) for size in framing.network_hw):
        return prediction
    valid = torch.zeros_like(prediction.valid)
    valid[:, framing.rows, framing.columns] = prediction.valid[:, framing.rows, framing.columns]
    rays = prediction.rays
    if rays is not None:
        rows, columns = framing.shown_in(*rays.directions.shape[1:3])
        # Not cut off: the place of a ray tells the focal length, and where its weight lies.
        shown = torch.zeros_like(rays.directions[..., :1], dtype=torch.bool)
        shown[:, rows, columns] = True
        directions, moments = rays.directions.where(shown, 0), rays.moments.where(shown, 0)
        rays = RayMaps(directions=directions, moments=moments) if shown.any() else None
    return replace(prediction, valid=valid, rays=rays)


def _on_cpu(prediction: WindowPrediction) -> WindowPrediction:
    def half(values: Tensor) -> Tensor:
        return values.half().cpu()

    sigma, disparity, rays = prediction.sigma, prediction.disparity, prediction.rays
    return replace(
        prediction,
        points=half(prediction.points),
        valid=prediction.valid.cpu(),
        sigma=None if sigma is None else half(sigma.clamp_min(_SMALLEST_SIGMA)),
        disparity=None if disparity is None else half(disparity),
        rays=None
        if rays is None
        else RayMaps(directions=half(rays.directions), moments=half(rays.moments)),
    )


def _reduction(latent_hw: tuple[int, int], wanted: int) -> int:
    """The largest power of two, up to what is wanted, that leaves a latent of some size."""
    return next(
        reduction
        for reduction in (4, 2, 1)
        if reduction == 1
        or (
            reduction <= wanted
            and all(side % reduction == 0 for side in latent_hw)
            and min(latent_hw) // reduction >= _SMALLEST_LATENT
        )
    )
