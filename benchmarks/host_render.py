"""What the render node costs on top of the backend call, in the host's own Python.

    COMFYUI_PATH=HOST_FOLDER HOST_PYTHON benchmarks/host_render.py

Claim: on the same scene and path the node is at most 5 % slower than `rendering.render` with the
hole mask. Both in turn, so that a busy machine slows both.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[1]
_CLAIM = 0.05


def load_pack() -> Any:
    """Import the host and the pack, as the host does."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"].split(os.pathsep)[0])
    arguments, sys.argv = sys.argv, sys.argv[:1]
    from comfy.cli_args import args  # pyright: ignore[reportMissingImports]

    sys.argv = arguments
    args.cpu = True  # before the host looks for devices
    spec = importlib.util.spec_from_file_location(
        "more4d_pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec is not None
    assert spec.loader is not None
    pack = sys.modules["more4d_pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    return pack


def main() -> None:
    """Time both, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-frames", type=int, default=49)
    parser.add_argument("--size-hw", type=int, nargs=2, default=(128, 176))
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    load_pack()
    from more4d_pack.more4d_backend import camera_paths, rendering, synthetic  # type: ignore
    from more4d_pack.nodes.render import More4DRender  # type: ignore

    world = synthetic.make_world(0)
    height, width = options.size_hw
    scene = world.scene(world.cameras(options.num_frames, height, width))
    path = camera_paths.scene_path("orbit-left", scene, options.num_frames)
    settings = rendering.RenderSettings(mode="splat")

    def backend() -> None:
        rendering.hole_mask(rendering.render(scene, path, settings).alpha)

    def node() -> None:
        More4DRender.execute(
            scene, path, mode="splat", width=0, height=0, grow_px=0, feather_px=0, min_area_px=0,
            draw_unseen=False, depth_as="picture",
        )  # fmt: skip

    seconds: dict[str, list[float]] = {"backend": [], "node": []}
    for _ in range(options.repeats + 1):
        for name, call in (("backend", backend), ("node", node)):
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{1000 * median:8.1f} ms  {name}")
    cost = medians["node"] / medians["backend"] - 1
    print(f"{cost:+.1%}; claim: at most {_CLAIM:+.0%}")


if __name__ == "__main__":
    main()
