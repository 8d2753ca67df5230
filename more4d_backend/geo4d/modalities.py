"""The four pictures of a scene that the diffusion model makes, and the geometry they stand for.

Point map, ray direction, ray moment and disparity, each scaled to about [-1, 1] so that the image
VAE can code it (Geo4D, section 3). Images are (frame channel height width); geometry is (frame
height width 3).
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from ..geometry import invert_rigid, transform_points
from ..scene import Cameras
from .predictions import RayMaps, WindowPrediction
from .ray_maps import rays_from_cameras

POINTS = slice(0, 4)
"""Latent channels of the point map, in what the UNet predicts."""
RAY_DIRECTIONS = slice(4, 8)
"""Latent channels of the ray directions."""
RAY_MOMENTS = slice(8, 12)
"""Latent channels of the ray moments."""
DISPARITY = slice(12, 16)
"""Latent channels of the disparity."""

SKY_CODE = 1.05
"""All three channels of a point map's image where there is no point."""
NO_DISPARITY = -1.05
"""Disparity image where there is no point."""

_POINT_BOUND, _DISPARITY_BOUND = 2.0, 1.1
_LOW_SHARE, _HIGH_SHARE, _MARGIN = 0.02, 0.98, 0.01


class ModalityError(ValueError):
    """A clip that has no image as a modality, or settings that cannot work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalitySettings:
    """Which decoded points count as points."""

    sky_tolerance: float = 0.10
    """Sky is where all three channels are within this of `SKY_CODE`. The released demo takes 0.35,
    to be used with its uncorrected last scale."""

    limit: float = 1.99
    """Points with any channel beyond this, either way, lie out of the box."""

    def __post_init__(self) -> None:
        for name in ("sky_tolerance", "limit"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ModalityError(f"{name} is {getattr(self, name)}; expected 0 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PointBox:
    """Where the point maps of a clip were taken from: z from `near` to `near + size`."""

    near: float
    """Camera z that becomes -1, in the units of the points."""

    size: float
    """Length that becomes 2: the box unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalizedPoints:
    """Point maps as an image, and the way back."""

    image: Float[Tensor, "frame 3 height width"]
    """About -1 to 1, at most 2 either way; `SKY_CODE` where there is no point."""

    box: PointBox
    """Of the whole clip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DisparityRange:
    """Which disparities become -1 and 1."""

    low: float
    """1 / depth that becomes -1."""

    high: float
    """1 / depth that becomes 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalizedDisparity:
    """Disparity as an image, and the way back."""

    image: Float[Tensor, "frame 1 height width"]
    """-1 to 1, at most 1.1 either way; `NO_DISPARITY` where there is no point."""

    range: DisparityRange
    """Of the whole clip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalityImages:
    """All modalities of a clip as the VAE sees them: three channels each."""

    points: Float[Tensor, "frame 3 height width"]
    """See `NormalizedPoints.image`."""

    ray_directions: Float[Tensor, "frame 3 height width"]
    """Unit vectors in the coordinates of the first camera."""

    ray_moments: Float[Tensor, "frame 3 height width"]
    """Camera centre, in box units, x direction."""

    disparity: Float[Tensor, "frame 3 height width"]
    """`NormalizedDisparity.image`, three times."""


def modality_images(
    positions: Float[Tensor, "frame height width 3"],
    valid: Bool[Tensor, "frame height width"],
    cameras: Cameras,
) -> ModalityImages:
    """Turn true point maps (world coordinates) and their cameras into the images of all modalities.

    Raises:
        ModalityError: nothing is valid.
    """
    depth = transform_points(positions, cameras.world_to_camera[:, None, None])[..., 2]
    to_first = cameras.world_to_camera[0]
    points = normalize_points(transform_points(positions, to_first), valid)
    # Cameras as the first one sees them, in box units: rays then share the unit of the points.
    relative = to_first @ invert_rigid(cameras.world_to_camera)
    relative[:, :3, 3] /= points.box.size
    rays = rays_from_cameras(
        Cameras(
            world_to_camera=invert_rigid(relative),
            intrinsics=cameras.intrinsics,
            height=cameras.height,
            width=cameras.width,
        )
    )
    return ModalityImages(
        points=points.image,
        ray_directions=rearrange(rays.directions, "f h w c -> f c h w"),
        ray_moments=rearrange(rays.moments, "f h w c -> f c h w"),
        disparity=normalize_disparity(depth, valid).image.expand(-1, 3, -1, -1),
    )


def normalize_points(
    points: Float[Tensor, "frame height width 3"], valid: Bool[Tensor, "frame height width"]
) -> NormalizedPoints:
    """Scale point maps, in the coordinates of the first camera, to an image.

    One scale for all axes: z from its 2nd to its 98th percentile fills -1 to 1, and x and y follow.

    Raises:
        ModalityError: nothing is valid.
    """
    low, high = _range(points[..., 2], valid)
    box = PointBox(near=low, size=high - low)
    image = 2 * points / box.size - points.new_tensor([0, 0, 2 * box.near / box.size + 1])
    image = image.where(valid[..., None], SKY_CODE).clamp(-_POINT_BOUND, _POINT_BOUND)
    return NormalizedPoints(image=rearrange(image, "f h w c -> f c h w"), box=box)


def denormalize_points(
    image: Float[Tensor, "frame 3 height width"], box: PointBox | None = None
) -> Float[Tensor, "frame height width 3"]:
    """Inverse of `normalize_points` for valid points in the box.

    Without a box (it is not predicted) the points come in box units, with z from the box's near
    side: a similarity away from the true ones.
    """
    points = rearrange(image, "f c h w -> f h w c")
    points = (points + points.new_tensor([0, 0, 1])) / 2
    return points if box is None else points * box.size + points.new_tensor([0, 0, box.near])


def normalize_disparity(
    depth: Float[Tensor, "frame height width"], valid: Bool[Tensor, "frame height width"]
) -> NormalizedDisparity:
    """Scale 1 / depth to an image: its 2nd to its 98th percentile fill -1 to 1.

    Raises:
        ModalityError: nothing is valid.
    """
    disparity = 1 / (depth + 1e-8)
    low, high = _range(disparity, valid)
    image = 2 * (disparity - low) / (high - low) - 1
    image = image.where(valid, NO_DISPARITY).clamp(-_DISPARITY_BOUND, _DISPARITY_BOUND)
    return NormalizedDisparity(image=image[:, None], range=DisparityRange(low=low, high=high))


def denormalize_disparity(
    image: Float[Tensor, "frame channel height width"], range: DisparityRange | None = None
) -> Float[Tensor, "frame height width"]:
    """Return 1 / depth; without a range (it is not predicted) about 0 to 1, affine in 1 / depth.

    Inverse of `normalize_disparity` for valid pixels in the range. Channels are averaged.
    """
    disparity = (image.mean(1) + 1) / 2
    return disparity if range is None else range.low + (range.high - range.low) * disparity


def valid_points(
    image: Float[Tensor, "frame 3 height width"], settings: ModalitySettings | None = None
) -> Bool[Tensor, "frame height width"]:
    """Return which pixels of a decoded point map hold a point: not sky, and in the box."""
    settings = settings or ModalitySettings()
    sky = ((image - SKY_CODE).abs() < settings.sky_tolerance).all(1)
    return ~sky & (image.abs() <= settings.limit).all(1)


def window_from_images(
    first_frame: int,
    *,
    point_image: Float[Tensor, "frame 3 height width"],
    sigma_logit: Float[Tensor, "frame height width"] | None = None,
    direction_image: Float[Tensor, "frame 3 ray_height ray_width"] | None = None,
    moment_image: Float[Tensor, "frame 3 ray_height ray_width"] | None = None,
    disparity_image: Float[Tensor, "frame channel disparity_height disparity_width"] | None = None,
    settings: ModalitySettings | None = None,
) -> WindowPrediction:
    """Read the decoded images of a window as geometry.

    Raises:
        ModalityError: one of the two ray images is missing.
    """
    if (direction_image is None) != (moment_image is None):
        raise ModalityError(
            "Only one of direction_image and moment_image was given; a ray map needs both."
        )
    rays = None
    if direction_image is not None and moment_image is not None:
        rays = RayMaps(
            directions=rearrange(direction_image, "f c h w -> f h w c"),
            moments=rearrange(moment_image, "f c h w -> f h w c"),
        )
    # Where the image is NaN nothing is sky: it stays valid, and alignment refuses it by name.
    valid = valid_points(point_image, settings) | point_image.isnan().any(1)
    return WindowPrediction(
        first_frame=first_frame,
        points=denormalize_points(point_image),
        valid=valid,
        sigma=None if sigma_logit is None else torch.nn.functional.softplus(sigma_logit),
        disparity=None if disparity_image is None else denormalize_disparity(disparity_image),
        rays=rays,
    )


def _range(values: Tensor, valid: Tensor) -> tuple[float, float]:
    """2nd and 98th percentile (the value that many values are below), with a margin."""
    ordered = values[valid].sort().values
    if not len(ordered):
        raise ModalityError("The clip has no valid point, so it has no box and no image.")
    low, high = (ordered[int(share * len(ordered))] for share in (_LOW_SHARE, _HIGH_SHARE))
    return float(low) - _MARGIN, float(high) + _MARGIN
