"""A camera path as Wan2.1-Fun-Camera takes it: rays per pixel, four frames to a latent frame."""

from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..geo4d.ray_maps import rays_from_cameras
from ..geometry import invert_rigid
from ..scene import Cameras
from .edits import CameraPathError

_FRAMES_PER_LATENT = 4
_PIXELS_PER_TOKEN = 16


def wan_camera_embedding(
    path: Cameras, *, translation_scale: float = 1.0
) -> Float[Tensor, "1 24 latent_frame height width"]:
    """Moment and direction of the ray through every pixel, relative to the first camera.

    Channels are (moment xyz, direction xyz), each for four frames in turn; the first latent frame
    holds four times the first frame, as Wan's latents do. Distances matter to the model, which was
    trained on scenes of no stated unit; `translation_scale` multiplies them.

    Raises:
        CameraPathError: not 4k + 1 frames, sizes that are no multiple of 16, or a scale that is
            not positive.
    """
    if path.num_frames % _FRAMES_PER_LATENT != 1:
        raise CameraPathError(
            f"The path has {path.num_frames} frames; Wan takes 4k + 1, such as 49 or 81. Make the "
            "path with that many, or retime it."
        )
    if path.height % _PIXELS_PER_TOKEN or path.width % _PIXELS_PER_TOKEN:
        raise CameraPathError(
            f"The path is for pictures of {path.height}x{path.width} (height x width); Wan takes "
            f"multiples of {_PIXELS_PER_TOKEN}. Give height and width of the video to be made."
        )
    if not 0 < translation_scale < float("inf"):
        raise CameraPathError(
            f"translation_scale is {translation_scale}; expected a positive number."
        )
    poses = path.world_to_camera.cpu().double()
    relative = poses @ invert_rigid(poses[:1])
    relative[:, :3, 3] *= translation_scale
    cameras = replace(path, world_to_camera=relative, intrinsics=path.intrinsics.cpu().double())
    rays = rays_from_cameras(cameras)
    values = torch.cat([rays.moments, rays.directions], dim=-1).float()
    values = torch.cat([values[:1].expand(_FRAMES_PER_LATENT - 1, -1, -1, -1), values])
    return rearrange(values, "(f four) h w c -> 1 (c four) f h w", four=_FRAMES_PER_LATENT)
