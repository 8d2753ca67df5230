"""What networks of a given quality would predict of a known scene: for tests and benchmarks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..geometry import invert_rigid, transform_points
from ..scene import Cameras
from ..synthetic import SyntheticView
from .alignment.rotations import rotation_from_vector
from .predictions import RayMaps, WindowPrediction
from .ray_maps import rays_from_cameras


@dataclass(frozen=True, slots=True, kw_only=True)
class Corruption:
    """Errors of the predictions; all 0: exact, in the world's own units."""

    noise: float = 0.02
    """Standard deviation of each point, along each axis, as a share of its depth; the same share
    of each disparity; and of each ray, of which the direction has length 1."""

    outlier_share: float = 0.05
    """Share of the pixels, of each modality anew, that hold the value of some other pixel."""

    similarity: bool = True
    """Whether each window has its own unit (a factor of 1/3 to 3), turn and place."""

    affine: bool = True
    """Whether each window's disparity is scaled and shifted to about 0 to 1."""


def window_starts(num_frames: int, length: int = 16, stride: int = 4) -> list[int]:
    """First frames of windows over a video, with one at its end."""
    last = max(num_frames - length, 0)
    return sorted({*range(0, last + 1, stride), last})


def windows_of_view(
    view: SyntheticView,
    starts: Sequence[int],
    generator: torch.Generator,
    *,
    length: int = 16,
    corruption: Corruption | None = None,
) -> list[WindowPrediction]:
    """Predict windows of what was seen. Sky is not valid. Random numbers are drawn on the CPU."""
    corruption = corruption or Corruption()
    num_frames = view.cameras.num_frames
    return [
        _window(view, slice(start, min(start + length, num_frames)), generator, corruption)
        for start in starts
    ]


def _window(
    view: SyntheticView, frames: slice, generator: torch.Generator, corruption: Corruption
) -> WindowPrediction:
    noise = corruption.noise
    cameras = view.cameras.frames(frames)
    valid = view.depth[frames].isfinite()
    depth = view.depth[frames].where(valid, 1.0)
    to_first = cameras.world_to_camera[0]
    points = transform_points(view.positions[frames], to_first)
    error = noise * _normal(points.shape, generator).to(points)
    points = _with_outliers(points + depth[..., None] * error, valid, generator, corruption)
    sigma = depth * max(noise, 1e-3) * (0.2 * _normal(depth.shape, generator).to(depth)).exp()

    disparity = 1 / depth
    disparity = disparity * (1 + noise * _normal(depth.shape, generator).to(depth))
    disparity = _with_outliers(disparity[..., None], valid, generator, corruption)[..., 0]
    if corruption.affine:
        low, high = disparity[valid].quantile(0.02), disparity[valid].quantile(0.98)
        disparity = (disparity - low) / (high - low) * 0.9 + 0.1
    disparity = disparity.masked_fill(~valid, 0)

    # Box: one unit for points and rays; the points also start somewhere else on the z axis.
    scale, turn, move = 1.0, torch.eye(3), torch.zeros(3)
    if corruption.similarity:
        scale = 3 ** _uniform(generator)
        turn = rotation_from_vector(0.05 * _normal((3,), generator))
        move = scale * torch.tensor([0.0, 0.0, -1.5])
    turn, move = turn.to(points), move.to(points)
    rays = _rays(cameras, scale, generator, corruption)
    return WindowPrediction(
        first_frame=frames.start,
        points=(scale * points @ turn.T + move).masked_fill(~valid[..., None], 0),
        valid=valid,
        sigma=scale * sigma,
        disparity=disparity,
        rays=rays,
    )


def _rays(
    cameras: Cameras, scale: float, generator: torch.Generator, corruption: Corruption
) -> RayMaps:
    """Rays in the first camera's axes, with lengths in box units, and noise on both parts."""
    relative = cameras.world_to_camera[0] @ invert_rigid(cameras.world_to_camera)
    relative[:, :3, 3] *= scale
    exact = rays_from_cameras(
        Cameras(
            world_to_camera=invert_rigid(relative),
            intrinsics=cameras.intrinsics,
            height=cameras.height,
            width=cameras.width,
        )
    )
    joined = torch.cat([exact.directions, exact.moments], dim=-1)
    spread = joined.new_tensor([1.0] * 3 + [float(exact.moments.norm(dim=-1).amax())] * 3)
    joined = joined + corruption.noise * spread * _normal(joined.shape, generator).to(joined)
    everywhere = torch.ones(joined.shape[:-1], dtype=torch.bool, device=joined.device)
    joined = _with_outliers(joined, everywhere, generator, corruption)
    return RayMaps(directions=joined[..., :3], moments=joined[..., 3:])


def _with_outliers(
    values: Float[Tensor, "frame height width channel"],
    valid: Tensor,
    generator: torch.Generator,
    corruption: Corruption,
) -> Tensor:
    """Give some pixels the value of another valid pixel of their frame."""
    if not corruption.outlier_share:
        return values
    height, width = values.shape[1:3]
    result = rearrange(values, "f h w c -> f (h w) c").clone()
    for frame, pixels in zip(result, valid.flatten(1), strict=True):
        usable = pixels.nonzero()[:, 0]
        count = math.ceil(corruption.outlier_share * len(usable))
        if not count:
            continue
        chosen = torch.randperm(len(usable), generator=generator)[:count].to(usable.device)
        others = torch.randint(len(usable), (count,), generator=generator).to(usable.device)
        frame[usable[chosen]] = frame[usable[others]]
    return rearrange(result, "f (h w) c -> f h w c", h=height, w=width)


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator)


def _uniform(generator: torch.Generator) -> float:
    return 2 * float(torch.rand((), generator=generator)) - 1
