"""A picture as points at the networks' size: what motion starts from, and how it moves them.

The pipeline makes it from an image, its depth and its camera; a host with a graph of nodes from a
scene of one frame, which any depth provider can make.
"""

from dataclasses import dataclass

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from ..depth.lifting import DepthError, lift_points
from ..depth_edges import depth_edges
from ..geometry import transform_points
from ..motion import denormalize_motion
from ..scene import PointMaps, PointTracks, Scene4D
from ..shapes import ShapeError
from ..wan.fitting import Fit, FittedImage, fit_to_size
from ..wan.sampling import SamplingError
from .edge_snapping import snap_motion_to_edges
from .profile import StragWeightsProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class LiftedImage:
    """A picture at the networks' size, with a point for each of its pixels."""

    fitted: FittedImage
    """Picture, depth and camera."""

    positions: Float[Tensor, "height width 3"]
    """World coordinates; finite everywhere, the camera's own where not valid."""

    valid: Bool[Tensor, "height width"]
    """True where the pixel has a point."""

    def scene(self, fps: float) -> Scene4D:
        """Return the points as a scene of one frame, without a border that only fills the size."""
        fitted = self.fitted
        part = (slice(None), fitted.rows, fitted.columns)
        points = PointMaps(
            positions=self.positions[None][part],
            colors=fitted.image[None][part],
            valid=self.valid[None][part],
        )
        return Scene4D(points=points, cameras=fitted.content_camera, fps=fps)


def lift_fitted(
    fitted: FittedImage, *, max_depth: float | None = None, drop_edges: bool = False
) -> LiftedImage:
    """Give every pixel its point; see `StragSettings` for the options.

    Raises:
        DepthError: no pixel has usable depth.
    """
    positions, valid = lift_points(fitted.depth[None], fitted.camera, max_depth=max_depth)
    if drop_edges:
        valid = valid & ~depth_edges(fitted.depth[None], valid)
    if not valid.any():
        raise DepthError("No pixel has usable depth; expected positive, finite numbers.")
    return LiftedImage(fitted=fitted, positions=positions[0], valid=valid[0])


def lift_scene(
    scene: Scene4D,
    image: Float[Tensor, "height width 3"],
    size_hw: tuple[int, int],
    fit: Fit = "crop",
) -> LiftedImage:
    """Bring a scene of one frame, a point per pixel of `image`, to a size.

    Of a scene that `LiftedImage.scene` gave, with its own colours, `pad` makes the same again.

    Raises:
        ShapeError: the scene has other points than one frame of point maps, or another size.
        DepthError: no pixel has usable depth.
    """
    points = scene.points
    if not isinstance(points, PointMaps) or points.num_frames != 1:
        kind = "one point per pixel" if isinstance(points, PointMaps) else "tracks"
        raise ShapeError(
            f"The scene has {points.num_frames} frames of {kind}; needed here is the picture that "
            "is to move: one frame with a point per pixel, as lifting an image by its depth gives."
        )
    if points.valid.shape[1:] != image.shape[:2]:
        (points_h, points_w), (image_h, image_w) = points.valid.shape[1:], image.shape[:2]
        raise ShapeError(
            f"The scene was lifted from a picture of {points_h}x{points_w} and the image is "
            f"{image_h}x{image_w} (height x width). Give the image that the scene was made of."
        )
    camera = scene.cameras
    in_camera = transform_points(points.positions[0], camera.world_to_camera[0].to(image))
    fitted = fit_to_size(image, in_camera[..., 2].to(image), camera, size_hw, fit)
    # Points may be left out for other reasons than their depth (edges, a mask).
    kept = fit_to_size(image, points.valid[0].to(image), camera, size_hw, fit).depth > 0
    lifted = lift_fitted(fitted)
    if not (lifted.valid & kept).any():
        raise DepthError("No point of the scene is valid where it was cut to the networks' size.")
    return LiftedImage(fitted=fitted, positions=lifted.positions, valid=lifted.valid & kept)


def moved_scene(
    normalized: Float[Tensor, "frame height width 3"],
    lifted: LiftedImage,
    profile: StragWeightsProfile,
    *,
    fps: float,
    snap_to_edges: bool | None = None,
) -> Scene4D:
    """Move the points of a picture by normalised motion.

    The scene's points are the pixels that show the picture, its source camera the picture's own.
    `snap_to_edges` None: as the weights' profile says.

    Raises:
        SamplingError: the motion is not finite.
    """
    if not normalized.isfinite().all():
        raise SamplingError(
            "The motion VAE decoded NaN or infinity. Check that its weights are whole, and "
            "use bfloat16 or float32 instead of float16."
        )
    fitted = lifted.fitted
    if profile.snap_to_edges if snap_to_edges is None else snap_to_edges:
        normalized = snap_motion_to_edges(
            normalized, fitted.image.to(normalized), fitted.depth.to(normalized)
        )
    positions = denormalize_motion(normalized, lifted.positions, fitted.camera, profile.motion)
    rows, columns, camera = fitted.rows, fitted.columns, fitted.content_camera
    num_frames = positions.shape[0]
    visible = rearrange(lifted.valid[rows, columns], "h w -> (h w)")
    points = PointTracks(
        positions=rearrange(positions[:, rows, columns], "f h w c -> f (h w) c"),
        colors=rearrange(fitted.image[rows, columns], "h w c -> (h w) c"),
        visibility=visible.expand(num_frames, -1),
        grid_hw=(camera.height, camera.width),
    )
    return Scene4D(points=points, cameras=camera.repeated(num_frames), fps=fps)
