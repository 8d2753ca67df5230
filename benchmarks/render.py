"""Speed of rendering: 49 frames of 188 416 points at 512x368 along a 15-degree orbit.

    python -m benchmarks.render --device cuda
    python -m benchmarks.render --device cpu --threads 2

Every ratio compares figures of the same run. The reference's algorithm (one frame at a time:
unique pixels, nearest depth by index_reduce, mean colour of what is that near) is written anew
here. The scene is a synthetic world with moving objects and depth edges; all its points are drawn.
"""

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from more4d_backend.camera_paths import PathSettings, scene_path
from more4d_backend.devices.triton_support import triton_runs
from more4d_backend.rendering import RenderOutput, RenderSettings, gsplat_cuda, hole_mask, render
from more4d_backend.rendering import reference as reference_renderer
from more4d_backend.rendering import splat as splat_renderer
from more4d_backend.rendering.footprint import grid_footprints
from more4d_backend.rendering.gaussians import gaussians_of
from more4d_backend.rendering.shading import at_points, between_points
from more4d_backend.rendering.surface import first_spacing, surface_of
from more4d_backend.rendering.view import point_frames, points_in_view, project_points
from more4d_backend.rendering.zbuffer import PackedZBuffer, TwoPassZBuffer, z_buffer
from more4d_backend.scene import Cameras, Scene4D
from more4d_backend.synthetic import make_world

