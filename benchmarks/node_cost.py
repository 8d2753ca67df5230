"""What the render node costs beyond the backend's `render` and `hole_mask`, in the host's Python.

    COMFYUI_PATH=HOST_FOLDER HOST_PYTHON benchmarks/node_cost.py [--device cpu]

The node also makes a picture of the depth and reports progress; all of that counts as cost. Calls
alternate, so that a machine that slows down slows both; on a CPU it is processor time, which other
work on the machine disturbs little (set OMP_NUM_THREADS=1). Prints the ratio of the shortest times
and of the medians; at most 1.05 is promised.
"""

# pyright: reportMissingImports=false
# What is imported here is the pack as a package, and the host.
import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from host_pack import load_pack  # beside this file


def main() -> None:
    """Measure and print."""
    options = _options()
    sys.argv = sys.argv[:1]  # the host reads it too
    pack = load_pack(cpu=options.device == "cpu")
    nodes = {node.GET_SCHEMA().node_id: node for node in pack}
    import torch
    from more4d_pack.more4d_backend.camera_paths import scene_path
    from more4d_pack.more4d_backend.rendering import RenderSettings, hole_mask, render
    from more4d_pack.more4d_backend.synthetic import make_world

    world = make_world(0)
    scene = world.scene(world.cameras(options.frames, *options.size_hw))
    path = scene_path("orbit-left", scene)
    device = "cuda" if options.device == "cuda" else "cpu"
    inputs: dict[str, Any] = {
        "scene": scene, "camera_path": path, "mode": options.mode, "width": 0, "height": 0,
        "grow_px": 0, "feather_px": 0, "min_area_px": 0, "draw_unseen": False,
        "depth_as": "picture",
    }  # fmt: skip

    def backend() -> None:
        with torch.inference_mode():
            view = render(scene, path, RenderSettings(mode=options.mode, device=device))
            results = (view.rgb, hole_mask(view.alpha), view.depth, view.alpha)
            _ = [result.cpu() for result in results]

    def node() -> None:
        # As the host calls nodes.
        with torch.inference_mode():
            nodes["More4DRender"].execute(**inputs)

    clock = time.perf_counter if device == "cuda" else time.process_time
    seconds = _alternate([backend, node], options.repeats, clock)
    shortest = [min(item) for item in seconds]
    medians = [statistics.median(item) for item in seconds]
    sys.stdout.write(
        f"{options.frames} frames of {scene.points.positions[0].numel() // 3} points at "
        f"{options.size_hw[0]}x{options.size_hw[1]}, {options.mode}, {device}, "
        f"{options.repeats} repeats\n"
        f"shortest: backend {1e3 * shortest[0]:.1f} ms, node {1e3 * shortest[1]:.1f} ms, "
        f"ratio {shortest[1] / shortest[0]:.3f}\n"
        f"medians: backend {1e3 * medians[0]:.1f} ms, node {1e3 * medians[1]:.1f} ms, "
        f"ratio {medians[1] / medians[0]:.3f}\n"
    )


def _alternate(
    calls: list[Callable[[], None]], repeats: int, clock: Callable[[], float]
) -> list[list[float]]:
    seconds: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for i in range(repeats):
        order = list(enumerate(calls))
        for index, call in order if i % 2 else reversed(order):
            start = clock()
            call()
            seconds[index].append(clock() - start)
    return seconds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--size-hw", type=int, nargs=2, default=(368, 512))
    parser.add_argument("--mode", default="splat")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    main()
