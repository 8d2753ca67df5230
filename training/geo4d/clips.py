"""Clips with exact depth and cameras: what the Geo4D trainers are given.

Axes: clip (in a batch), frame, height, width. World = any; cameras say where they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from more4d_backend.geo4d.modalities import NO_DISPARITY, SKY_CODE
from more4d_backend.geometry import invert_rigid, pixel_centers, transform_points, unproject
from more4d_backend.scene import Cameras

from ..data.samples import SampleError

FARTHEST_M = 80.0
"""Depth beyond this is not valid, as published."""

# Those of `geo4d.modalities`; a test holds that both give the same images.
_POINT_BOUND, _DISPARITY_BOUND = 2.0, 1.1
_LOW_SHARE, _HIGH_SHARE, _MARGIN = 0.02, 0.98, 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometryClip:
    """One clip of a video."""

    name: str
    """Says where it comes from, for messages."""

    video: UInt8[Tensor, "frame height width 3"]
    """sRGB."""

    depth: Float[Tensor, "frame height width"]
    """Camera z; any value where not valid."""

    valid: Bool[Tensor, "frame height width"]
    """True where depth is known."""

    cameras: Cameras
    """One per frame, of the video's size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometryBatch:
    """Clips of one size, stacked."""

    names: tuple[str, ...]
    """One per clip."""

    video: UInt8[Tensor, "clip frame height width 3"]
    """See `GeometryClip`."""

    depth: Float[Tensor, "clip frame height width"]
    """See `GeometryClip`."""

    valid: Bool[Tensor, "clip frame height width"]
    """See `GeometryClip`."""

    intrinsics: Float[Tensor, "clip frame 3 3"]
    """Pixels."""

    world_to_camera: Float[Tensor, "clip frame 4 4"]
    """See `Cameras`."""

    @property
    def num_samples(self) -> int:
        """Number of clips."""
        return len(self.names)

    def cameras(self, index: int) -> Cameras:
        """Return the cameras of a clip."""
        height, width = self.depth.shape[-2:]
        return Cameras(
            world_to_camera=self.world_to_camera[index],
            intrinsics=self.intrinsics[index],
            height=height,
            width=width,
        )

    def pictures(self) -> Float[Tensor, "clip frame 3 height width"]:
        """Return the videos as the VAE sees them, in [-1, 1]."""
        return rearrange(self.video, "n f h w c -> n f c h w").float() / 127.5 - 1

    def images(self) -> "BatchImages":
        """Return the images of all modalities.

        Raises:
            SampleError: a clip has nothing valid.
        """
        return batch_images(self)

    def to(self, device: torch.device | str) -> "GeometryBatch":
        """Return a copy on another device; from pinned memory this does not block."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "GeometryBatch":
        """Return a copy in page-locked memory; the data loader calls this."""
        return self._map(lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())

    def _map(self, change) -> "GeometryBatch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: change(v) for k, v in tensors.items() if isinstance(v, Tensor)})


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchImages:
    """`geo4d.modalities.ModalityImages` of a batch: what the VAE sees."""

    points: Float[Tensor, "clip frame 3 height width"]
    """See `ModalityImages`."""

    ray_directions: Float[Tensor, "clip frame 3 height width"]
    """See `ModalityImages`."""

    ray_moments: Float[Tensor, "clip frame 3 height width"]
    """See `ModalityImages`."""

    disparity: Float[Tensor, "clip frame 3 height width"]
    """See `ModalityImages`."""


def batch_images(batch: GeometryBatch) -> BatchImages:
    """Compute what `geo4d.modalities.modality_images` does, for all clips of a batch at once.

    Clip by clip would take longer than a training step, because each waits for the device. Always
    in float32: under autocast rays would be wrong by a pixel.

    Raises:
        SampleError: a clip has nothing valid.
    """
    with exact(batch.depth):
        return _batch_images(batch)


def exact(like: Tensor) -> torch.autocast:
    """Compute in the dtypes of the tensors inside, whatever autocast says outside."""
    return torch.autocast(like.device.type, enabled=False)


def _batch_images(batch: GeometryBatch) -> BatchImages:
    depth = batch.depth.where(batch.valid, 1.0)
    to_first = batch.world_to_camera[:, :1] @ invert_rigid(batch.world_to_camera)
    centers = pixel_centers(*depth.shape[-2:], device=depth.device, dtype=depth.dtype)
    in_camera = unproject(centers, depth, batch.intrinsics[:, :, None, None])
    points = transform_points(in_camera, to_first[:, :, None, None])
    low, high = _ranges(points[..., 2], batch)
    size = (high - low).view(-1, 1, 1, 1, 1)
    shift = torch.stack([torch.zeros_like(low), torch.zeros_like(low), low], -1)
    image = 2 * (points - shift.view(-1, 1, 1, 1, 3)) / size
    image = image - image.new_tensor([0, 0, 1])
    image = image.where(batch.valid[..., None], SKY_CODE).clamp(-_POINT_BOUND, _POINT_BOUND)
    directions = unproject(centers, torch.ones_like(depth), batch.intrinsics[:, :, None, None])
    directions = torch.nn.functional.normalize(directions, dim=-1)
    directions = directions @ to_first[:, :, None, :3, :3].transpose(-1, -2)
    origins = to_first[:, :, None, None, :3, 3] / size
    return BatchImages(
        points=_channels_first(image),
        ray_directions=_channels_first(directions),
        ray_moments=_channels_first(
            torch.linalg.cross(*torch.broadcast_tensors(origins, directions))
        ),
        disparity=_disparity(depth, batch).expand(-1, -1, 3, -1, -1),
    )


def _disparity(depth: Tensor, batch: GeometryBatch) -> Float[Tensor, "clip frame 1 height width"]:
    disparity = 1 / (depth + 1e-8)
    low, high = (bound.view(-1, 1, 1, 1) for bound in _ranges(disparity, batch))
    image = (2 * (disparity - low) / (high - low) - 1).where(batch.valid, NO_DISPARITY)
    return image.clamp(-_DISPARITY_BOUND, _DISPARITY_BOUND)[:, :, None]


def _ranges(
    values: Float[Tensor, "clip frame height width"], batch: GeometryBatch
) -> tuple[Float[Tensor, " clip"], Float[Tensor, " clip"]]:
    """2nd and 98th percentile of each clip's valid values, with a margin."""
    ordered = values.where(batch.valid, torch.inf).flatten(1).sort(1).values
    counts = batch.valid.flatten(1).sum(1)
    if not (counts > 0).all():
        empty = batch.names[int((counts == 0).nonzero()[0, 0])]
        raise SampleError(f"{empty} has no valid depth, so it has no modality images.")
    low, high = (
        ordered.gather(1, (share * counts.double()).long()[:, None])[:, 0]
        for share in (_LOW_SHARE, _HIGH_SHARE)
    )
    return low - _MARGIN, high + _MARGIN


