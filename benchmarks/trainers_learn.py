"""Does each trainer learn? 200 steps of recipe tiny on the CPU, from a fixed seed.

    python -m benchmarks.trainers_learn [--trainer vism-lora] [--num-steps 200]

Prints the loss at fixed noise levels with fixed noise, on samples that are never trained on,
before and after, and how many trained parameters moved. At most half is wanted. The LoRA starts
from a base after 25 steps. Recipe tiny, but for size (5 frames of 32x32) and batch (2; LoRA 4):
that is what a CPU does in minutes. Exit code 1 when a trainer misses.
"""

import argparse
import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from training import networks, train_motion_vae, train_strag, train_vism
from training.data.samples import SampleSize
from training.data.shards import write_shard
from training.procedural.dataset import procedural_sample, procedural_tiny
from training.recipes import motion_vae_tiny, strag_tiny, vism_tiny, vism_tiny_lora

SIZE = SampleSize(num_frames=5, height=32, width=32)


def make_data(folder: Path) -> None:
    """Write 32 samples to train on and 4 to validate on."""
    settings = replace(procedural_tiny(), size=SIZE)
    for part, seeds in (("train", range(32)), ("validation", range(1000, 1004))):
        samples = (procedural_sample(seed, settings) for seed in seeds)
        write_shard(folder / part / "0.tar", samples)


def small(config: Any, num_steps: int, batch_size: int) -> Any:
    """Bring a recipe to this benchmark's size."""
    run = replace(
        config.run,
        num_steps=num_steps,
        batch_size=batch_size,
        precision="fp32",
        export_precision="fp32",
        ema_decay=None,
        tracker="none",
        validate_every=num_steps,
        checkpoint_every=num_steps,
    )
    data = replace(config.data, size=SIZE, num_workers=0, num_validation_samples=4)
    return replace(config, run=run, data=data, optimizer=replace(config.optimizer, warmup_steps=10))


def measure(
    name: str, config: Any, train: Callable[[Any], Path], start: Mapping[str, torch.nn.Module]
) -> bool:
    """Train, print one line, and return whether the aims are met."""
    train(config)
    lines = (config.run.output / "metrics.jsonl").read_text().splitlines()
    losses = [m["validation/loss"] for m in map(json.loads, lines) if "validation/loss" in m]
    steps = config.run.num_steps
    trained = load_file(config.run.output / f"checkpoint-{steps:08d}" / "trainable.safetensors")
    before = dict(torch.nn.ModuleDict(dict(start)).named_parameters())
    moved = sum(not torch.equal(t, before[n]) for n, t in trained.items())
    ratio = losses[-1] / losses[0]
    print(
        f"{name:12} {steps} steps: loss {losses[0]:.4f} -> {losses[-1]:.4f}, "
        f"ratio {ratio:.3f} (at most 0.5); {moved} of {len(trained)} parameters moved"
    )
    return ratio <= 0.5 and moved == len(trained)


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser()
    names = ("motion-vae", "strag", "vism", "vism-lora")
    parser.add_argument("--trainer", choices=names, action="append")
    parser.add_argument("--num-steps", type=int, default=200)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    good = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        make_data(data)
        for name in args.trainer or names:
            output, steps = data / name, args.num_steps
            if name == "motion-vae":
                config = small(motion_vae_tiny(data, output), steps, 2)
                start = {"motion_vae": networks.motion_vae_to_train(config)}
                good.append(measure(name, config, train_motion_vae.train, start))
            elif name == "strag":
                config = small(strag_tiny(data, output), steps, 2)
                start: dict[str, torch.nn.Module] = {"transformer": networks.strag_to_train(config)}
                if config.train_text:
                    seed = config.run.seed
                    start["text_encoder"] = networks.text_encoder_to_train(config.weights, seed)
                good.append(measure(name, config, train_strag.train, start))
            else:
                config = small(vism_tiny(data, output), steps, 2)
                if name == "vism-lora":
                    base = train_vism.train(small(vism_tiny(data, data / "base"), 25, 2))
                    config = small(vism_tiny_lora(data, output), steps, 4)
                    config = replace(config, weights=replace(config.weights, base=base))
                start = {"transformer": networks.vism_to_train(config)}
                good.append(measure(name, config, train_vism.train, start))
    return 0 if all(good) else 1


if __name__ == "__main__":
    raise SystemExit(main())
