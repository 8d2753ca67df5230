"""A video and the depth of its frames to a scene with one point per pixel and frame."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..depth_edges import depth_edges
from ..scene import Cameras, PointMaps, Scene4D
from ..shapes import check_shapes
from .lifting import DepthError, lift_points

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthVideo:
    """Frames of a video with depth and cameras."""

    images: Float[Tensor, "frame height width 3"]
    """sRGB in [0, 1]."""

    depth: Float[Tensor, "frame height width"]
    """Camera z; 0, negative and non-finite values mean missing."""

    usable: Bool[Tensor, "frame height width"]
    """False where a pixel is to have no point (sky), whatever its depth."""

    cameras: Cameras
    """One per frame, for pictures of this size."""

    confidence: Float[Tensor, "frame height width"] | None = None
    """Higher is better; scale depends on the maker."""

    def __post_init__(self) -> None:
        tensors = {
            "images": (self.images, "frame height width 3"),
            "depth": (self.depth, "frame height width"),
            "usable": (self.usable, "frame height width"),
        }
        if self.confidence is not None:
            tensors["confidence"] = (self.confidence, "frame height width")
        check_shapes(**tensors)


def lift_video(
    video: DepthVideo,
    *,
    fps: float,
    max_depth: float | None = None,
    drop_edges: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Scene4D:
    """Lift every frame, by its own depth and camera, to points in the world of the cameras.

    Points of different frames are unrelated; nothing is tracked.

    Args:
        video: at least one frame.
        fps: frames per second of the video.
        max_depth: points farther than this are left out; None keeps all.
        drop_edges: leave out the pixels on both sides of depth edges as well.
        progress: called with (frames done, all frames); raising from it interrupts.

    Raises:
        DepthError: depth and cameras differ in size, or no pixel has usable depth.
    """
    positions = torch.empty_like(video.images)
    valid = torch.empty_like(video.usable)
    for i in range(len(video.depth)):
        now, depth = slice(i, i + 1), video.depth[i : i + 1]
        positions[now], valid[now] = lift_points(
            depth, video.cameras.frames(now), max_depth=max_depth
        )
        if drop_edges:
            valid[now] &= ~depth_edges(depth, valid[now])
        if progress is not None:
            progress(i + 1, len(video.depth))
    valid &= video.usable
    if not valid.any():
        raise DepthError(
            "No pixel of any frame has usable depth. Expected positive, finite numbers; check "
            "max_depth, and the depth that came."
        )
    _log.info("Depth is usable in %.1f %% of the pixels.", 100 * float(valid.float().mean()))
    points = PointMaps(
        positions=positions, colors=video.images, valid=valid, confidence=video.confidence
    )
    return Scene4D(points=points, cameras=video.cameras, fps=fps)
