"""Aligned geometry back at the pixels of the video that it came from."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry import pixel_centers, transform_points, unproject
from ..scene import PointMaps, Scene4D
from .framing import Framing
from .video import Video, same_size


def scene_of_content(scene: Scene4D, framing: Framing) -> Scene4D:
    """Cut a scene of the network's pictures to the part that shows the video."""
    points, rows, columns = scene.points, framing.rows, framing.columns
    assert isinstance(points, PointMaps)  # alignment makes nothing else
    if (rows, columns) == tuple(slice(0, size) for size in framing.network_hw):
        return scene
    confidence = points.confidence
    return Scene4D(
        points=PointMaps(
            positions=points.positions[:, rows, columns].clone(),
            colors=points.colors[:, rows, columns].clone(),
            valid=points.valid[:, rows, columns].clone(),
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
) -> Scene4D:
    """Sample a scene of the network's pictures at the pixels of the video, with its own colours.

    Pixels that the network never saw (fit "crop") are not valid.
    """
    points = scene.points
    assert isinstance(points, PointMaps)  # alignment makes nothing else
    cameras = framing.source_cameras(scene.cameras)
    centers = pixel_centers(*framing.source_hw)
    camera_to_world = cameras.camera_to_world
    shape = (scene.num_frames, *framing.source_hw)
    positions, colors = torch.empty(*shape, 3), torch.empty(*shape, 3)
    valid = torch.empty(shape, dtype=torch.bool)
    confidence = None if points.confidence is None else torch.empty(shape)
    for frame, picture in enumerate(same_size(video.pictures())):
        sampled, valid[frame] = framing.source_depth(depth[frame], points.valid[frame])
        in_camera = unproject(centers, sampled, cameras.intrinsics[frame])
        positions[frame] = transform_points(in_camera, camera_to_world[frame])
        positions[frame][~valid[frame]] = torch.nan
        torch.div(picture, 255, out=colors[frame])
        if confidence is not None and points.confidence is not None:
            confidence[frame] = framing.source_values(points.confidence[frame])
    maps = PointMaps(positions=positions, colors=colors, valid=valid, confidence=confidence)
    return Scene4D(points=maps, cameras=cameras, fps=scene.fps)


def source_bytes(num_frames: int, source_hw: tuple[int, int]) -> int:
    """Memory that a scene at the video's own pixels takes."""
    return num_frames * source_hw[0] * source_hw[1] * (4 * (3 + 3 + 1) + 1)
