"""Time and size of one scene file, against text: `python -m benchmarks.scene_files`.

Writes 49 frames of 368 x 512 tracks (188 416 points), reads them back, and in the same run writes
one frame of the same points with `numpy.savetxt`, which is how tracks are often kept. The text
figures are for one frame, multiplied by the number of frames and labelled so.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from more4d_backend.geometry import intrinsics_from_focal
from more4d_backend.scene import Cameras, PointTracks, Scene4D
from more4d_backend.scene_files import load_scene, save_scene

FRAMES, HEIGHT, WIDTH = 49, 368, 512


def moving_scene() -> Scene4D:
    """Random points on a slope that swing by a tenth of their depth."""
    generator = torch.Generator().manual_seed(0)
    points = HEIGHT * WIDTH
    first = torch.rand(points, 3, generator=generator) * 4 + 1
    direction = torch.randn(points, 3, generator=generator) * 0.1 * first[:, 2:]
    phase = torch.linspace(0, 3, FRAMES).sin()[:, None, None]
    return Scene4D(
        points=PointTracks(
            positions=first + phase * direction,
            colors=torch.randint(0, 256, (points, 3), generator=generator) / 255,
            visibility=torch.rand(FRAMES, points, generator=generator) > 0.2,
            grid_hw=(HEIGHT, WIDTH),
        ),
        cameras=Cameras(
            world_to_camera=torch.eye(4)[None],
            intrinsics=intrinsics_from_focal(torch.tensor([500.0]), HEIGHT, WIDTH),
            height=HEIGHT,
            width=WIDTH,
        ).repeated(FRAMES),
        fps=24.0,
    )


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median wall time of `work`, after one run that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def main() -> None:
    """Print one line per figure."""
    parser = argparse.ArgumentParser(description="Time and size of one scene file, against text.")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads for torch")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs; the median counts")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.basicConfig(level=logging.INFO)
    scene = moving_scene()
    with tempfile.TemporaryDirectory() as folder:
        path, text_path = Path(folder) / "scene.safetensors", Path(folder) / "frame.txt"
        save_s = seconds(lambda: save_scene(path, scene), options.repeats)
        load_s = seconds(lambda: load_scene(path), options.repeats)
        megabytes = path.stat().st_size / 1e6
        error = (load_scene(path).points.positions - scene.points.positions).abs().max()
        frame = scene.points.positions[0].numpy()
        text_s = seconds(lambda: np.savetxt(text_path, frame), 1)
        text_megabytes = text_path.stat().st_size / 1e6
    print(f"{FRAMES} frames x {HEIGHT * WIDTH} points, {options.threads} CPU threads")
    print(f"save                 {save_s:8.3f} s")
    print(f"load                 {load_s:8.3f} s")
    print(f"save + load          {save_s + load_s:8.3f} s     (aim: at most 2)")
    print(f"size                 {megabytes:8.1f} MB    (aim: at most 75)")
    print(f"largest error        {error:8.1e} of a scene 5 wide")
    print(f"numpy.savetxt        {text_s:8.3f} s and {text_megabytes:.1f} MB, measured on 1 frame")
    print(
        f"  x {FRAMES} (scaled)      {text_s * FRAMES:8.1f} s and {text_megabytes * FRAMES:.0f} MB"
    )
    print(f"save is              {text_s * FRAMES / save_s:8.0f} times faster than that, and")
    print(f"the file is          {text_megabytes * FRAMES / megabytes:8.1f} times smaller")


if __name__ == "__main__":
    main()
