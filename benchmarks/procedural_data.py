"""Samples per minute of procedural training data, by stage.

    python -m benchmarks.procedural_data                        on the GPU, else on the CPU
    python -m benchmarks.procedural_data --recipe tiny --num-samples 20 --device cpu

Aim: 1 000 samples a minute of 25 frames at 192x256 (recipe quick) on one H100 or H200, that is
60 ms each: two videos, tracks and their visibility. Stages are timed one by one with the device
idle between them; the last line makes whole samples without waiting, as a trainer does. Kernel
launches are counted on one sample by the profiler; on the CPU it counts operators instead.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from more4d_backend.camera_paths import make_path
from training.procedural.dataset import PROCEDURAL_RECIPES, procedural_sample
from training.procedural.scenes import draw_scene
from training.procedural.settings import ProceduralSettings

_T = TypeVar("_T")


class Stages:
    """Seconds of each stage, one entry per sample."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}

    def timed(self, name: str, stage: Callable[[], _T]) -> _T:
        """Run a stage with the device idle before and after."""
        self._wait()
        start = time.perf_counter()
        result = stage()
        self._wait()
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        return result

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def stage_times(seeds: range, settings: ProceduralSettings, device: torch.device) -> Stages:
    """Make samples stage by stage."""
    stages = Stages(device)
    size = settings.size
    for seed in seeds:
        scene = stages.timed("draw the scene", partial(draw_scene, seed, settings))
        world = scene.world
        cameras = world.cameras(size.num_frames, size.height, size.width)
        there = cameras.to(device)
        if scene.novel_path is None:
            raise SystemExit("This recipe has no second video, and nothing to compare with.")
        novel = make_path(
            scene.novel_path,
            cameras.frames([0]),
            size.num_frames,
            settings=scene.path_settings,
        ).to(device)
        samples = settings.samples
        view = stages.timed("source video", partial(world.view, there, samples=samples))
        stages.timed("tracks and visibility", partial(world.tracks, there, first=view))
        stages.timed("novel video", partial(world.view, novel, samples=samples))
    return stages


def count_launches(seed: int, settings: ProceduralSettings, device: torch.device) -> int:
    """Kernels of one sample; on the CPU its operators."""
    on_gpu = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        procedural_sample(seed, settings, device=device)
    averages = profiler.key_averages()
    names = ("Memcpy", "Memset") if on_gpu else ()
    return sum(a.count for a in averages if not a.key.startswith(names or ("no such",)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", choices=PROCEDURAL_RECIPES, default="quick")
    parser.add_argument("--num-samples", type=int, default=50)
    parser.add_argument("--samples", type=int, help="rays per pixel and direction")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    settings = PROCEDURAL_RECIPES[arguments.recipe]()
    if arguments.samples:
        settings = replace(settings, samples=arguments.samples)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    size = settings.size
    print(
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}; "
        f"{size.num_frames}x{size.height}x{size.width}, {settings.samples}x{settings.samples} rays"
    )
    for seed in range(3):  # warm-up: allocator, libraries, compiled kernels
        procedural_sample(10**6 + seed, settings, device=device)
    stages = stage_times(range(arguments.num_samples), settings, device)
    for stage, seconds in stages.seconds.items():
        mean = statistics.mean(seconds)
        print(f"{stage:24} {1e3 * mean:9.1f} ms {60 / mean:9.0f} samples/min alone")

    def whole() -> None:
        for seed in range(arguments.num_samples):
            procedural_sample(seed, settings, device=device)

    stages.timed("whole", whole)
    mean = stages.seconds["whole"][0] / arguments.num_samples
    print(f"{'whole samples':24} {1e3 * mean:9.1f} ms {60 / mean:9.0f} samples/min")
    launches = count_launches(0, settings, device)
    print(f"{launches} {'kernels' if device.type == 'cuda' else 'operators'} in one sample")
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