ORBIT_DEG = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table."""

    name: str
    milliseconds: float
    peak_gb: float | None


class Stopwatch:
    """Times calls on one device: median of repeats after a warm-up, and the peak of memory."""

    def __init__(self, device: torch.device, repeats: int):
        self._device = device
        self._repeats = repeats
        self.figures: dict[str, Figure] = {}

    def time(self, name: str, call: Callable[[], object]) -> float:
        """Measure and remember; return milliseconds."""
        call()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if self._device.type == "cuda" else 0
        times = [self._once(call) for _ in range(self._repeats)]
        peak = None
        if self._device.type == "cuda":
            peak = (torch.cuda.max_memory_allocated() - before) / 1e9
        self.figures[name] = Figure(
            name=name, milliseconds=statistics.median(times) * 1e3, peak_gb=peak
        )
        return self.figures[name].milliseconds

    def _once(self, call: Callable[[], object]) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def reference_frame(
    positions: torch.Tensor, colors: torch.Tensor, camera: Cameras
) -> tuple[torch.Tensor, torch.Tensor]:
    """Render one frame as the reference does. Return rgb and the hole mask."""
    homogeneous = torch.cat([positions, torch.ones_like(positions[:, :1])], dim=1)
    in_camera = homogeneous @ camera.world_to_camera[0].T
    depth = in_camera[:, 2]
    normalised = (in_camera[:, :3] / (depth[:, None] + 1e-8)) @ camera.intrinsics[0].T
    column, row = normalised[:, 0].floor().long(), normalised[:, 1].floor().long()
    inside = (depth > 0) & (column >= 0) & (column < camera.width)
    inside &= (row >= 0) & (row < camera.height)
    flat, depth, colors = (row * camera.width + column)[inside], depth[inside], colors[inside]
    pixels, inverse = flat.unique(return_inverse=True)
    nearest = torch.full((len(pixels),), torch.inf, device=flat.device)
    nearest.index_reduce_(0, inverse, depth, "amin")
    front = depth == nearest[inverse]
    total = torch.zeros(len(pixels), 3, device=flat.device)
    total.index_add_(0, inverse[front], colors[front])
    count = torch.zeros(len(pixels), device=flat.device)
    count.index_add_(0, inverse[front], torch.ones_like(depth[front]))
    rgb = torch.zeros(camera.height * camera.width, 3, device=flat.device)
    rgb[pixels] = total / count[:, None]
    rgb = rgb.view(camera.height, camera.width, 3)
    return rgb, rgb.sum(-1) == 0


def reference_loop(scene: Scene4D, path: list[Cameras]) -> torch.Tensor:
    """Render all frames as the reference does, one after another."""
    points = scene.points
    frames = [
        reference_frame(points.positions[i], points.colors, camera)[0]
        for i, camera in enumerate(path)
    ]
    return torch.stack(frames)


def nearest_plain(scene: Scene4D, path: Cameras) -> RenderOutput:
    """Render all frames at once in plain torch, where `render` would take fused kernels."""
    frames, device = slice(0, path.num_frames), scene.points.positions.device
    points = point_frames(scene, frames, device, draw_unseen=False)
    return reference_renderer.nearest_plain(points, path)


def time_modes(watch: Stopwatch, scene: Scene4D, path: Cameras, chunk: int | None) -> None:
    """Whole calls, as a user makes them."""
    for mode in ("nearest", "splat"):
        settings = RenderSettings(mode=mode, chunk_frames=chunk)
        watch.time(mode, lambda settings=settings: render(scene, path, settings))
    device = scene.points.positions.device
    if device.type == "cuda" and triton_runs(reference_renderer.DRAWN, device):
        watch.time("nearest, plain torch", lambda: nearest_plain(scene, path))
    alpha = render(scene, path).alpha
    watch.time("hole mask", lambda: hole_mask(alpha))
    watch.time("hole mask, grow 4, feather 4", lambda: hole_mask(alpha, grow_px=4, feather_px=4))
    watch.time("hole mask, minimum area 64", lambda: hole_mask(alpha, min_area_px=64))


def time_reference(watch: Stopwatch, scene: Scene4D, path: Cameras) -> float:
    """Time the reference's loop. Return the share of pixels where `nearest` gives another colour.

    Rounding moves a point on the border of two pixels either way.
    """
    # Made beforehand: checking a new Cameras is our work and none of the reference's.
    cameras = [path.frames([i]) for i in range(path.num_frames)]
    warnings.filterwarnings("ignore", message="index_reduce")  # "is in beta"
    watch.time("reference algorithm, per frame", lambda: reference_loop(scene, cameras))
    ours = render(scene, path, RenderSettings(mode="nearest")).rgb
    return float(((ours - reference_loop(scene, cameras)).abs().amax(-1) > 1e-3).float().mean())


def time_stages(watch: Stopwatch, scene: Scene4D, path: Cameras) -> None:
    """What the modes are made of, all frames at once."""
    device = scene.points.positions.device
    points = point_frames(scene, slice(0, path.num_frames), device, draw_unseen=False)
    spacing = first_spacing(scene, device)
    view = points_in_view(points, path)
    surface = surface_of(points, spacing)
    assert surface.joins is not None
    assert points.grid_hw is not None
    joins, grid_width = surface.joins, points.grid_hw[1]
    footprints, local_map = grid_footprints(view, joins, grid_width, 16.0)
    num_pixels = path.num_frames * path.height * path.width
    buffer = z_buffer(num_pixels, device)
    splat_renderer.draw_footprints(buffer, view, footprints, path)
    watch.time("  project", lambda: points_in_view(points, path))
    watch.time("  project, no mask", lambda: project_points(points.positions, path))
    watch.time("  nearest, inner part", lambda: reference_renderer.nearest(points, path))
    watch.time("  shade at points", lambda: at_points(buffer, points, path))
    watch.time("  surface", lambda: surface_of(points, spacing))
    watch.time("  footprints", lambda: grid_footprints(view, joins, grid_width, 16.0))
    watch.time(
        "  draw footprints",
        lambda: splat_renderer.draw_footprints(
            z_buffer(num_pixels, device), view, footprints, path
        ),
    )
    watch.time(
        "  shade between points", lambda: between_points(buffer, points, view, local_map, path)
    )
    per_frame = path.height * path.width
    pixel = torch.arange(points.num_points, device=device).roll(17) % per_frame
    pixel = pixel.expand(view.depth.shape).contiguous()
    number = torch.arange(points.num_points, device=device)
    for kind in (PackedZBuffer, TwoPassZBuffer):
        watch.time(
            f"  one point per pixel into {kind.__name__}",
            lambda kind=kind: kind(num_pixels, device).draw_frames(pixel, view.depth, number),
        )


def time_gaussians(watch: Stopwatch, scene: Scene4D, path: Cameras) -> str | None:
    """Time gsplat, in one call and in one call per frame. Return why it could not be, if so."""
    device = scene.points.positions.device
    reason = gsplat_cuda.missing_gsplat(device)
    if reason is not None:
        return reason
    points = point_frames(scene, slice(0, path.num_frames), device, draw_unseen=False)
    surface = surface_of(points, first_spacing(scene, device))
    gaussians = gaussians_of(points, surface, 0.5)
    watch.time("  Gaussians from points", lambda: gaussians_of(points, surface, 0.5))
    watch.time("gsplat, one call", lambda: gsplat_cuda.rasterize(gaussians, path))
    watch.time(
        "gsplat, one call per frame",
        lambda: gsplat_cuda.rasterize(gaussians, path, batched=False),
    )
    settings = RenderSettings(mode="gaussian")
    watch.time("gaussian", lambda: render(scene, path, settings))
    return None


def print_table(watch: Stopwatch, frames: int) -> None:
    """Print every figure."""
    print(f"\n{'':36}{'ms':>10}{'ms/frame':>10}{'frames/s':>10}{'peak GB':>9}")
    for figure in watch.figures.values():
        per_frame = figure.milliseconds / frames
        peak = "" if figure.peak_gb is None else f"{figure.peak_gb:9.2f}"
        print(
            f"{figure.name:36}{figure.milliseconds:10.2f}{per_frame:10.3f}"
            f"{1e3 / per_frame:10.1f}{peak}"
        )


def print_ratios(watch: Stopwatch, frames: int, device: torch.device) -> None:
    """Print what was aimed at, beside what was measured."""
    ms = {name: figure.milliseconds for name, figure in watch.figures.items()}
    print("\nfigure against aim")
    ratio = ms["reference algorithm, per frame"] / ms["nearest"]
    if device.type == "cuda":
        print(
            f"  nearest   {ms['nearest']:8.2f} ms            (at most 4 ms, 49 frames on an H200)"
        )
        print(f"  splat     {ms['splat']:8.2f} ms            (at most 15 ms)")
        print(f"  nearest   {ratio:8.1f} x the reference (at least 50)")
        if "gaussian" in ms:
            gain = ms["gsplat, one call per frame"] / ms["gsplat, one call"]
            print(f"  gaussian  {gain:8.2f} x per-frame calls (at least 2.5)")
    else:
        for mode, aim in (("nearest", 15), ("splat", 4)):
            rate = frames * 1e3 / ms[mode]
            print(f"  {mode:9} {rate:8.1f} frames/s      (at least {aim} on 2 cores)")
        print(f"  nearest   {ratio:8.1f} x the reference")


def hardware(device: torch.device) -> str:
    """Name what the figures were measured on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--size", type=int, nargs=2, default=(368, 512), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, help="default: 20 on CUDA, 3 elsewhere")
    parser.add_argument("--chunk-frames", type=int, help="default: what fits")
    parser.add_argument("--stages", action="store_true", help="also time the parts")
    return parser.parse_args()


