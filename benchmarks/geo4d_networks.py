"""Geo4D's networks at full size with random weights, against themselves without any care for speed.

    python -m benchmarks.geo4d_networks                     one window of 16 frames at 320x512
    python -m benchmarks.geo4d_networks --compiled          also compiled (minutes more)
    python -m benchmarks.geo4d_networks --profile           what the time goes into
    python -m benchmarks.geo4d_networks --size toy --device cpu --height 32 --width 48

Variants have the same weights:

    baseline   float32 (TF32, as the released code has it), torch's group norm, explicit softmax,
               weights as they are stored
    ours       bfloat16, channels last, fused group norm, fused attention
    searched   ours, and cuDNN tries its convolutions before it takes one
    compiled   ours, compiled by inductor
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from more4d_backend.files import replacing
from more4d_backend.geo4d import layers
from more4d_backend.geo4d.group_norm import group_norm_plain
from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.geo4d.speed import compile_networks

from .geo4d_profile import profiled

Work = Callable[[], Tensor]

AIMS_MS = {"UNet, 1 window": 80.0, "decode, per frame": 9.0}
AIM_GIB = 16.0
FRAMES, STRIDE, STEPS = 100, 4, 5
"""Of the video whose time in the networks is added up at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to run the networks."""

    name: str
    """For the table."""

    networks: Geo4DNetworks
    """Same values in all variants, in their own dtype and layout."""

    def works(self, video: Tensor, repeat: int) -> dict[str, tuple[Work, int]]:
        """Return what is timed, and how many pictures or windows each call does."""
        networks, vae = self.networks, self.networks.vae
        frames = len(video)
        latents = vae.encode(video)
        window = torch.randn(
            1, 20, networks.size.num_frames, *latents.shape[2:],
            generator=torch.Generator().manual_seed(0),
        ).to(video.device, networks.dtype)  # fmt: skip

        def denoised(count: int) -> Tensor:
            times = torch.full((count,), 500, device=video.device)
            many = window.expand(count, -1, -1, -1, -1)
            return networks.unet(many, times, networks.context, torch.full_like(times, 24))

        works: dict[str, tuple[Work, int]] = {"UNet, 1 window": (lambda: denoised(1), 1)}
        if self.name != "baseline":
            works[f"UNet, {repeat} windows, per window"] = (lambda: denoised(repeat), repeat)
        works |= {
            "encode, per frame": (lambda: vae.encode(video), frames),
            "decode, per frame": (lambda: vae.decode(latents), frames),
            "decode points, per frame": (lambda: vae.decode_points(latents).points, frames),
        }
        for reduction in (2, 4):
            if latents.shape[-2] % reduction == latents.shape[-1] % reduction == 0:
                works[f"decode reduced by {reduction}, per frame"] = (
                    lambda r=reduction: vae.decode(latents, reduction=r),
                    frames,
                )
        return works

    @contextmanager
    def conditions(self) -> Iterator[None]:
        """Set what the variant is timed under, and take it back."""
        norm, search = layers.group_norm, torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = self.name == "searched"
        try:
            if self.name == "baseline":
                layers.group_norm = group_norm_plain
                with sdpa_kernel(SDPBackend.MATH):
                    yield
            else:
                yield
        finally:
            layers.group_norm, torch.backends.cudnn.benchmark = norm, search


def main() -> None:
    """Time all variants and print the table."""
    arguments = parse_arguments()
    torch.backends.cuda.matmul.allow_tf32 = True
    generator = torch.Generator().manual_seed(1)
    frames = GEO4D_SIZES[arguments.size].num_frames
    video = torch.rand(frames, 3, arguments.height, arguments.width, generator=generator) * 2 - 1
    video = video.to(arguments.device)
    rows: dict[str, dict[str, float]] = {}
    peaks, outputs = {}, {}
    with torch.no_grad():
        for variant in make_variants(arguments):
            with variant.conditions():
                measure(variant, video, arguments, rows, peaks, outputs)
    report(rows, peaks, outputs, arguments)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", choices=sorted(GEO4D_SIZES), default="full")
    parser.add_argument("--height", type=int, default=320)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--windows", type=int, default=4, help="of the batched UNet call")
    parser.add_argument("--compiled", action="store_true", help="also time compiled networks")
    parser.add_argument("--profile", action="store_true", help="print the kernels of `ours`")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    return parser.parse_args()


def make_variants(arguments: argparse.Namespace) -> Iterator[Variant]:
    """Make the variants one after the other, so that each one's peak of memory is its own."""
    torch.manual_seed(0)
    with torch.device(arguments.device):
        source = Geo4DNetworks(GEO4D_SIZES[arguments.size]).eval().requires_grad_(False)
    yield Variant(name="baseline", networks=source)
    source.bfloat16().to_channels_last()
    yield Variant(name="ours", networks=source)
    if arguments.device.startswith("cuda"):
        yield Variant(name="searched", networks=source)
    if arguments.compiled:
        networks = copy.deepcopy(source)
        compile_networks(networks)
        yield Variant(name="compiled", networks=networks)


