"""A training on inputs drawn from a seed: what benchmarks/sharded_training.py starts on every GPU.

    accelerate launch --config_file training/launch/fsdp.yaml --num_processes 4 \
        -m benchmarks.sharded_trainer --size 14b --output runs/drawn --random-shards

Nothing is loaded. The network and its objective, the loop and its checkpoints are those of the
trainers. A global batch is the same however many ranks share it. Every rank writes its process id
to the output folder, so that it can be killed.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.model_flops import forward_flops
from more4d_backend.strag.sizes import IMAGE_TOKENS, STRAG_SIZES, VISM_SIZES, WanSize
from more4d_backend.wan.latents import FRAMES_PER_LATENT, LATENT_CHANNELS, PIXELS_PER_LATENT
from more4d_backend.wan.text import TEXT_TOKENS
from training.data.loader import LoaderState
from training.data.samples import SampleSize
from training.losses import stratified_noise_levels
from training.recipes import StragConfig, VismConfig, strag_own, vism_own
from training.run.blocks import set_blocks_up
from training.run.loop import TrainingRun
from training.run.objectives import Objective

SHIFT = 3.0
PEAK_TFLOPS = 989.0
"""Of an H100 or H200 in bfloat16, as stated by the maker, without sparsity."""

WARM_UP = 3
"""Steps that are not timed: kernels are chosen and compiled."""


def main(arguments: list[str] | None = None) -> None:
    """Train, and print what it took."""
    options = parse(arguments)
    config = strag_config(options) if options.trainer == "strag" else vism_config(options)
    config.run.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    run = TrainingRun(config)
    (config.run.output / f"rank-{run.rank}.pid").write_text(str(os.getpid()))
    make = strag_objective if options.trainer == "strag" else vism_objective
    objective, wan = make(config, options, run.device)  # pyright: ignore[reportArgumentType]
    batches = DrawnBatches(run, config, wan)
    fill = random_values if options.random_shards else None
    run.prepare(objective, cast(Any, batches), fill=fill)
    say(run, f"ready after {time.perf_counter() - start:.0f} s, from step {run.step}")
    for drawn in run.batches():
        batch = cast(DrawnBatch, drawn)
        run.update(cast(Any, batch), lambda b=batch: run.objective(b.inputs, b.sigma, b.noise))
        say(run, f"step {run.step}")
        if run.step >= options.stop_at:
            break
    report(run, config, wan, options)
    if options.weights is not None:
        save_weights(run, options.weights)
    run.close()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trainer", choices=("strag", "vism"), default="strag")
    parser.add_argument("--size", choices=sorted(STRAG_SIZES), default="14b")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--num-frames", type=int, default=49)
    parser.add_argument("--size-hw", type=int, nargs=2, default=(368, 512))
    parser.add_argument("--batch-size", type=int, default=1, help="per rank")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--num-steps", type=int, default=10)
    parser.add_argument("--stop-at", type=int, default=1 << 30, help="end without a checkpoint")
    parser.add_argument("--checkpoint-every", type=int, default=1 << 30)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--ema-decay", type=float)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--no-checkpointing", action="store_true")
    parser.add_argument("--kept-blocks", type=float, default=0.0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--random-shards", action="store_true", help="FSDP: no rank ever holds the whole network"
    )
    parser.add_argument("--weights", type=Path, help="write the weights' fragments here at the end")
    return parser.parse_args(arguments)


def settings(options: argparse.Namespace, config: Any) -> Any:
    """Return a recipe with what the command line says."""
    run = replace(
        config.run,
        num_steps=options.num_steps,
        batch_size=options.batch_size,
        accumulation=options.accumulation,
        precision=options.precision,
        ema_decay=options.ema_decay,
        gradient_checkpointing=not options.no_checkpointing,
        kept_blocks=options.kept_blocks,
        compile_blocks=options.compile,
        checkpoint_every=options.checkpoint_every,
        checkpoints_kept=1,
        validate_every=0,
        tracker="none",
    )
    height, width = options.size_hw
    size = SampleSize(num_frames=options.num_frames, height=height, width=width)
    optimizer = replace(
        config.optimizer,
        learning_rate=options.learning_rate,
        warmup_steps=0,
        max_norm=1.0,
        max_norm_start=None,
    )
    data = replace(config.data, size=size, validation=None)
    return replace(config, size=options.size, run=run, data=data, optimizer=optimizer)


def strag_config(options: argparse.Namespace) -> StragConfig:
    """Return recipe `own` of 4D-STraG."""
    return settings(options, strag_own(Path("drawn"), options.output))


def vism_config(options: argparse.Namespace) -> VismConfig:
    """Return recipe `own` of 4D-ViSM: a LoRA of rank 128."""
    return settings(options, vism_own(Path("drawn"), options.output))


def strag_objective(
    config: StragConfig, options: argparse.Namespace, device: torch.device
) -> tuple[Objective, WanSize]:
    """Make 4D-STraG with random weights; without any for `random_values` to fill."""
    from more4d_backend.strag.transformer import StragTransformer
    from training.train_strag import StragObjective

    size = STRAG_SIZES[config.size]
    transformer = made(lambda: StragTransformer(**size.config()), options, device)
    transformer.train().requires_grad_(True)
    transformer.omnimae_extractor.requires_grad_(config.train_perception)
    set_blocks_up(transformer, config.run)
    return StragObjective(transformer, config), size.wan


def vism_objective(
    config: VismConfig, options: argparse.Namespace, device: torch.device
) -> tuple[Objective, WanSize]:
    """Make 4D-ViSM's base with random weights, frozen in bfloat16, under a new LoRA."""
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    from more4d_backend.vism.lora import add_lora
    from training.networks import frozen_dtype
    from training.train_vism import VismObjective

    size = VISM_SIZES[config.size]
    dtype = frozen_dtype(config.run.precision)
    transformer = made(lambda: WanTransformer3DModel(**size.config()), options, device, dtype)
    transformer.requires_grad_(False)
    add_lora(transformer, rank=config.lora_rank, alpha=config.lora_alpha)
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(device, torch.float32)
    set_blocks_up(transformer.train(), config.run)
    return VismObjective(transformer, config), size


