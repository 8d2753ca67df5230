"""Seconds that step caching and CFG-skip save, and how far they move the final latent.

    python -m benchmarks.step_cache                            full size, about 40 GiB; one H200
    python -m benchmarks.step_cache --weights strag.safetensors --steps 50    what users will see
    python -m benchmarks.step_cache --size tiny --device cpu --num-frames 5 --height 64 --width 64

Every variant starts from the same noise and conditions and runs the whole 4D-STraG pipeline up to
the latent of the motion. The error is the norm of the difference to the latent of the run without
caching, over the norm of that. Weights are random unless a file is given, and with random weights
the error, and how many steps a threshold leaves out, say little about trained ones; what a step
costs with and without its blocks is the same. Seconds of 50 steps are extrapolated from those run.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.memory import RandomText, empty_networks, fill
from more4d_backend.files import replacing
from more4d_backend.geometry import intrinsics_from_focal
from more4d_backend.scene import Cameras
from more4d_backend.strag.pipeline import StragPipeline, StragSettings
from more4d_backend.wan.sampling import SamplingSettings
from more4d_backend.wan.step_speed import cache_steps, compile_blocks

FULL_STEPS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one variant took, and how far off it ended."""

    variant: str
    """None, a cache's threshold, or the guided fraction."""

    full_seconds: float
    """All steps, extrapolated to 50."""

    full_calls: int
    """Calls of the transformer that ran all of its blocks."""

    relative_error: float
    """Of the final latent, against that without caching."""


class CaughtLatent(nn.Module):
    """Stands for the motion VAE: keeps the latent, and decodes it to no motion."""

    def __init__(self) -> None:
        super().__init__()
        self.latent = torch.empty(0)

    def decode(self, latent: Tensor) -> Tensor:
        """Keep a latent."""
        self.latent = latent.float().cpu()
        frames, height, width = latent.shape[2:]
        return torch.zeros(1, 3, 4 * (frames - 1) + 1, 8 * height, 8 * width)


class Bench:
    """One set of networks, inputs and noise for all variants."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Make or load the networks."""
        self.arguments = arguments
        self.dtype = torch.bfloat16 if arguments.device.startswith("cuda") else torch.float32
        transformer, vae, _ = empty_networks(arguments)
        device = torch.device(arguments.device)
        if arguments.weights is None:
            fill(transformer, device, self.dtype)
        else:
            from more4d_backend.weights.model_loading import load_strag

            transformer = load_strag(arguments.weights, dtype=self.dtype, device=device)
        fill(vae, device, self.dtype)
        if arguments.compile_blocks:
            compile_blocks(transformer)
        self.caught = CaughtLatent()
        text = RandomText(transformer.config["text_dim"])
        self.pipeline = StragPipeline(transformer, vae, self.caught, text)  # pyright: ignore[reportArgumentType]
        self.full_calls = 0
        self.start: float | None = None
        transformer.register_forward_pre_hook(self._begin)
        last: Any = transformer.blocks[-1]
        last.attn1.register_forward_hook(self._count)

    def run(self, sampling: SamplingSettings) -> tuple[Tensor, float, int]:
        """Return the latent, the seconds of all steps, and the calls that ran all blocks."""
        arguments = self.arguments
        height, width = arguments.height, arguments.width
        camera = Cameras(
            world_to_camera=torch.eye(4)[None],
            intrinsics=intrinsics_from_focal(torch.tensor([500.0]), height, width),
            height=height,
            width=width,
        )
        torch.manual_seed(0)  # of picture, depth and text
        self.full_calls, self.start = 0, None
        end = 0.0

        def step_ends(done: int, total: int) -> None:
            # The check for NaN before it has waited for the device.
            nonlocal end
            end = time.perf_counter()

        self.pipeline.generate(
            torch.rand(height, width, 3),
            1 + torch.rand(height, width),
            camera,
            "a benchmark",
            settings=StragSettings(
                num_frames=arguments.num_frames, size_hw=(height, width), sampling=sampling
            ),
            generator=torch.Generator().manual_seed(0),
            progress=step_ends,
        )
        assert self.start is not None
        return self.caught.latent, end - self.start, self.full_calls

    def _begin(self, *_: object) -> None:
        if self.start is None:
            if self.arguments.device.startswith("cuda"):
                torch.cuda.synchronize()
            self.start = time.perf_counter()

    def _count(self, *_: object) -> None:
        self.full_calls += 1