def measure(
    variant: Variant,
    video: Tensor,
    arguments: argparse.Namespace,
    rows: dict[str, dict[str, float]],
    peaks: dict[str, float],
    outputs: dict[str, dict[str, Tensor]],
) -> None:
    """Fill in one variant's column: milliseconds, peak of memory, results."""
    on_cuda = arguments.device.startswith("cuda")
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    for name, (work, count) in variant.works(video, arguments.windows).items():
        seconds, result = timed(work, arguments.repeats, on_cuda)
        rows.setdefault(name, {})[variant.name] = 1000 * seconds / count
        outputs.setdefault(name, {})[variant.name] = result.float().cpu()
        if arguments.profile and variant.name == "ours":
            with profiled(name):
                work()
    if on_cuda:
        peaks[variant.name] = torch.cuda.max_memory_allocated() / (1 << 30)


def timed(work: Work, repeats: int, on_cuda: bool) -> tuple[float, Tensor]:
    """Return the median of the seconds of a call, after calls that are not counted."""
    times, result = [], work()
    for index in range(repeats + 2):
        if on_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        result = work()
        if on_cuda:
            torch.cuda.synchronize()
        if index >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times), result


def report(
    rows: dict[str, dict[str, float]],
    peaks: dict[str, float],
    outputs: dict[str, dict[str, Tensor]],
    arguments: argparse.Namespace,
) -> None:
    """Print the table, the aims, how far results are from the baseline's, and a whole video."""
    names = list(next(iter(rows.values())))
    on_cuda = arguments.device.startswith("cuda")
    device = torch.cuda.get_device_name() if on_cuda else arguments.device
    print(f"\n{arguments.size}, {arguments.height}x{arguments.width}, {device}")
    print(f"torch {torch.__version__}; milliseconds, median of {arguments.repeats}\n")
    print(f"{'':36s}" + "".join(f"{name:>12s}" for name in names) + "   baseline / ours   aim")
    for what, times in rows.items():
        told = "".join(f"{times[n]:12.2f}" if n in times else f"{'':12s}" for n in names)
        base, ours = times.get("baseline"), times["ours"]
        ratio = f"{base / ours:8.1f}x" if base else f"{'':9s}"
        aim = AIMS_MS.get(what) if arguments.size == "full" and on_cuda else None
        verdict = f"   {aim:.0f}: {'met' if ours <= aim else 'MISSED'}" if aim else ""
        print(f"{what:36s}{told}   {ratio}      {verdict}")
    for name, peak in peaks.items():
        verdict = f"aim {AIM_GIB:.0f}: {'met' if peak <= AIM_GIB else 'MISSED'}"
        print(f"peak memory, {name}: {peak:.1f} GiB" + (f"  {verdict}" if name == "ours" else ""))
    for what, results in outputs.items():
        if "baseline" in results:
            base = results["baseline"]
            off = (results["ours"] - base).norm() / base.norm()
            print(f"{what}: ours differs from the baseline by {off:.1e} of its size")
    whole = whole_video(rows)
    for name, seconds in whole.items():
        print(
            f"all networks for {FRAMES} frames at stride {STRIDE}, {name}: {seconds:.3f} s a frame"
        )
    if arguments.output:
        figures = {"device": device, "milliseconds": rows, "peak_gib": peaks, "whole": whole}
        with replacing(arguments.output) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n")


def whole_video(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    """Add up the networks' seconds per frame of a video from the times of their calls.

    Ours encodes each frame once and decodes points in full, disparity at a half and rays at a
    quarter of the size; the baseline encodes and decodes everything for every window. Alignment,
    and reading the video, come on top.
    """
    windows = (FRAMES - 16) // STRIDE + 1
    pictures = windows * 16
    milliseconds = {}
    for name in rows["UNet, 1 window"]:
        each = {what: times[name] for what, times in rows.items() if name in times}
        denoising = windows * STEPS * each["UNet, 1 window"]
        points = pictures * each["decode points, per frame"]
        if name == "baseline":
            rest = pictures * (each["encode, per frame"] + 3 * each["decode, per frame"])
        else:
            half = each.get("decode reduced by 2, per frame", each["decode, per frame"])
            quarter = each.get("decode reduced by 4, per frame", half)
            rest = FRAMES * each["encode, per frame"] + pictures * (half + 2 * quarter)
        milliseconds[name] = denoising + points + rest
    return {name: value / 1000 / FRAMES for name, value in milliseconds.items()}


if __name__ == "__main__":
    main()
