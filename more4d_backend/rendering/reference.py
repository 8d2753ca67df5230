"""Scene and camera path to pictures: plain torch, any device, all frames at once.

On CUDA, `nearest` is drawn by the kernels of `nearest_triton` where triton can be used.
"""

import logging
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..devices.triton_support import triton_runs
from ..scene import Cameras, PointMaps, Scene4D
from . import gaussian_torch, gsplat_cuda
from .gaussians import blended, gaussians_of
from .settings import RenderError, RenderMode, RenderOutput, RenderSettings
from .shading import at_points
from .splat import splat
from .surface import first_spacing, surface_of
from .view import PointFrames, point_frames, points_in_view, project_points
from .zbuffer import z_buffer

log = logging.getLogger(__name__)

_DEFAULTS = RenderSettings()

# Working memory at its peak, rounded up; a GPU test holds it against what is used.
_BYTES_PER_POINT = {"nearest": 80, "splat": 240, "gaussian": 600}
_BYTES_PER_PIXEL = {"nearest": 80, "splat": 200, "gaussian": 200}
_CPU_BYTES = (
    96 * 2**20
)  # stays near a CPU's caches: eight frames of 512x368 at once are a third slower
_OTHER_BYTES = 2**30
_UNASKED_SHARE = 1 / 32
"""What takes less of a CUDA device than this is rendered at once. To ask the driver and torch's
allocator how much is free would cost a good part of the time that `nearest` needs for 49 frames."""
_SHARE_OF_FREE = 0.6
DRAWN = "Points are drawn"
"""For the log, where triton does not run."""


@torch.no_grad()
def render(
    scene: Scene4D,
    cameras: Cameras,
    settings: RenderSettings = _DEFAULTS,
    progress: Callable[[int, int], None] | None = None,
) -> RenderOutput:
    """Render a scene along a camera path.

    Points are drawn in the frames in which they are visible (tracks) or valid (point maps), and
    where their positions are finite.

    Args:
        scene: as many frames as the path has, or one frame, which all the cameras then see.
        cameras: the path; its height and width are those of the pictures.
        settings: mode, sizes, device.
        progress: called with (frames done, all frames); raising from it interrupts.

    Raises:
        RenderError: the frame counts differ, or no point is to be drawn in any frame.
    """
    _check_frames(scene, cameras)
    # The answer is read when the first frames are under way: a device would stand still meanwhile.
    not_empty = _anything_to_draw(scene, settings)
    device = torch.device(settings.device or scene.points.positions.device)
    spacing = None if settings.mode == "nearest" else first_spacing(scene, device)
    step = settings.chunk_frames or _frames_that_fit(scene, cameras, settings, device)
    if settings.mode == "gaussian":
        _log_backend(settings, device)
    size = (cameras.num_frames, cameras.height, cameras.width)
    output = None
    for start in range(0, cameras.num_frames, step):
        now = slice(start, min(start + step, cameras.num_frames))
        of_scene = slice(0, 1) if scene.num_frames == 1 else now
        points = point_frames(scene, of_scene, device, draw_unseen=settings.draw_unseen)
        if step >= cameras.num_frames:
            output = _render_frames(points, cameras, spacing, settings)
        else:
            chunk = _render_frames(points, cameras.frames(now), spacing, settings)
            output = output or _empty_output(size, device)
            output.rgb[now], output.depth[now] = chunk.rgb, chunk.depth
            output.alpha[now] = chunk.alpha
        if start == 0:
            _check_not_empty(not_empty, scene, settings)
        if progress is not None:
            progress(now.stop, cameras.num_frames)
    assert output is not None
    return output


def check_renderable(scene: Scene4D, cameras: Cameras, settings: RenderSettings) -> None:
    """Refuse what `render` would refuse, before any work.

    Raises:
        RenderError: the frame counts differ, or no point is to be drawn in any frame.
    """
    _check_frames(scene, cameras)
    _check_not_empty(_anything_to_draw(scene, settings), scene, settings)


def bytes_per_frame(scene: Scene4D, cameras: Cameras, mode: RenderMode) -> int:
    """Working memory of each frame that is rendered at once, rounded up; without the scene's."""
    num_points = scene.points.positions[0, ..., 0].numel()
    num_pixels = cameras.height * cameras.width
    return num_points * _BYTES_PER_POINT[mode] + num_pixels * _BYTES_PER_PIXEL[mode]


def nearest(points: PointFrames, cameras: Cameras) -> RenderOutput:
    """Draw each point into the one pixel that it falls on, by the fastest means of the device."""
    device = points.positions.device
    if device.type == "cuda" and triton_runs(DRAWN, device):
        from . import nearest_triton

        return nearest_triton.nearest(points, cameras)
    return nearest_plain(points, cameras)


