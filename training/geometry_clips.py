"""Clips with exact depth and cameras: what the Geo4D trainers are given.

Axes: clip (in a batch), frame, height, width. World = any; cameras say where they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from more4d_backend.geo4d.modalities import ModalityImages, modality_images
from more4d_backend.geometry import pixel_centers, transform_points, unproject
from more4d_backend.scene import Cameras

from .samples import SampleError

FARTHEST_M = 80.0
"""Depth beyond this is not valid, as published."""


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

    def images(self, index: int) -> ModalityImages:
        """Return the images of all modalities of a clip.

        Raises:
            ModalityError: nothing in the clip is valid.
        """
        cameras = self.cameras(index)
        return modality_images(world_positions(self.depth[index], cameras), self.valid[index],
                               cameras)  # fmt: skip

    def to(self, device: torch.device | str) -> "GeometryBatch":
        """Return a copy on another device; from pinned memory this does not block."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "GeometryBatch":
        """Return a copy in page-locked memory; the data loader calls this."""
        return self._map(lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())

    def _map(self, change) -> "GeometryBatch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: change(v) for k, v in tensors.items() if isinstance(v, Tensor)})


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
