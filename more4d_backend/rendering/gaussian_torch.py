"""A plain-torch twin of gsplat's rasteriser: any device, no compiler, one frame at a time.

It follows gsplat's rules (EWA splatting, Zwicker et al. 2001; compositing of Kerbl et al. 2023) so
that a test can hold one against the other.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..geometry import project, transform_points
from ..scene import Cameras
from .boxes import pixels_in_boxes
from .gaussians import LOW_PASS_PX2, NEAR, Gaussians

_MAX_ALPHA = 0.999
_MIN_ALPHA = 1 / 255
_MIN_TRANSMITTANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Projected:
    """Gaussians of one frame in the picture."""

    xy: Float[Tensor, "point 2"]
    depth: Float[Tensor, "point"]
    covariance: Float[Tensor, "point 2 2"]
    opacity: Float[Tensor, "point"]


def rasterize(
    gaussians: Gaussians, cameras: Cameras
) -> tuple[Float[Tensor, "frame height width 4"], Float[Tensor, "frame height width"]]:
    """Composite color and depth front to back. Return their sums weighted by alpha, and alpha.

    Gaussians of a single frame are seen by all the cameras.
    """
    device = gaussians.means.device
    pictures = []
    for index in range(cameras.num_frames):
        now, camera = gaussians.frame(index), cameras.frames([index]).to(device)
        projected = _project(now, camera)
        depth = projected.depth[:, None]
        values = torch.cat([now.colors[0], depth, torch.ones_like(depth)], dim=-1)
        pictures.append(_rasterize_frame(projected, values, cameras.height, cameras.width))
    picture = torch.stack(pictures).view(-1, cameras.height, cameras.width, 5)
    return picture[..., :4], picture[..., 4]


def _project(gaussians: Gaussians, camera: Cameras) -> _Projected:
    """Project means, and covariances by the local affine map of the projection at each mean."""
    world_to_camera = camera.world_to_camera[0].to(torch.float32)
    intrinsics = camera.intrinsics[0].to(torch.float32)
    positions = transform_points(gaussians.means[0], world_to_camera)
    in_front = positions[:, 2] > NEAR
    positions = torch.where(in_front[:, None], positions, positions.new_tensor([0.0, 0.0, 1.0]))
    xy, depth = project(positions, intrinsics)
    to_center = torch.zeros(len(xy), 2, 3, device=xy.device)
    to_center[:, 0, 0] = to_center[:, 1, 1] = 1
    to_center[:, :, 2] = -positions[:, :2] / depth[:, None]
    focal = torch.stack([intrinsics[0, 0], intrinsics[1, 1]])
    local = focal[:, None] * to_center / depth[:, None, None] @ world_to_camera[:3, :3]
    covariance = local @ gaussians.covariances[0] @ local.transpose(1, 2)
    covariance = covariance + LOW_PASS_PX2 * torch.eye(2, device=xy.device)
    opacity = gaussians.opacities[0] * in_front
    return _Projected(xy=xy, depth=depth, covariance=covariance, opacity=opacity)


def _rasterize_frame(
    gaussians: _Projected, values: Float[Tensor, "point value"], height: int, width: int
) -> Float[Tensor, "pixel value"]:
    # Beyond this many standard deviations a Gaussian is below the smallest alpha that counts.
    reach = (2 * (gaussians.opacity / _MIN_ALPHA).clamp(min=1).log()).sqrt()[:, None]
    radius = reach * gaussians.covariance.diagonal(dim1=1, dim2=2).sqrt()
    size = radius.new_tensor([width, height])
    first = (gaussians.xy - radius - 0.5).ceil().clamp(min=0).minimum(size)
    last = (gaussians.xy + radius - 0.5).floor().clamp(min=-1).minimum(size - 1)
    count = (last - first + 1).clamp(min=0) * (gaussians.opacity > _MIN_ALPHA)[:, None]
    first, count = first.long(), count.long()
    corner = first[:, 1] * width + first[:, 0]
    owner, pixel = pixels_in_boxes(corner, count[:, 0], count[:, 0] * count[:, 1], width)
    dx = pixel % width + 0.5 - gaussians.xy[owner, 0]
    dy = pixel // width + 0.5 - gaussians.xy[owner, 1]
    inverse = torch.linalg.inv(gaussians.covariance)[owner]
    distance = inverse[:, 0, 0] * dx * dx + inverse[:, 1, 1] * dy * dy
    distance += 2 * inverse[:, 0, 1] * dx * dy
    alpha = (gaussians.opacity[owner] * torch.exp(-distance / 2)).clamp(max=_MAX_ALPHA)
    seen = alpha >= _MIN_ALPHA
    owner, pixel, alpha = owner[seen], pixel[seen], alpha[seen]
    front_to_back = gaussians.depth[owner].argsort(stable=True)
    order = front_to_back[pixel[front_to_back].argsort(stable=True)]
    fragments = torch.bincount(pixel, minlength=height * width)
    return _composite(alpha[order], owner[order], fragments, values)


def _composite(
    alpha: Float[Tensor, "fragment"],
    owner: Int[Tensor, "fragment"],
    fragments: Int[Tensor, "pixel"],
    values: Float[Tensor, "point value"],
) -> Float[Tensor, "pixel value"]:
    """Blend fragments, which lie pixel by pixel from front to back, one layer at a time."""
    start = fragments.cumsum(0) - fragments
    picture = values.new_zeros(len(fragments), values.shape[1])
    transmittance = values.new_ones(len(fragments))
    active = fragments.nonzero()[:, 0]
    layer = 0
    while active.numel() > 0:
        entry = start[active] + layer
        before = transmittance[active]
        after = before * (1 - alpha[entry])
        unfinished = after > _MIN_TRANSMITTANCE
        active, entry = active[unfinished], entry[unfinished]
        weight = before[unfinished] * alpha[entry]
        picture[active] += weight[:, None] * values[owner[entry]]
        transmittance[active] = after[unfinished]
        layer += 1
        active = active[fragments[active] > layer]
    return picture
