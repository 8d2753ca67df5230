"""An analytic 4D world from a seed: exact colour, depth, motion and visibility, in any view.

Every surface is met by a ray in closed form, every motion is a closed form of time, and the
colour of a point never changes; so novel views are the truth that a renderer is measured by.
World = camera of frame 0. A world is a description in plain numbers: each call computes on the
device, and in the dtype, of the cameras it is given.
"""

from dataclasses import dataclass
from itertools import product

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..geometry import focal_from_fov, intrinsics_from_focal, pixel_centers, transform_points
from ..scene import Cameras, PointMaps, PointTracks, Scene4D
from ..shapes import ShapeError
from .actors import SyntheticObject
from .casting import RayCaster
from .layout import CameraMotion, random_layout
from .motions import Vector, object_to_stage
from .surfaces import (
    Shape,
    Surfaces,
    Texture,
    pack_textures,
)

SKY = -1
"""`object_index` of a pixel that sees no object."""

_ENDLESS_SKY_M = 1e3
"""Where the points of a sky at infinity are put; they are never visible and have no depth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticView:
    """What cameras see of a world: the truth, per pixel."""

    rgb: Float[Tensor, "frame height width 3"]
    """sRGB in [0, 1]. With `samples` > 1, the mean over the pixel's area."""

    depth: Float[Tensor, "frame height width"]
    """Camera z at the pixel's centre; inf where an endless sky is seen."""

    positions: Float[Tensor, "frame height width 3"]
    """World coordinates at the pixel's centre; finite, but of no meaning where depth is inf."""

    object_index: Int[Tensor, "frame height width"]
    """Which object the pixel's centre sees; `SKY` (-1) where none."""

    cameras: Cameras
    """That saw it."""

    @property
    def valid(self) -> Bool[Tensor, "frame height width"]:
        """True where the pixel has a point."""
        return self.depth.isfinite()

    def point_maps(self) -> PointMaps:
        """One point per pixel."""
        return PointMaps(positions=self.positions, colors=self.rgb, valid=self.valid)

    def scene(self, fps: float) -> Scene4D:
        """Return the point maps as a scene."""
        return Scene4D(points=self.point_maps(), cameras=self.cameras, fps=fps)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticWorld:
    """Moving objects under a sky. Made by `make_world`, or from objects of your own."""

    objects: tuple[SyntheticObject, ...]
    """Scenery and actors; an object's parent comes before it."""

    sky: Texture
    """Color by direction."""

    sky_radius_m: float | None
    """The sky is a static dome about the stage's origin, with depth like everything else. None
    puts it at infinity: then it has no depth, and its tracks are never visible."""

    light: Vector
    """Unit direction to the light, on the stage (+y is down)."""

    waves: tuple[Vector, ...]
    """Wave vectors of the marble texture."""

    camera_motion: CameraMotion
    """The source camera, and where it stands on the stage at time 0."""

    fps: float
    """Frames per second of the source cameras."""

    def __post_init__(self) -> None:
        if not self.objects:
            raise ValueError("A synthetic world needs at least one object; got none.")
        for number, thing in enumerate(self.objects):
            if not -1 <= thing.motion.parent < number:
                raise ValueError(
                    f"Object {number} ({thing.name}) has parent {thing.motion.parent}; "
                    "expected -1 or the number of an object that comes before it."
                )

    def times(self, num_frames: int) -> Float[Tensor, "frame"]:
        """Time of each frame in seconds."""
        return torch.arange(num_frames) / self.fps

    def cameras(
        self,
        num_frames: int,
        height: int,
        width: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Cameras:
        """Source cameras; that of frame 0 is the identity.

        Raises:
            ValueError: no frames.
        """
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}; expected at least 1.")
        motion = self.camera_motion
        focal_px = torch.tensor(focal_from_fov(motion.fov_rad, max(height, width)))
        intrinsics = intrinsics_from_focal(focal_px, height, width)
        return Cameras(
            world_to_camera=motion.world_to_camera(self.times(num_frames)).to(device, dtype),
            intrinsics=intrinsics.to(device, dtype).expand(num_frames, 3, 3),
            height=height,
            width=width,
        )

    def poses(self, times_s: Float[Tensor, "frame"]) -> Float[Tensor, "frame object 4 4"]:
        """Object frame (metres) to world; affine, without stretch a similarity. float64."""
        stage = object_to_stage([o.motion for o in self.objects], times_s)
        return self.camera_motion.stage_to_world() @ stage

    def view(
        self,
        cameras: Cameras,
        times_s: Float[Tensor, "frame"] | None = None,
        *,
        samples: int = 1,
    ) -> SyntheticView:
        """See the world through `cameras` at `times_s` (default: at `fps` frames per second).

        `samples` x `samples` rays per pixel are averaged into the colour; everything else
        belongs to the ray through the pixel's centre.
        """
        if samples < 1:
            raise ValueError(f"samples is {samples}; expected 1 or more.")
        caster = self._caster(cameras, self._times(cameras, times_s))
        center = _pixel_rays(cameras, 0.0, 0.0)
        depth, surface = caster.cast(center)
        if samples == 1:
            rgb = caster.colors(center, depth, surface)
        else:
            rgb = torch.zeros_like(center)
            for row, column in product(range(samples), repeat=2):
                dx, dy = (column + 0.5) / samples - 0.5, (row + 0.5) / samples - 0.5
                rays = _pixel_rays(cameras, dx, dy)
                rgb += caster.colors(rays, *caster.cast(rays)) / samples**2
        reached = depth.where(depth.isfinite(), depth.new_tensor(_ENDLESS_SKY_M))
        positions = _centers(cameras)[:, None] + center * reached[..., None]

        def image(values: Tensor) -> Tensor:
            return rearrange(values, "f (h w) ... -> f h w ...", h=cameras.height)

        return SyntheticView(
            rgb=image(rgb),
            depth=image(depth),
            positions=image(positions),
            object_index=self._object_index(surface, cameras),
            cameras=cameras,
        )

    def objects_seen(
        self, cameras: Cameras, times_s: Float[Tensor, "frame"] | None = None
    ) -> Int[Tensor, "frame height width"]:
        """`SyntheticView.object_index` of `view`, without the work for the rest."""
        caster = self._caster(cameras, self._times(cameras, times_s))
        _, surface = caster.cast(_pixel_rays(cameras, 0.0, 0.0))
        return self._object_index(surface, cameras)

    def _object_index(self, surface: Tensor, cameras: Cameras) -> Tensor:
        index = surface.where(surface < len(self.objects), SKY)
        return rearrange(index, "f (h w) -> f h w", h=cameras.height)

    def tracks(
        self,
        cameras: Cameras,
        times_s: Float[Tensor, "frame"] | None = None,
        *,
        samples: int = 1,
        first: SyntheticView | None = None,
    ) -> PointTracks:
        """Follow every pixel of frame 0 over time; `visibility` is by exact ray casting.

        `first` is what `view` made of these cameras, or of their frame 0, if it is there already.
        """
        times_s = self._times(cameras, times_s)
        if first is None:
            first = self.view(cameras.frames([0]), times_s[:1], samples=samples)
        index, start = first.object_index[0].flatten(), first.positions[0].reshape(-1, 3)
        poses = self.poses(times_s)
        still = torch.eye(4, dtype=poses.dtype).expand(len(poses), 1, 4, 4)
        moved = torch.cat([poses @ torch.linalg.inv(poses[:1]), still], dim=1)
        moved = moved.to(start)
        # One column at a time: gathering whole 4x4 matrices would need five times the memory.
        positions = moved[:, index, :3, 3]
        for axis in range(3):
            positions += moved[:, index, :3, axis] * start[:, axis, None]
        visible = self.sees(cameras, positions, times_s) & first.valid[0].flatten()
        return PointTracks(
            positions=positions,
            colors=first.rgb[0].reshape(-1, 3),
            visibility=visible,
            grid_hw=(cameras.height, cameras.width),
        )

    def scene(
        self,
        cameras: Cameras,
        times_s: Float[Tensor, "frame"] | None = None,
        *,
        samples: int = 1,
    ) -> Scene4D:
        """Return the tracks of `tracks`, with `cameras` as the source, as a scene."""
        tracks = self.tracks(cameras, times_s, samples=samples)
        return Scene4D(points=tracks, cameras=cameras, fps=self.fps)

    def sees(
        self,
        cameras: Cameras,
        positions: Float[Tensor, "frame point 3"],
        times_s: Float[Tensor, "frame"] | None = None,
    ) -> Bool[Tensor, "frame point"]:
        """Whether points that lie on surfaces are inside the image with nothing before them."""
        times_s = self._times(cameras, times_s)
        homogeneous = torch.einsum(
            "fij,fpj->fpi",
            cameras.intrinsics,
            transform_points(positions, cameras.world_to_camera[:, None]),
        )
        depth = homogeneous[..., 2]
        size = depth.new_tensor([cameras.width, cameras.height])
        inside = (homogeneous[..., :2] >= 0) & (homogeneous[..., :2] < size * depth[..., None])
        directions = positions - _centers(cameras)[:, None]
        first_hit = self._caster(cameras, times_s).cast(directions)[0]
        same_surface = (first_hit - 1).abs() < torch.finfo(depth.dtype).eps ** 0.5
        return (depth > 0) & inside.all(-1) & same_surface

    def _times(self, cameras: Cameras, times_s: Tensor | None) -> Float[Tensor, "frame"]:
        if times_s is None:
            return self.times(cameras.num_frames)
        if len(times_s) != cameras.num_frames:
            raise ShapeError(
                f"times_s has {len(times_s)} entries and cameras has {cameras.num_frames} frames; "
                "expected one time per camera."
            )
        return times_s

    def _caster(self, cameras: Cameras, times_s: Tensor) -> RayCaster:
        """Pack the world for these cameras. All small tensors are made on the CPU in float64."""
        like = cameras.world_to_camera
        poses = self.poses(times_s)
        radius = poses.new_tensor([self.sky_radius_m or 1.0] * 3 + [1.0])
        sky = (self.camera_motion.stage_to_world() * radius).expand(len(poses), 1, 4, 4)
        half_size = poses.new_tensor([o.half_size_m for o in self.objects] + [(1.0, 1.0, 1.0)])
        scale = torch.nn.functional.pad(half_size, (0, 1), value=1.0)
        to_world = torch.cat([poses, sky], dim=1) * scale[:, None, :]
        return RayCaster(
            shapes=tuple(o.shape for o in self.objects),
            surfaces=self._surfaces(half_size, like),
            to_unit=torch.linalg.inv(to_world).to(like),
            centers=_centers(cameras),
            endless_sky=self.sky_radius_m is None,
        )

    def _surfaces(self, half_size: Tensor, like: Tensor) -> Surfaces:
        """Pack the textures, and the light and the ground as each object sees them at time 0."""
        stage = object_to_stage([o.motion for o in self.objects], torch.zeros(1))[0]
        size = torch.linalg.det(stage[:, :3, :3]).pow(1 / 3)
        light = torch.einsum("oij,i->oj", stage[:, :3, :3], stage.new_tensor(self.light))
        height = -stage[:, 1, :]  # the stage's y axis points down
        sky = stage.new_zeros(1, 4)
        shapes = [*(o.shape for o in self.objects), Shape.SPHERE]
        return Surfaces(
            shapes=torch.tensor(shapes, device=like.device),
            half_size=half_size.to(like),
            light=torch.cat([light / size[:, None], sky[:, :3]]).to(like),
            ground=torch.cat([height, sky]).to(like),
            textures=pack_textures([*(o.texture for o in self.objects), self.sky]).to(like),
            waves=like.new_tensor(self.waves),
        )


