"""The 4D scene: the values that every stage makes or uses.

Axes: frame (time index), point, height, width. World units are metres when the depth is metric.
Camera axes are OpenCV's: +x right, +y down, +z forward. See docs/conventions.md.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .geometry import check_intrinsics, check_rigid, invert_rigid
from .shapes import ShapeError, check_kinds, check_shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cameras:
    """Pinhole cameras, one per frame."""

    world_to_camera: Float[Tensor, "frame 4 4"]
    """Rigid: `p_camera = world_to_camera @ p_world`."""

    intrinsics: Float[Tensor, "frame 3 3"]
    """Pixels. Pixel centres are at half-integers, so a centred camera has cx = width / 2."""

    height: int
    """Pixels."""

    width: int
    """Pixels."""

    def __post_init__(self) -> None:
        check_kinds(
            world_to_camera=(self.world_to_camera, "float"), intrinsics=(self.intrinsics, "float")
        )
        check_shapes(
            world_to_camera=(self.world_to_camera, "frame 4 4"),
            intrinsics=(self.intrinsics, "frame 3 3"),
        )
        if self.height < 1 or self.width < 1:
            raise ShapeError(f"Image size is {self.height}x{self.width}; expected at least 1x1.")
        check_rigid(self.world_to_camera, "world_to_camera")
        check_intrinsics(self.intrinsics, self.height, self.width)

    @property
    def num_frames(self) -> int:
        """Number of cameras."""
        return self.world_to_camera.shape[0]

    @property
    def camera_to_world(self) -> Float[Tensor, "frame 4 4"]:
        """Inverse of `world_to_camera`; the last column is the camera's position."""
        return invert_rigid(self.world_to_camera)

    def frames(self, index: slice | list[int]) -> "Cameras":
        """Return the cameras of some frames."""
        return replace(
            self,
            world_to_camera=self.world_to_camera[index],
            intrinsics=self.intrinsics[index],
        )

    def repeated(self, num_frames: int) -> "Cameras":
        """Repeat a single camera for `num_frames` frames, without copying it."""
        if self.num_frames != 1:
            raise ShapeError(f"Only a single camera can be repeated; got {self.num_frames}.")
        return replace(
            self,
            world_to_camera=self.world_to_camera.expand(num_frames, 4, 4),
            intrinsics=self.intrinsics.expand(num_frames, 3, 3),
        )

    def resized(self, height: int, width: int) -> "Cameras":
        """Return the same views as images of another size (the field of view is kept)."""
        scale = self.intrinsics.new_tensor([width / self.width, height / self.height, 1.0])
        return replace(
            self, intrinsics=scale[:, None] * self.intrinsics, height=height, width=width
        )

    def to(self, device: torch.device | str) -> "Cameras":
        """Return a copy on another device."""
        return _to(self, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class PointTracks:
    """Points that keep their identity, and their colour, over time."""

    positions: Float[Tensor, "frame point 3"]
    """World coordinates. Finite wherever `visibility` is True."""

    colors: Float[Tensor, "point 3"]
    """sRGB in [0, 1]."""

    visibility: Bool[Tensor, "frame point"]
    """True where that frame's source camera sees the point. Never stored as `occluded`."""

    grid_hw: tuple[int, int] | None = None
    """(height, width) of the frame-0 pixel grid, if point i is pixel (i // width, i % width)."""

    def __post_init__(self) -> None:
        check_kinds(
            positions=(self.positions, "float"),
            colors=(self.colors, "float"),
            visibility=(self.visibility, "bool"),
        )
        sizes = check_shapes(
            positions=(self.positions, "frame point 3"),
            colors=(self.colors, "point 3"),
            visibility=(self.visibility, "frame point"),
        )
        if self.grid_hw is not None and self.grid_hw[0] * self.grid_hw[1] != sizes["point"]:
            raise ShapeError(
                f"grid_hw is {self.grid_hw}, which makes {self.grid_hw[0] * self.grid_hw[1]} "
                f"points; positions has {sizes['point']}."
            )

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return self.positions.shape[0]

    @property
    def motion(self) -> Float[Tensor, "frame point 3"]:
        """Positions minus those of frame 0."""
        return self.positions - self.positions[:1]

    def frames(self, index: slice | list[int]) -> "PointTracks":
        """Return some frames."""
        return replace(self, positions=self.positions[index], visibility=self.visibility[index])

    def to(self, device: torch.device | str) -> "PointTracks":
        """Return a copy on another device."""
        return _to(self, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class PointMaps:
    """One 3D point per pixel per frame. Points of different frames are unrelated."""

    positions: Float[Tensor, "frame height width 3"]
    """World coordinates. Finite wherever `valid` is True."""

    colors: Float[Tensor, "frame height width 3"]
    """sRGB in [0, 1]."""

    valid: Bool[Tensor, "frame height width"]
    """True where the pixel has a point (not sky, not missing depth)."""

    confidence: Float[Tensor, "frame height width"] | None = None
    """Higher is better; scale depends on the maker. None when the maker gives none."""

    def __post_init__(self) -> None:
        check_kinds(
            positions=(self.positions, "float"),
            colors=(self.colors, "float"),
            valid=(self.valid, "bool"),
        )
        tensors = {
            "positions": (self.positions, "frame height width 3"),
            "colors": (self.colors, "frame height width 3"),
            "valid": (self.valid, "frame height width"),
        }
        if self.confidence is not None:
            check_kinds(confidence=(self.confidence, "float"))
            tensors["confidence"] = (self.confidence, "frame height width")
        check_shapes(**tensors)

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return self.positions.shape[0]

    def frames(self, index: slice | list[int]) -> "PointMaps":
        """Return some frames."""
        confidence = None if self.confidence is None else self.confidence[index]
        return PointMaps(
            positions=self.positions[index],
            colors=self.colors[index],
            valid=self.valid[index],
            confidence=confidence,
        )

    def to(self, device: torch.device | str) -> "PointMaps":
        """Return a copy on another device."""
        return _to(self, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene4D:
    """A moving scene, with the cameras that its points were seen from."""

    points: PointTracks | PointMaps
    """What the scene consists of."""

    cameras: Cameras
    """Source cameras, one per frame. Frame 0 is the input view."""

    fps: float
    """Frames per second; positive."""

    def __post_init__(self) -> None:
        if not 0 < self.fps < math.inf:
            raise ValueError(f"fps is {self.fps}; expected a positive, finite number.")
        if self.points.num_frames != self.cameras.num_frames:
            raise ShapeError(
                f"points has {self.points.num_frames} frames and cameras has "
                f"{self.cameras.num_frames}; expected one source camera per frame."
            )

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return self.points.num_frames

    def frames(self, index: slice | list[int]) -> "Scene4D":
        """Return some frames; `scene.frames([5] * 49)` freezes time at frame 5."""
        return replace(self, points=self.points.frames(index), cameras=self.cameras.frames(index))

    def to(self, device: torch.device | str) -> "Scene4D":
        """Return a copy on another device."""
        return replace(self, points=self.points.to(device), cameras=self.cameras.to(device))


_T = TypeVar("_T", Cameras, PointTracks, PointMaps)


def _to(value: _T, device: torch.device | str) -> _T:
    moved = {
        f.name: item.to(device)
        for f in fields(value)
        if isinstance(item := getattr(value, f.name), Tensor)
    }
    return replace(value, **moved)
