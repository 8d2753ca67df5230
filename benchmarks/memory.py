"""A full 4D-STraG run under memory caps: what each memory mode costs in time.

    python -m benchmarks.memory                                 full size, four modes; one H200
    python -m benchmarks.memory --modes block-offload           one of them
    python -m benchmarks.memory --size tiny --device cpu --num-frames 5 --height 64 --width 64

49x368x512, random weights, classifier-free guidance, VAE encoding and motion decoding included.
Each mode runs in a process of its own, which caps its share of device memory before anything is
made. Few steps are run; seconds of 50 steps are extrapolated from those after the first. Text and
image encoders are left out: they run once per prompt, while the transformer is not on the device.
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from more4d_backend.devices import (
    DeviceRequest,
    MemoryMode,
    RunSizes,
    detect_device,
    explaining_out_of_memory,
    plan_devices,
    required_bytes,
)
from more4d_backend.devices.memory_modes import Placement, apply_plan, run_sizes
from more4d_backend.files import replacing
from more4d_backend.geometry import intrinsics_from_focal
from more4d_backend.scene import Cameras
from more4d_backend.strag.motion_vae import DecoderAdapter, EncoderAdapter, MotionVAE
from more4d_backend.strag.pipeline import StragPipeline, StragSettings
from more4d_backend.strag.profile import RELEASED
from more4d_backend.strag.sizes import STRAG_SIZES
from more4d_backend.strag.transformer import StragTransformer
from more4d_backend.wan.latents import latent_size
from more4d_backend.wan.sampling import SamplingSettings
from more4d_backend.wan.text import TEXT_TOKENS
from more4d_backend.weights import load_into
from more4d_backend.weights.files import StoredTensor

CAPS_GIB: dict[str, float | None] = {
    "uncapped": None,
    "resident": 37.0,
    "fp8": 20.0,
    "block-offload": 9.5,
}
"""Caps that each mode must run under at full size; `uncapped` is resident, the baseline."""

FULL_STEPS = 50
GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one run took."""

    run: str
    """Key of CAPS_GIB."""

    cap_gib: float | None
    """Cap of the process; None without one."""

    peak_reserved_gib: float
    """Largest memory that torch held of the device; what the cap is compared with."""

    peak_allocated_gib: float
    """Largest memory in use by tensors."""

    estimated_gib: float
    """What the planner expects the mode to need."""

    sequential_guidance: bool
    """Whether the halves of guidance ran one after the other."""

    automatic: str
    """Mode that the planner would have chosen under this cap."""

    step_seconds: float
    """Median of the steps after the first."""

    other_seconds: float
    """Everything but the steps: encoding, decoding, moving weights."""

    @property
    def full_seconds(self) -> float:
        """A run of 50 steps, extrapolated."""
        return self.other_seconds + FULL_STEPS * self.step_seconds


