"""Depth maps to points: which pixels have usable depth, and where their points are."""

import logging

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..depth_edges import depth_edges
from ..geometry import GeometryError, pixel_centers, transform_points, unproject
from ..scene import Cameras, PointMaps, Scene4D
from ..shapes import ShapeError

_log = logging.getLogger(__name__)


class DepthError(ValueError):
    """Depth that cannot be used: of another size, or without a single usable pixel."""


def usable_depth(
    depth: Float[Tensor, "*batch"], max_depth: float | None = None
) -> Bool[Tensor, "*batch"]:
    """True where depth is finite, positive and at most `max_depth` (None: no limit)."""
    if max_depth is not None and not max_depth > 0:
        raise DepthError(f"max_depth is {max_depth}; expected a positive number or None.")
    usable = depth.isfinite() & (depth > 0)
    return usable if max_depth is None else usable & (depth <= max_depth)


def check_same_size(depth: Tensor, height: int, width: int) -> None:
    """Refuse depth maps of another size than their image.

    Raises:
        DepthError: names both sizes.
    """
    if depth.shape[-2:] != (height, width):
        raise DepthError(
            f"The depth map is {depth.shape[-2]}x{depth.shape[-1]} and the image is "
            f"{height}x{width} (height x width); expected the same size. Resize one of them, "
            "or use the depth map that belongs to the image."
        )


def lift_points(
    depth: Float[Tensor, "frame height width"],
    cameras: Cameras,
    *,
    max_depth: float | None = None,
) -> tuple[Float[Tensor, "frame height width 3"], Bool[Tensor, "frame height width"]]:
    """World position of every pixel, and whether its depth is usable.

    Positions are finite everywhere; where depth is not usable they are the camera's own.

    Raises:
        DepthError: depth and cameras differ in size.
    """
    check_same_size(depth, cameras.height, cameras.width)
    valid = usable_depth(depth, max_depth)
    pixels = pixel_centers(cameras.height, cameras.width, device=depth.device, dtype=depth.dtype)
    intrinsics = cameras.intrinsics.to(depth)[:, None, None]
    in_camera = unproject(pixels, depth.where(valid, 0.0), intrinsics)
    return transform_points(in_camera, cameras.camera_to_world.to(depth)[:, None, None]), valid


def lift_depth(
    image: Float[Tensor, "height width 3"],
    depth: Float[Tensor, "height width"],
    camera: Cameras | Float[Tensor, "3 3"],
    *,
    max_depth: float | None = None,
    drop_edges: bool = False,
    fps: float = 8.0,
) -> Scene4D:
    """One image and its depth to a scene of one frame, a point per pixel with usable depth.

    Args:
        image: sRGB in [0, 1].
        depth: camera z; 0, negative and non-finite values mean missing.
        camera: one camera, or intrinsics in pixels (the world is then camera 0).
        max_depth: points farther than this are left out; None keeps all.
        drop_edges: leave out the pixels on both sides of depth edges as well, where depth maps
            are least sure of which surface they show.
        fps: of the scene, for when it is given motion.

    Raises:
        DepthError: sizes differ, or no pixel has usable depth.
        GeometryError: what was given are not pinhole intrinsics in pixels.
    """
    height, width = image.shape[:2]
    if not isinstance(camera, Cameras):
        camera = camera_from_intrinsics(camera, height, width)
    if camera.num_frames != 1 or (camera.height, camera.width) != (height, width):
        raise ShapeError(
            f"camera has {camera.num_frames} frames of {camera.height}x{camera.width}; expected "
            f"one of {height}x{width}, as the image is."
        )
    check_same_size(depth, height, width)
    depth = depth.to(image)
    positions, valid = lift_points(depth[None], camera, max_depth=max_depth)
    if drop_edges:
        valid = valid & ~depth_edges(depth[None], valid)
    if not valid.any():
        raise DepthError(_why_unusable(depth, max_depth))
    _log.info("Depth is usable in %.1f %% of the pixels.", 100 * float(valid.float().mean()))
    points = PointMaps(positions=positions, colors=image[None], valid=valid)
    return Scene4D(points=points, cameras=camera.to(image.device), fps=fps)


def camera_from_intrinsics(intrinsics: Tensor, height: int, width: int) -> Cameras:
    """Return camera 0 with these intrinsics, in pixels of an image of this size.

    Raises:
        GeometryError: not a pinhole matrix in pixels; says what it looks like instead.
    """
    if intrinsics.shape != (3, 3):
        raise GeometryError(
            f"intrinsics has shape {tuple(intrinsics.shape)}; expected a 3x3 pinhole matrix in "
            f"pixels for a {height}x{width} image."
        )
    camera = Cameras(
        world_to_camera=torch.eye(4, dtype=intrinsics.dtype, device=intrinsics.device)[None],
        intrinsics=intrinsics[None],
        height=height,
        width=width,
    )
    center_x, center_y = intrinsics[:2, 2].tolist()
    if not (0 <= center_x <= width and 0 <= center_y <= height):
        _log.warning(
            "The principal point (%g, %g) lies outside of the %dx%d (height x width) image. Are "
            "the intrinsics those of another size? Then scale them with the image.",
            *(center_x, center_y, height, width),
        )
    return camera


def _why_unusable(depth: Float[Tensor, "height width"], max_depth: float | None) -> str:
    finite = depth.isfinite()
    counts = {
        "NaN or infinite": ~finite,
        "zero": depth == 0,
        "negative": finite & (depth < 0),
        f"beyond max_depth={max_depth}": finite & (depth > (max_depth or torch.inf)),
    }
    found = [f"{int(mask.sum())} are {what}" for what, mask in counts.items() if mask.any()]
    what = ", ".join(found) if found else "all lie on depth edges, which drop_edges leaves out"
    return (
        f"None of the {depth.numel()} pixels has usable depth: {what}. Expected positive, finite "
        "numbers. Is it the right file, in the right unit?"
    )
