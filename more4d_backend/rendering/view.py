"""The points of some frames, and how the cameras of a path see them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..scene import Cameras, PointMaps, Scene4D

_BEYOND_ANY_PICTURE_PX = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class PointFrames:
    """Points of one or more frames, in one layout for tracks and point maps."""

    positions: Float[Tensor, "frame point 3"]
    """World coordinates; may be anything where not usable."""

    usable: Bool[Tensor, "frame point"]
    """True where the point is to be drawn, if its position is finite."""

    colors: Float[Tensor, "colored point 3"]
    """sRGB in [0, 1]; one frame of colors for points that keep theirs, else one per frame."""

    grid_hw: tuple[int, int] | None
    """(height, width) of the pixel grid on which neighbouring points are neighbours."""

    source: Cameras
    """The cameras that the points were seen from, one per frame."""

    is_tracks: bool
    """True where points keep their identity over time, so that they leave the pixel grid."""

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return self.positions.shape[0]

    @property
    def num_points(self) -> int:
        """Points per frame."""
        return self.positions.shape[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class PointsInView:
    """Where points fall in the rendered pictures."""

    x: Float[Tensor, "frame point"]
    """Pixels, centres at half-integers. Means nothing where not drawn."""

    y: Float[Tensor, "frame point"]
    """Pixels. Means nothing where not drawn."""

    depth: Float[Tensor, "frame point"]
    """Camera z. Above 0 where drawn."""

    drawn: Bool[Tensor, "frame point"]
    """True for usable, finite points in front of the camera, inside the picture or not."""


def point_frames(
    scene: Scene4D, frames: slice, device: torch.device, *, draw_unseen: bool
) -> PointFrames:
    """Bring some frames of a scene to the device, points on grids flattened row by row."""
    if frames != slice(0, scene.num_frames):  # a new Cameras is checked anew: 0.4 ms for 49 frames
        scene = scene.frames(frames)
    points = scene.points
    if isinstance(points, PointMaps):
        frames_count, height, width, _ = points.positions.shape
        shape = (frames_count, height * width)
        positions = points.positions.reshape(*shape, 3)
        usable = points.valid.reshape(shape)
        colors, grid_hw = points.colors.reshape(*shape, 3), (height, width)
    else:
        positions, colors, grid_hw = points.positions, points.colors[None], points.grid_hw
        usable = torch.ones_like(points.visibility) if draw_unseen else points.visibility
    return PointFrames(
        positions=positions.to(device, torch.float32),
        usable=usable.to(device),
        colors=colors.to(device, torch.float32),
        grid_hw=grid_hw,
        source=scene.cameras,
        is_tracks=not isinstance(points, PointMaps),
    )


def points_in_view(points: PointFrames, cameras: Cameras) -> PointsInView:
    """Project points into cameras. Points of a single frame are seen by all the cameras."""
    x, y, depth = project_points(points.positions, cameras)
    # What has an infinite or NaN coordinate has no finite depth, and NaN as x and y.
    drawn = (x * x).addcmul_(y, y) < _BEYOND_ANY_PICTURE_PX**2
    drawn &= depth > 0
    drawn &= points.usable
    return PointsInView(x=x, y=y, depth=depth, drawn=drawn)


def project_points(
    positions: Float[Tensor, "#frame point 3"], cameras: Cameras
) -> Float[Tensor, "3 frame point"]:
    """Pixel x, pixel y and depth (camera z) of every point; x and y mean nothing for depth <= 0.

    The products are written out, because a matrix product may run in TF32 (a host's global
    setting, wrong by pixels here) and rounds differently for different numbers of frames. Every
    coordinate is read three times, so they are first laid out one after another.
    """
    x, y, z = positions.movedim(-1, 0).contiguous()
    a, b, c, d = projection_rows(cameras, positions.device).movedim(-1, 0)[..., None]
    projected = torch.addcmul(d, x, a).addcmul_(y, b).addcmul_(z, c)
    projected[:2].div_(projected[2])
    return projected


def projection_rows(cameras: Cameras, device: torch.device) -> Float[Tensor, "3 frame 4"]:
    """Intrinsics times world-to-camera, multiplied in float64, as float32.

    Where the cameras lie, so that nothing waits for a device; but on the CPU if they lie on MPS,
    which has no float64. Written out, so that every device rounds alike.
    """
    at = torch.device("cpu") if cameras.intrinsics.device.type == "mps" else None
    K, pose = (m.to(at, torch.float64) for m in (cameras.intrinsics, cameras.world_to_camera))
    terms = K.transpose(0, 1)[..., None] * pose[:, :3]
    rows = terms[:, :, 0] + terms[:, :, 1] + terms[:, :, 2]
    return rows.to(torch.float32).to(device, non_blocking=True)