def _channels_first(maps: Tensor) -> Tensor:
    return rearrange(maps, "n f h w c -> n f c h w")


def stack_clips(clips: Sequence[GeometryClip]) -> GeometryBatch:
    """Stack clips of one size."""
    return GeometryBatch(
        names=tuple(clip.name for clip in clips),
        video=torch.stack([clip.video for clip in clips]),
        depth=torch.stack([clip.depth for clip in clips]),
        valid=torch.stack([clip.valid for clip in clips]),
        intrinsics=torch.stack([clip.cameras.intrinsics for clip in clips]),
        world_to_camera=torch.stack([clip.cameras.world_to_camera for clip in clips]),
    )


def world_positions(
    depth: Float[Tensor, "frame height width"], cameras: Cameras
) -> Float[Tensor, "frame height width 3"]:
    """Lift depth to the world."""
    centers = pixel_centers(*depth.shape[1:], device=depth.device, dtype=depth.dtype)
    in_camera = unproject(centers, depth, cameras.intrinsics[:, None, None])
    return transform_points(in_camera, cameras.camera_to_world[:, None, None])


def fit_clip(clip: GeometryClip, size_hw: tuple[int, int]) -> GeometryClip:
    """Scale a clip until it fills a size, and cut out its middle.

    Colours are averaged, depth is that of the nearest pixel, and intrinsics follow.
    """
    height, width = clip.depth.shape[1:]
    scale = max(size_hw[0] / height, size_hw[1] / width)
    scaled = (max(round(height * scale), size_hw[0]), max(round(width * scale), size_hw[1]))
    top, left = (scaled[0] - size_hw[0]) // 2, (scaled[1] - size_hw[1]) // 2
    cut = (..., slice(top, top + size_hw[0]), slice(left, left + size_hw[1]))
    resize = torch.nn.functional.interpolate
    pictures = rearrange(clip.video, "f h w c -> f c h w").float()
    if scaled != (height, width):
        pictures = resize(pictures, size=scaled, mode="bicubic", antialias=True)
    maps = torch.stack([clip.depth.nan_to_num(posinf=0.0), clip.valid.float()], dim=1)
    maps = resize(maps, size=scaled, mode="nearest-exact")[cut]
    cameras = clip.cameras.resized(*scaled)
    intrinsics = cameras.intrinsics.clone()
    intrinsics[:, 0, 2] -= left
    intrinsics[:, 1, 2] -= top
    return GeometryClip(
        name=clip.name,
        video=rearrange(pictures[cut], "f c h w -> f h w c").round().clamp(0, 255).to(torch.uint8),
        depth=maps[:, 0],
        valid=maps[:, 1] > 0.5,
        cameras=replace(cameras, intrinsics=intrinsics, height=size_hw[0], width=size_hw[1]),
    )


def check_clip(clip: GeometryClip) -> None:
    """Refuse a clip from which nothing can be learned.

    Raises:
        SampleError: no valid pixel, or valid depth that is not positive and finite.
    """
    if not clip.valid[0].any():
        raise SampleError(f"{clip.name} has no valid depth in its first frame.")
    depth = clip.depth[clip.valid]
    if not (depth.isfinite() & (depth > 0)).all():
        raise SampleError(f"{clip.name} has depth that is not positive and finite where valid.")