def make_world(
    seed: int,
    *,
    setting: str | None = None,
    num_objects: int = 4,
    moving_camera: bool = False,
    sky_radius_m: float | None = 40.0,
    duration_s: float = 6.0,
    fps: float = 8.0,
) -> SyntheticWorld:
    """Draw a world: a `room` or a `landscape` (None: either), with objects that move.

    Motions are sized so that over `duration_s` actors stay in the source camera's view. Equal
    arguments give equal worlds on every machine.
    """
    layout = random_layout(seed, setting, num_objects, duration_s, moving_camera)
    return SyntheticWorld(
        objects=layout.objects,
        sky=layout.sky,
        sky_radius_m=sky_radius_m,
        light=layout.light,
        waves=layout.waves,
        camera_motion=layout.camera_motion,
        fps=fps,
    )


def _centers(cameras: Cameras) -> Float[Tensor, "frame 3"]:
    return cameras.camera_to_world[:, :3, 3]


def _pixel_rays(cameras: Cameras, dx: float, dy: float) -> Float[Tensor, "frame ray 3"]:
    """World directions of length 1 in camera z, so that their multiples are depth."""
    like = cameras.intrinsics
    pixels = pixel_centers(cameras.height, cameras.width, device=like.device, dtype=like.dtype)
    pixels = (pixels + pixels.new_tensor([dx, dy])).reshape(-1, 2)
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=-1)
    to_world = cameras.camera_to_world[:, :3, :3] @ torch.linalg.inv(like)
    return torch.einsum("fij,rj->fri", to_world, homogeneous)
