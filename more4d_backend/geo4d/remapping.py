"""Aligned geometry back at the pixels of the video that it came from."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry import pixel_centers, transform_points, unproject
from ..scene import PointMaps, Scene4D
from .framing import Framing
from .video import Video, same_size

NEAREST = 0.01
"""Points with less depth, in the scene's median depths, are errors and not valid. On their rays
they could not be told from their neighbours in float32 either."""


def scene_of_content(
    scene: Scene4D, depth: Float[Tensor, "frame height width"], framing: Framing
) -> Scene4D:
    """Cut a scene of the network's pictures to the part that shows the video."""
    points, rows, columns = scene.points, framing.rows, framing.columns
    assert isinstance(points, PointMaps)  # alignment makes nothing else
    confidence = points.confidence
    valid = points.valid & (depth >= NEAREST)
    return Scene4D(
        points=PointMaps(
            positions=points.positions[:, rows, columns].clone(),
            colors=points.colors[:, rows, columns].clone(),
            valid=valid[:, rows, columns].clone(),
            confidence=None if confidence is None else confidence[:, rows, columns].clone(),
        ),
        cameras=framing.content_cameras(scene.cameras),
        fps=scene.fps,
    )


def scene_of_source(
    scene: Scene4D,
    depth: Float[Tensor, "frame height width"],
    framing: Framing,
    video: Video,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Scene4D:
    """Sample a scene of the network's pictures at the pixels of the video, with its own colours.

    Pixels that the network never saw (fit "crop") are not valid. Frames are sampled on `device`,
    one by one; the result is on the CPU.
    """
    points = scene.points
    assert isinstance(points, PointMaps)  # alignment makes nothing else
    cameras = framing.source_cameras(scene.cameras)
    centers = pixel_centers(*framing.source_hw, device=device)
    camera_to_world, intrinsics = cameras.camera_to_world.to(device), cameras.intrinsics.to(device)
    shape = (scene.num_frames, *framing.source_hw)
    positions, colors = torch.empty(*shape, 3), torch.empty(*shape, 3)
    valid = torch.empty(shape, dtype=torch.bool)
    confidence = None if points.confidence is None else torch.empty(shape)
    # What it says of sizes was told when the video was framed.
    for frame, picture in enumerate(same_size(video.pictures(), told=True)):
        plausible = (points.valid[frame] & (depth[frame] >= NEAREST)).to(device)
        sampled, known = framing.source_depth(depth[frame].to(device), plausible)
        in_camera = unproject(centers, sampled, intrinsics[frame])
        in_world = transform_points(in_camera, camera_to_world[frame])
        positions[frame] = in_world.where(known[..., None], torch.nan)
        valid[frame] = known
        torch.div(picture, 255, out=colors[frame])
        if confidence is not None and points.confidence is not None:
            confidence[frame] = framing.source_values(points.confidence[frame].to(device))
        if progress is not None:
            progress(frame + 1, scene.num_frames)
    maps = PointMaps(positions=positions, colors=colors, valid=valid, confidence=confidence)
    return Scene4D(points=maps, cameras=cameras, fps=scene.fps)


def scene_bytes(num_frames: int, size_hw: tuple[int, int]) -> int:
    """Memory that a scene of so many pixels takes."""
    return num_frames * math.prod(size_hw) * (4 * (3 + 3 + 1) + 1)


def aligned_bytes(num_frames: int, network_hw: tuple[int, int]) -> int:
    """Memory that a scene of the network's pictures takes together with their depth."""
    return scene_bytes(num_frames, network_hw) + 4 * num_frames * math.prod(network_hw)
