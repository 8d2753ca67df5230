"""Samples per second of each trainer with the data loader on, and the share spent waiting for data.

    python -m benchmarks.trainers_speed [--num-steps 60] [--num-workers 12] [--num-samples 96]

Recipe tiny at its own size and batch, on the GPU where there is one. Samples are written to
shards first and read like any data set. The first third of the steps is left out (kernels are
chosen and workers start). At most 10 % waiting is wanted.
"""

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from training import train_motion_vae, train_strag, train_vism
from training.data.shards import write_shard
from training.procedural.dataset import procedural_sample, procedural_tiny
from training.recipes import RECIPES


def make_data(folder: Path, num_samples: int, device: str) -> float:
    """Write samples of recipe tiny; return seconds."""
    start = time.perf_counter()
    samples = (
        _on_cpu(procedural_sample(s, procedural_tiny(), device=device)) for s in range(num_samples)
    )
    write_shard(folder / "train" / "0.tar", samples)
    return time.perf_counter() - start


def _on_cpu(sample: Any) -> Any:
    tensors = {name: getattr(sample, name) for name in sample.__slots__}
    return replace(
        sample,
        **{
            name: value.to("cpu")
            for name, value in tensors.items()
            if value is not None and hasattr(value, "to")
        },
    )


def measure(name: str, config: Any, train: Callable[[Any], Path]) -> None:
    """Train and print one line."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    train(config)
    lines = (config.run.output / "metrics.jsonl").read_text().splitlines()
    steps = [m for m in map(json.loads, lines) if "step_s" in m][config.run.num_steps // 3 :]
    seconds = sum(m["step_s"] for m in steps)
    waiting = sum(m["data_wait_s"] for m in steps) / seconds
    rate = len(steps) * config.run.batch_size / seconds
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    print(
        f"{name:12} {rate:6.1f} samples/s, {1000 * seconds / len(steps):5.0f} ms per step of "
        f"{config.run.batch_size}, waiting for data {waiting:.1%}, peak {peak:.1f} GiB",
        flush=True,
    )


def main() -> None:
    """Make data and measure every trainer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--num-steps", type=int, default=60)
    parser.add_argument("--num-workers", type=int, default=12)
    parser.add_argument("--num-samples", type=int, default=96)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(torch.cuda.get_device_name() if device == "cuda" else "CPU", torch.__version__)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        seconds = make_data(data, args.num_samples, device)
        megabytes = (data / "train" / "0.tar").stat().st_size / args.num_samples / 1e6
        print(f"data: {args.num_samples / seconds:.1f} samples/s written, {megabytes:.1f} MB each")
        trainers = {
            "motion-vae": ("motion_vae", "tiny", train_motion_vae.train),
            "strag": ("strag", "tiny", train_strag.train),
            "vism": ("vism", "tiny", train_vism.train),
            "vism-lora": ("vism", "tiny-lora", train_vism.train),
        }
        for name, (trainer, recipe, train) in trainers.items():
            config: Any = RECIPES[trainer][recipe](data, data / name)
            run = replace(config.run, num_steps=args.num_steps, tracker="none", validate_every=0)
            settings = replace(config.data, num_workers=args.num_workers)
            measure(name, replace(config, run=run, data=settings), train)
            _forget_accelerator()


def _forget_accelerator() -> None:
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(True)
    PartialState._reset_state()


if __name__ == "__main__":
    main()
