"""Depth-guided motion normalisation and its exact inverse (MoRe4D, arXiv 2512.05044, eq. 1).

The motion of a point in camera-0 space, divided by the depth it had in frame 0, is roughly the
motion that the image shows, so that near and far things look alike to a network:

    motion~_x = a_x motion_x / z,   motion~_y = a_y motion_y / z,   motion~_z = motion_z / z

with a = (f_x / width, f_y / height). Axes: frame, point (a list, or an image grid), xyz.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .geometry import transform_points
from .scene import Cameras


class MotionError(ValueError):
    """Points whose motion cannot be normalised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionNormalization:
    """What normalisation a set of weights was trained with."""

    focal_xy: tuple[float, float] | None
    """(a_x, a_y), the same for every scene; None takes them from the scene's intrinsics."""

    depth_repair: Literal["one", "floor"]
    """What depth to divide by where that of frame 0 is unusable. `one`: 1 where it is 0 or not
    finite, while tiny and negative depth stays. `floor`: the median where it is not a positive
    finite number, and at least `relative_floor` of the median everywhere."""

    gain: float = 1.0
    """Normalised motion is this many times what the equation says. Usual motion is a tenth of the
    picture, and a VAE made for colours learns little from a picture of -0.1 to 0.1."""

    relative_floor: float = 0.02
    """For `floor`: a point nearer than this part of the median depth counts as that near, since
    its motion would otherwise outweigh all other points'."""

    divide_by: Literal["depth", "median"] = "depth"
    """Each point's own depth; or the median over the points, which leaves the guidance by depth
    out to see what it does (paper, table 4)."""

    def __post_init__(self) -> None:
        if self.focal_xy is not None and not min(self.focal_xy) > 0:
            raise ValueError(f"focal_xy is {self.focal_xy}; expected two positive numbers or None.")
        if not self.gain > 0:
            raise ValueError(f"gain is {self.gain}; expected a positive number.")
        if self.depth_repair not in ("one", "floor"):
            raise ValueError(f"depth_repair is {self.depth_repair!r}; expected 'one' or 'floor'.")
        if self.divide_by not in ("depth", "median"):
            raise ValueError(f"divide_by is {self.divide_by!r}; expected 'depth' or 'median'.")
        if not 0 < self.relative_floor < 1:
            raise ValueError(
                f"relative_floor is {self.relative_floor}; expected a number between 0 and 1."
            )


RELEASED_MOTION = MotionNormalization(focal_xy=((512 / 368) / (960 / 720), 1.0), depth_repair="one")
"""The released training code: (24/23, 1), the focal lengths by its own rule of a 960x720 video
shown at 512x368, for every sample, whatever the sample's true camera."""

OWN_MOTION = MotionNormalization(focal_xy=None, depth_repair="floor", gain=8.0)
"""Equation 1 as published, with the camera of each scene, brought to the range of colours. What our
trainer writes."""


def normalize_motion(
    positions: Float[Tensor, "frame *point 3"],
    cameras: Cameras,
    normalization: MotionNormalization,
) -> Float[Tensor, "frame *point 3"]:
    """World positions to normalised motion, which is 0 in frame 0.

    Motion and depth are those in the space of camera 0, wherever in the world it stands. The
    result is not finite where `positions` is not; lost points are for the caller to mask.

    Raises:
        MotionError: `depth_repair` is `floor` and no point has a positive depth.
    """
    world_to_camera = cameras.world_to_camera[0].to(positions)
    in_camera = transform_points(positions, world_to_camera)
    factor = _factor(in_camera[0, ..., 2], cameras, normalization)
    # Differences are taken before rotating: the same numbers, but exactly 0 for what rests.
    motion = (positions - positions[:1]) @ world_to_camera[:3, :3].T
    return motion * factor


def denormalize_motion(
    normalized: Float[Tensor, "frame *point 3"],
    start: Float[Tensor, "*point 3"],
    cameras: Cameras,
    normalization: MotionNormalization,
) -> Float[Tensor, "frame *point 3"]:
    """Exact inverse of `normalize_motion`: world positions of points that begin at `start`.

    Frame 0 of the result is `start`, whatever a network predicts there.

    Raises:
        MotionError: `depth_repair` is `floor` and no point has a positive depth.
    """
    world_to_camera = cameras.world_to_camera[0].to(normalized)
    start = start.to(normalized)
    factor = _factor(transform_points(start, world_to_camera)[..., 2], cameras, normalization)
    positions = start + (normalized / factor) @ world_to_camera[:3, :3]
    return torch.cat([start[None], positions[1:]])


def _factor(
    depth: Float[Tensor, "*point"], cameras: Cameras, normalization: MotionNormalization
) -> Float[Tensor, "*point 3"]:
    """What the motion of each point, in the space of camera 0, is multiplied by."""
    if normalization.focal_xy is None:
        K = cameras.intrinsics[0]
        focal_x, focal_y = float(K[0, 0]) / cameras.width, float(K[1, 1]) / cameras.height
    else:
        focal_x, focal_y = normalization.focal_xy
    scale = normalization.gain * depth.new_tensor([focal_x, focal_y, 1.0])
    divisor = repaired_depth(depth, normalization)
    if normalization.divide_by == "median":
        divisor = divisor.median().expand_as(divisor)
    return scale / divisor[..., None]


def repaired_depth(
    depth: Float[Tensor, "*point"], normalization: MotionNormalization
) -> Float[Tensor, "*point"]:
    """Depth to divide by: what `normalization.depth_repair` makes of unusable values.

    Raises:
        MotionError: `depth_repair` is `floor` and no point has a positive depth.
    """
    if normalization.depth_repair == "one":
        return depth.where(depth.isfinite() & (depth != 0), torch.ones_like(depth))
    valid = depth.isfinite() & (depth > 0)
    if not valid.any():
        raise MotionError(
            f"None of the {depth.numel()} points has a positive, finite depth in frame 0, so "
            "their motion cannot be normalised. Check the depth map and camera 0."
        )
    median = depth[valid].median()
    return depth.where(valid, median).maximum(normalization.relative_floor * median)