def main() -> None:
    """Run all variants, the plain one first and once before to warm up."""
    arguments = parse_arguments()
    bench = Bench(arguments)
    plain = SamplingSettings(num_steps=arguments.steps)
    bench.run(SamplingSettings(num_steps=2))
    wanted, seconds, calls = bench.run(plain)
    figures = [figure("no caching", wanted, wanted, seconds, calls, arguments.steps)]
    skipped = SamplingSettings(num_steps=arguments.steps, guided_fraction=arguments.guided_fraction)
    figures.append(
        figure(
            f"guided fraction {arguments.guided_fraction:g}",
            wanted,
            *bench.run(skipped),
            arguments.steps,
        )
    )
    for threshold in arguments.thresholds:
        cached = with_cache(bench, threshold, lambda: bench.run(plain))
        figures.append(figure(f"threshold {threshold:g}", wanted, *cached, arguments.steps))
    report(figures, arguments)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", choices=("14b", "tiny"), default="14b")
    parser.add_argument("--weights", type=Path, help="4D-STraG weights instead of random ones")
    parser.add_argument("--thresholds", type=float, nargs="+", default=(0.05, 0.2))
    parser.add_argument("--guided-fraction", type=float, default=0.7)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--num-frames", type=int, default=49)
    parser.add_argument("--height", type=int, default=368)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--compile-blocks", action="store_true")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    return parser.parse_args()


def with_cache(
    bench: Bench, threshold: float, run: Callable[[], tuple[Tensor, float, int]]
) -> tuple[Tensor, float, int]:
    """Run with step caching, and take it away again."""
    transformer = bench.pipeline.transformer
    cache_steps(transformer, threshold)
    try:
        return run()
    finally:
        transformer.disable_cache()


def figure(
    variant: str, wanted: Tensor, latent: Tensor, seconds: float, calls: int, steps: int
) -> Figures:
    """Compare one variant's latent with the one wanted."""
    return Figures(
        variant=variant,
        full_seconds=seconds * FULL_STEPS / steps,
        full_calls=calls,
        relative_error=float((latent - wanted).norm() / wanted.norm()),
    )


def report(figures: list[Figures], arguments: argparse.Namespace) -> None:
    """Print a table."""
    on_cuda = arguments.device.startswith("cuda")
    device = torch.cuda.get_device_name() if on_cuda else arguments.device
    weights = "random weights" if arguments.weights is None else arguments.weights.name
    print(
        f"{arguments.size}, {arguments.num_frames}x{arguments.height}x{arguments.width}, ", end=""
    )
    print(f"{weights}, torch {torch.__version__}, {device}")
    print(f"{arguments.steps} steps run; seconds extrapolated to {FULL_STEPS}")
    print("variant                  seconds    saved  full calls  error of the latent")
    plain = figures[0].full_seconds
    for f in figures:
        print(
            f"{f.variant:22s} {f.full_seconds:9.2f} {100 * (1 - f.full_seconds / plain):6.1f} % "
            f"{f.full_calls:5d} of {arguments.steps:3d}  {f.relative_error:.4f}"
        )
    if arguments.output:
        figures_of_run = {
            "device": device,
            "torch": torch.__version__,
            "weights": weights,
            "steps_run": arguments.steps,
            "variants": [*map(asdict, figures)],
        }
        with replacing(arguments.output) as temporary:
            temporary.write_text(json.dumps(figures_of_run, indent=2) + "\n")


if __name__ == "__main__":
    main()