def main() -> None:
    """Measure, and print the table last."""
    arguments = parse_arguments()
    device = torch.device(arguments.device)
    torch.set_num_threads(arguments.threads)
    world = make_world(1)
    height, width = arguments.size
    source = world.cameras(arguments.frames, height, width, device=device)
    tracks = world.tracks(source)
    seen = torch.ones_like(tracks.visibility)  # the aim counts every point of every frame
    scene = Scene4D(points=replace(tracks, visibility=seen), cameras=source, fps=world.fps)
    settings = PathSettings(angle_deg=ORBIT_DEG)
    path = scene_path("orbit-left", scene, arguments.frames, settings=settings).to(device)
    watch = Stopwatch(device, arguments.repeats or (20 if device.type == "cuda" else 3))
    time_modes(watch, scene, path, arguments.chunk_frames)
    differing = time_reference(watch, scene, path)
    no_gsplat = time_gaussians(watch, scene, path)
    if arguments.stages or device.type == "cuda":
        time_stages(watch, scene, path)
    print(f"{hardware(device)}, torch {torch.__version__}, {platform.system()}")
    points = scene.points.positions.shape[1]
    print(f"{arguments.frames} frames of {points} points at {width}x{height}, median of repeats")
    print(f"pixels where nearest and the reference's algorithm differ: {differing:.2e}")
    if no_gsplat is not None:
        print(f"gsplat was not measured: {no_gsplat}")
    print_table(watch, arguments.frames)
    print_ratios(watch, arguments.frames, device)


if __name__ == "__main__":
    main()