class RandomText:
    """Text tokens without a text encoder."""

    def __init__(self, text_dim: int) -> None:
        self.text_dim = text_dim
        self.model = nn.Identity()

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return random tokens."""
        return torch.randn(len(prompts), TEXT_TOKENS, self.text_dim)


def main() -> None:
    """Run one mode, or all of them in processes of their own."""
    arguments = parse_arguments()
    if arguments.run is not None:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        print(json.dumps(asdict(measure(arguments))))
        return
    figures = [run_apart(name) for name in ("uncapped", *arguments.modes)]
    if figures[0] is None:
        sys.exit("The baseline failed; its error is above.")
    report([f for f in figures if f is not None], arguments)
    if None in figures:
        sys.exit("Some runs failed; their errors are above.")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    modes = [name for name in CAPS_GIB if name != "uncapped"]
    parser.add_argument("--modes", nargs="+", choices=modes, default=modes)
    parser.add_argument("--size", choices=sorted(STRAG_SIZES), default="14b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--num-frames", type=int, default=49)
    parser.add_argument("--height", type=int, default=368)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3, help="at least 2; the first is not timed")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--run", choices=list(CAPS_GIB), help=argparse.SUPPRESS)
    return parser.parse_args()


def run_apart(name: str) -> Figures | None:
    """Run one mode in a new process; None if it failed, out of memory for example."""
    command = [sys.executable, __file__, *sys.argv[1:], "--run", name]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    took = f"{time.perf_counter() - start:.0f} s with building the networks"
    print(f"{name}: {'FAILED after ' if done.returncode else ''}{took}", flush=True)
    return None if done.returncode else Figures(**json.loads(done.stdout.splitlines()[-1]))


def measure(arguments: argparse.Namespace) -> Figures:
    """Cap this process, build the networks as a file would be loaded, and run."""
    on_cuda = arguments.device.startswith("cuda")
    cap = CAPS_GIB[arguments.run] if on_cuda and arguments.size == "14b" else None
    if cap is not None:
        total = torch.cuda.get_device_properties(arguments.device).total_memory
        torch.cuda.set_per_process_memory_fraction(cap * GIB / total)
    mode: MemoryMode = "resident" if arguments.run == "uncapped" else arguments.run
    assert mode in get_args(MemoryMode)
    dtype = torch.bfloat16 if on_cuda else torch.float32
    transformer, vae, motion_vae = empty_networks(arguments)
    sizes = planned_sizes(transformer, vae, motion_vae, arguments, dtype)
    state = detect_device(arguments.device, dtype)
    automatic = plan_devices(state, sizes)
    if on_cuda:
        # In 20 GiB fp8 leaves no room for both halves of guidance: there the plan decides.
        halves = None if mode == "fp8" else False
        plan = plan_devices(state, sizes, DeviceRequest(memory_mode=mode, sequential_cfg=halves))
    else:  # a CPU has no modes; for a trial it gets one all the same
        plan = replace(automatic, memory_mode=mode)
    home = plan.device if mode == "resident" else torch.device("cpu")
    for network in (transformer, vae, motion_vae):
        fill(network, home, dtype)
    placement = apply_plan(plan, denoisers=[transformer], vaes=[vae, motion_vae])
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    with explaining_out_of_memory(plan, sizes):
        steps, total_seconds = run(transformer, vae, motion_vae, placement, arguments)
    return Figures(
        run=arguments.run,
        cap_gib=cap,
        peak_reserved_gib=torch.cuda.max_memory_reserved() / GIB if on_cuda else 0.0,
        peak_allocated_gib=torch.cuda.max_memory_allocated() / GIB if on_cuda else 0.0,
        estimated_gib=required_bytes(
            mode, sizes, sequential_cfg=plan.sequential_cfg, vae_tiling=plan.vae_tiling
        )
        / GIB,
        sequential_guidance=plan.sequential_cfg,
        automatic=automatic.memory_mode,
        step_seconds=statistics.median(steps[1:]),
        other_seconds=total_seconds - sum(steps),
    )


def empty_networks(
    arguments: argparse.Namespace,
) -> tuple[StragTransformer, Any, MotionVAE]:
    """Build the networks of a run without values."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    base_dim, width = (96, 128) if arguments.size == "14b" else (16, 32)
    with init_empty_weights():
        transformer = StragTransformer(**STRAG_SIZES[arguments.size].config())
        vae = AutoencoderKLWan(base_dim=base_dim)
        motion_vae = MotionVAE(
            AutoencoderKLWan(base_dim=base_dim),
            EncoderAdapter(width),
            DecoderAdapter(width),
            RELEASED.latents,
        )
    return transformer.eval(), vae.eval(), motion_vae.eval()