def made(
    make: Callable[[], Any],
    options: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Make a network on the device, the same on every rank; or without values."""
    from accelerate import init_empty_weights

    if options.random_shards:
        with init_empty_weights(include_buffers=False):
            return make()
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with device:
            network: nn.Module = make()
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for parameter in network.parameters():
            # Numbers of bfloat16, as published weights are: DeepSpeed starts from those.
            parameter.copy_(parameter.bfloat16())
    return network


@torch.no_grad()
def random_values(objective: nn.Module) -> None:
    """Give this rank's part of every parameter random values."""
    generators: dict[torch.device, torch.Generator] = {}
    for parameter in objective.parameters():
        part = cast(Any, parameter).to_local()
        if part.device not in generators:
            seed = int(os.environ.get("RANK", "0"))
            generators[part.device] = torch.Generator(part.device).manual_seed(seed)
        # Steps are timed on these, and weights gathered: they need not learn.
        part.normal_(std=0.02, generator=generators[part.device])


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnBatch:
    """One rank's share of a global batch, as encoders would give it."""

    names: list[str]
    """Where in the sequence of samples."""

    inputs: Any
    """What the objective takes."""

    sigma: Tensor
    """Noise levels."""

    noise: Tensor
    """Of the latent."""

    def to(self, device: torch.device) -> "DrawnBatch":
        """Return itself: it is made where it is needed."""
        return self


class DrawnBatches:
    """Endless global batches, in the place of a data loader."""

    def __init__(self, run: TrainingRun, config: StragConfig | VismConfig, wan: WanSize) -> None:
        self.run, self.config, self.wan = run, config, wan
        self.state = LoaderState(seed=config.run.seed, num_samples=1 << 30, position=0)

    def resume(self, state: LoaderState) -> None:
        """Go to a place in the sequence."""
        self.state = state

    def __iter__(self) -> Iterator[DrawnBatch]:
        """Yield this rank's shares from the present place on."""
        run, mine = self.run, self.config.run.batch_size
        whole = mine * run.num_ranks
        while True:
            self.state = replace(self.state, position=self.state.position + whole)
            generator = run.generator(same_on_all_ranks=True)
            drawn = self._drawn(whole, generator)
            levels = stratified_noise_levels(whole, shift=SHIFT, generator=generator)
            noise = self._normal(generator, whole, *self._latent_shape())
            share = slice(run.rank * mine, (run.rank + 1) * mine)
            yield DrawnBatch(
                names=[f"drawn {self.state.position + i}" for i in range(whole)][share],
                inputs=type(drawn)(**{n: _cut(getattr(drawn, n), share) for n in drawn.__slots__}),
                sigma=levels[share],
                noise=noise[share],
            )

    def _drawn(self, whole: int, generator: torch.Generator) -> Any:
        from training.train_strag import StragInputs
        from training.train_vism import VismInputs

        shape = self._latent_shape()
        # What is to be learnt: one clip, a little different every time.
        clip = self._normal(torch.Generator(self.run.device).manual_seed(0), *shape)
        latent = clip + 0.1 * self._normal(generator, whole, *shape)
        text = self._normal(generator, whole, TEXT_TOKENS, self.wan.text_dim)
        image_dim = self.wan.image_dim
        tokens = self._normal(generator, whole, IMAGE_TOKENS, image_dim) if image_dim else None
        if isinstance(self.config, VismConfig):
            channels = self.wan.in_channels - LATENT_CHANNELS
            condition = self._normal(generator, whole, channels, *shape[1:])
            return VismInputs(latent=latent, condition=condition, text=text, image_tokens=tokens)
        size = self.config.data.size
        channels = self.wan.in_channels - LATENT_CHANNELS
        return StragInputs(
            latent=latent,
            channels=self._normal(generator, whole, channels, *shape[1:]),
            reference_latent=self._normal(generator, whole, LATENT_CHANNELS, *shape[2:]),
            picture=self._normal(generator, whole, 3, size.height, size.width).sigmoid(),
            text=text,
            image_tokens=tokens,
            weight=torch.ones(whole, 1, *shape[1:], device=self.run.device),
        )

    def _latent_shape(self) -> tuple[int, int, int, int]:
        return (LATENT_CHANNELS, *latent_size(self.config.data.size))

    def _normal(self, generator: torch.Generator, *shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=self.run.device)


def _cut(value: Tensor | None, share: slice) -> Tensor | None:
    return None if value is None else value[share]


def latent_size(size: SampleSize) -> tuple[int, int, int]:
    """Return frames, height and width of the latent of a clip."""
    height, width = size.height // PIXELS_PER_LATENT, size.width // PIXELS_PER_LATENT
    return 1 + (size.num_frames - 1) // FRAMES_PER_LATENT, height, width


def report(
    run: TrainingRun, config: StragConfig | VismConfig, wan: WanSize, options: argparse.Namespace
) -> None:
    """Print seconds per step, utilisation and the peak memory of every rank."""
    peak = torch.zeros(1, device=run.device)
    if run.device.type == "cuda":
        peak += torch.cuda.max_memory_allocated(run.device) / 2**30
    peaks = cast(Tensor, run.accelerator.gather(peak)).tolist()
    if not run.is_main:
        return
    lines = (config.run.output / "metrics.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["step_s"] for line in lines][WARM_UP:]
    if not seconds:
        return
    middle = sorted(seconds)[len(seconds) // 2]
    perception = STRAG_SIZES[options.size].perception if options.trainer == "strag" else None
    flops = forward_flops(wan, latent_size(config.data.size), perception)
    samples = config.run.batch_size * config.run.accumulation
    figures = {
        "seconds_per_step": middle,
        "seconds_of_steps": seconds,
        "samples_per_rank_and_step": samples,
        "forward_tflop_per_sample": flops / 1e12,
        "utilisation_3_forward": 3 * samples * flops / middle / (PEAK_TFLOPS * 1e12),
        "utilisation_2_forward": 2 * samples * flops / middle / (PEAK_TFLOPS * 1e12),
        "peak_gib_per_rank": peaks,
    }
    (config.run.output / "figures.json").write_text(json.dumps(figures, indent=1))
    say(run, json.dumps(figures))


def save_weights(run: TrainingRun, folder: Path) -> None:
    """Write the fragments of the weights, without the optimiser."""
    start = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    run.state.save_weights(folder)
    run.accelerator.wait_for_everyone()
    say(run, f"fragments written in {time.perf_counter() - start:.0f} s")


def say(run: TrainingRun, text: str) -> None:
    """Print on rank 0, at once."""
    if run.is_main:
        print(text, flush=True)


if __name__ == "__main__":
    main()
