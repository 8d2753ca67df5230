"""What the motion VAE keeps of a scene's motion: numbers and a picture.

No transformer trained on its latents can do better than this.
"""

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from ..files.contact_sheet import contact_sheet
from ..motion import denormalize_motion, normalize_motion
from ..scene import PointTracks, Scene4D
from ..wan.latents import PIXELS_PER_TOKEN, valid_num_frames
from .motion_vae import MotionVAE
from .profile import StragWeightsProfile

if TYPE_CHECKING:
    from PIL.Image import Image

_log = logging.getLogger(__name__)

_SAMPLES = 1_000_000
"""Enough values for a quantile, and few enough for torch.quantile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionReconstruction:
    """Motion before and after the VAE. Only visible points with finite positions count."""

    original: Float[Tensor, "frame height width 3"]
    """Normalised motion; 0 where a point does not count."""

    reconstructed: Float[Tensor, "frame height width 3"]
    """Normalised motion after encoding and decoding."""

    counts: Bool[Tensor, "frame height width"]
    """True where the point is visible in that frame and has a position there and in frame 0."""

    relative_error: float | None
    """sum |reconstructed - original| / sum |original|, frame 0 left out; None if nothing moves."""

    frame_relative_errors: tuple[float | None, ...]
    """The same for each frame, frame 0 included; None where nothing has moved."""

    mean_error: float
    """Mean distance between reconstructed and original positions, in units of the world."""

    largest_error: float
    """Largest such distance."""

    mean_motion: float
    """Mean distance of positions from those of frame 0, in units of the world."""

    def describe(self) -> str:
        """Say in one sentence what was lost."""
        relative = "nothing moves" if self.relative_error is None else f"{self.relative_error:.1%}"
        return (
            f"Relative error of the normalised motion: {relative}. In world units: points move "
            f"{self.mean_motion:.4g} on average and come back {self.mean_error:.4g} off, at most "
            f"{self.largest_error:.4g}."
        )


@torch.no_grad()
def reconstruct_motion(
    scene: Scene4D, motion_vae: MotionVAE, profile: StragWeightsProfile
) -> MotionReconstruction:
    """Send a scene's motion through the motion VAE and compare.

    Frames are repeated up to 4k + 1 and pixels up to multiples of 16 for the network, and cut off
    again before anything is measured.

    Raises:
        ValueError: the scene's points are not tracks on a pixel grid.
        MotionError: the profile cannot normalise the motion.
    """
    tracks = _grid_tracks(scene)
    height, width = _grid(tracks)
    finite = tracks.positions.isfinite().all(-1)
    counts = tracks.visibility & finite & finite[0]
    normalized = normalize_motion(tracks.positions, scene.cameras, profile.motion)
    normalized = normalized.where(counts[..., None], torch.zeros_like(normalized))
    original = rearrange(normalized, "f (h w) c -> f h w c", h=height, w=width)
    reconstructed = _through_vae(original, motion_vae)
    error = (reconstructed - original).abs().sum(-1)
    positions = denormalize_motion(
        rearrange(reconstructed, "f h w c -> f (h w) c"),
        tracks.positions[0],
        scene.cameras,
        profile.motion,
    )
    later = counts[1:]
    distance = (positions - tracks.positions)[1:][later].norm(dim=-1)
    moved = tracks.motion[1:][later].norm(dim=-1)
    grid_counts = rearrange(counts, "f (h w) -> f h w", h=height, w=width)
    error = error.where(grid_counts, torch.zeros_like(error)).sum((1, 2)).tolist()
    motion = original.abs().sum((1, 2, 3)).tolist()
    return MotionReconstruction(
        original=original,
        reconstructed=reconstructed,
        counts=grid_counts,
        relative_error=_ratio(sum(error[1:]), sum(motion[1:])),
        frame_relative_errors=tuple(map(_ratio, error, motion)),
        mean_error=float(distance.mean()) if len(distance) else 0.0,
        largest_error=float(distance.max()) if len(distance) else 0.0,
        mean_motion=float(moved.mean()) if len(moved) else 0.0,
    )


def reconstruction_picture(result: MotionReconstruction, *, num_columns: int = 5) -> "Image":
    """Draw original motion, reconstructed motion and error over time.

    Grey is rest; red, green and blue are motion along x, y and z. Errors go from black over red
    and yellow to white; all rows share one scale.
    """
    scale = _typical_largest(result.original)
    error = (result.reconstructed - result.original).norm(dim=-1, keepdim=True) / scale
    error = error * result.counts[..., None]
    heat = torch.cat([3 * error, 3 * error - 1, 3 * error - 2], dim=-1)
    return contact_sheet(
        {
            f"motion (colours span +-{scale:.3g})": 0.5 + result.original / (2 * scale),
            "motion after the VAE": 0.5 + result.reconstructed / (2 * scale),
            f"error (white is {scale:.3g})": heat,
        },
        num_columns=num_columns,
    )


def _grid_tracks(scene: Scene4D) -> PointTracks:
    if not isinstance(scene.points, PointTracks) or scene.points.grid_hw is None:
        what = type(scene.points).__name__
        raise ValueError(
            f"The scene's points are {what} without a pixel grid; the motion VAE needs one track "
            "per pixel of frame 0, as 4D-STraG makes them."
        )
    return scene.points


def _grid(tracks: PointTracks) -> tuple[int, int]:
    assert tracks.grid_hw is not None
    return tracks.grid_hw


def _through_vae(
    motion: Float[Tensor, "frame height width 3"], motion_vae: MotionVAE
) -> Float[Tensor, "frame height width 3"]:
    num_frames, height, width, _ = motion.shape
    more_frames = valid_num_frames(num_frames)[1] - num_frames
    more_rows = -height % PIXELS_PER_TOKEN
    more_columns = -width % PIXELS_PER_TOKEN
    if more_frames or more_rows or more_columns:
        _log.info(
            "The motion was extended from %dx%dx%d by %d frames, %d rows and %d columns.",
            *(num_frames, height, width, more_frames, more_rows, more_columns),
        )
    video = rearrange(motion, "f h w c -> 1 c f h w")
    extended = pad(video, (0, more_columns, 0, more_rows, 0, more_frames), mode="replicate")
    decoded = motion_vae.decode(motion_vae.encode(extended)).to(motion)
    return rearrange(decoded, "1 c f h w -> f h w c")[:num_frames, :height, :width]


def _ratio(error: float, motion: float) -> float | None:
    return error / motion if motion > 0 else None


def _typical_largest(motion: Tensor) -> float:
    values = motion.abs().amax(-1).flatten()
    sample = values[:: math.ceil(len(values) / _SAMPLES)]
    return float(torch.quantile(sample, 0.99)) or 1.0