def planned_sizes(
    transformer: nn.Module,
    vae: nn.Module,
    motion_vae: nn.Module,
    arguments: argparse.Namespace,
    dtype: torch.dtype,
) -> RunSizes:
    """Return what the planner is told."""
    frames, height, width = latent_size(arguments.num_frames, arguments.height, arguments.width)
    return run_sizes(
        denoiser=transformer,
        vae=nn.ModuleList([vae, motion_vae]),
        num_tokens=(frames + 1) * (height // 2) * (width // 2),
        size_hw=(arguments.height, arguments.width),
        dtype=dtype,
    )


def fill(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Load random values in the way that a file is loaded."""
    source = {
        name: StoredTensor(
            shape=tuple(slot.shape),
            dtype=dtype,
            read=partial(random_values, name, tuple(slot.shape), dtype),
        )
        for name, slot in network.state_dict(keep_vars=True).items()
        if slot.is_meta
    }
    kept = tuple(getattr(network, "_keep_in_fp32_modules", None) or ())
    computed = [n for n, t in network.state_dict(keep_vars=True).items() if not t.is_meta]
    load_into(
        network,
        source,
        source="random values",
        dtype=dtype,
        device=device,
        float32=kept,
        allowed_missing=computed,
    )
    network.requires_grad_(False)


def random_values(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return values of a believable size; drawn on the GPU, where that takes no time."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name.endswith("gamma") or (len(shape) == 1 and name.endswith("weight")):
        return torch.ones(shape, device=device, dtype=dtype)
    return torch.randn(shape, device=device, dtype=dtype).mul_(0.02)


@torch.no_grad()
def run(
    transformer: StragTransformer,
    vae: Any,
    motion_vae: MotionVAE,
    placement: Placement,
    arguments: argparse.Namespace,
) -> tuple[list[float], float]:
    """Make a scene, and return the seconds of each step and of everything."""
    pipeline = StragPipeline(
        transformer,
        vae,
        motion_vae,
        RandomText(transformer.config["text_dim"]),
        placement=placement,
    )
    height, width = arguments.height, arguments.width
    camera = Cameras(
        world_to_camera=torch.eye(4)[None],
        intrinsics=intrinsics_from_focal(torch.tensor([500.0]), height, width),
        height=height,
        width=width,
    )
    settings = StragSettings(
        num_frames=arguments.num_frames,
        size_hw=(height, width),
        sampling=SamplingSettings(num_steps=arguments.steps),
    )
    marks = [time.perf_counter()]
    pipeline.generate(
        torch.rand(height, width, 3),
        1 + torch.rand(height, width),
        camera,
        "a benchmark",
        settings=settings,
        generator=torch.Generator().manual_seed(0),
        # Each step ends in a check for NaN, which waits for the device.
        progress=lambda done, total: marks.append(time.perf_counter()),
    )
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    end = time.perf_counter()
    steps = [later - earlier for earlier, later in pairwise(marks[1:])]
    # The first step begins after encoding; it is taken to be as long as the others.
    first = min(statistics.median(steps), marks[1] - marks[0])
    return [first, *steps], end - marks[0]


def report(figures: list[Figures], arguments: argparse.Namespace) -> None:
    """Print a table, and whether every run stayed under its cap."""
    baseline = figures[0]
    device = (
        torch.cuda.get_device_name(arguments.device)
        if arguments.device.startswith("cuda")
        else arguments.device
    )
    print(f"\n{arguments.size}, {arguments.num_frames}x{arguments.height}x{arguments.width}")
    print(f"torch {torch.__version__}, {device}")
    print("run              cap GiB  reserved  allocated  estimate   s/step  other s  50 steps")
    for f in figures:
        cap = f"{f.cap_gib:7.1f}" if f.cap_gib is not None else "   none"
        print(
            f"{f.run:15s}  {cap}  {f.peak_reserved_gib:8.1f}  {f.peak_allocated_gib:9.1f}  "
            f"{f.estimated_gib:8.1f}  {f.step_seconds:7.3f}  {f.other_seconds:7.2f}  "
            f"{f.full_seconds / baseline.full_seconds:5.2f}x  (automatic: {f.automatic})"
            f"{', guidance one half after the other' if f.sequential_guidance else ''}"
        )
    if arguments.output:
        with replacing(arguments.output) as temporary:
            content = {
                "device": device,
                "torch": torch.__version__,
                "runs": [*map(asdict, figures)],
            }
            temporary.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