def nearest_plain(points: PointFrames, cameras: Cameras) -> RenderOutput:
    """Draw each point into the one pixel that it falls on, with plain torch."""
    x, y, depth = project_points(points.positions, cameras)
    inside = x >= 0  # NaN, which infinite and NaN positions become, is inside of nothing
    for test in (x < cameras.width, y >= 0, y < cameras.height, depth > 0, points.usable):
        inside &= test
    num_pixels = cameras.height * cameras.width
    number = torch.arange(points.num_points, device=depth.device)
    pixel = torch.add(x.to(torch.int32), y.to(torch.int32), alpha=cameras.width)
    # Points outside go nowhere (depth infinity), each to a pixel of its own: atomics on one
    # address would queue up.
    pixel = torch.where(inside, pixel, number % num_pixels)
    buffer = z_buffer(cameras.num_frames * num_pixels, depth.device)
    buffer.draw_frames(pixel, depth.where(inside, torch.inf), number)
    return at_points(buffer, points, cameras)


def _check_frames(scene: Scene4D, cameras: Cameras) -> None:
    if scene.num_frames not in (1, cameras.num_frames):
        raise RenderError(
            f"The scene has {scene.num_frames} frames and the camera path has "
            f"{cameras.num_frames}; expected as many cameras as frames, or a scene of one frame. "
            "Make the path with the scene's number of frames, or take one frame of the scene."
        )
    if cameras.num_frames == 0:
        raise RenderError("The camera path has no frames; expected at least one camera.")


def _anything_to_draw(scene: Scene4D, settings: RenderSettings) -> Bool[Tensor, ""]:
    points = scene.points
    if isinstance(points, PointMaps):
        return points.valid.any()
    if settings.draw_unseen:
        return points.positions.isfinite().all(-1).any()
    return points.visibility.any()


def _check_not_empty(
    anything_to_draw: Bool[Tensor, ""], scene: Scene4D, settings: RenderSettings
) -> None:
    if anything_to_draw:
        return
    if isinstance(scene.points, PointMaps):
        what = "point maps have no valid pixel"
    else:
        what = f"tracks have no {'finite position' if settings.draw_unseen else 'visible point'}"
    raise RenderError(
        f"The scene is empty: its {what} in any frame, so there is nothing to draw. Check the "
        "depth or the tracks that it was made from."
    )


def _render_frames(
    points: PointFrames,
    cameras: Cameras,
    spacing: Float[Tensor, "1 point"] | None,
    settings: RenderSettings,
) -> RenderOutput:
    if settings.mode == "nearest":
        return nearest(points, cameras)
    surface = surface_of(points, spacing)
    if settings.mode == "splat":
        view = points_in_view(points, cameras)
        return splat(points, view, surface, cameras, settings.max_footprint_px)
    gaussians = gaussians_of(points, surface, settings.gaussian_sigma)
    if _takes_gsplat(settings, gaussians.means.device):
        return blended(*gsplat_cuda.rasterize(gaussians, cameras))
    return blended(*gaussian_torch.rasterize(gaussians, cameras))


def _empty_output(size: tuple[int, int, int], device: torch.device) -> RenderOutput:
    return RenderOutput(
        rgb=torch.empty(*size, 3, device=device),
        depth=torch.empty(size, device=device),
        alpha=torch.empty(size, device=device),
    )


def _takes_gsplat(settings: RenderSettings, device: torch.device) -> bool:
    if settings.gaussian_backend == "auto":
        return gsplat_cuda.missing_gsplat(device) is None
    return settings.gaussian_backend == "gsplat"


def _log_backend(settings: RenderSettings, device: torch.device) -> None:
    if _takes_gsplat(settings, device):
        log.info("Gaussians are rendered by gsplat on %s.", device)
    elif settings.gaussian_backend == "torch":
        log.info("Gaussians are rendered by plain torch on %s, as asked.", device)
    else:
        reason = gsplat_cuda.missing_gsplat(device)
        log.warning("Gaussians are rendered by plain torch, which is slow, because %s.", reason)


def _frames_that_fit(
    scene: Scene4D, cameras: Cameras, settings: RenderSettings, device: torch.device
) -> int:
    per_frame = bytes_per_frame(scene, cameras, settings.mode)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        if cameras.num_frames * per_frame < total * _UNASKED_SHARE:
            return cameras.num_frames
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        budget = (torch.cuda.mem_get_info(device)[0] + cached) * _SHARE_OF_FREE
    else:
        budget = _CPU_BYTES if device.type == "cpu" else _OTHER_BYTES
    return max(1, int(budget // per_frame))
