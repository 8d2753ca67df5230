"""A trainer on two processes of the CPU, split over ranks by an engine; `torchrun` starts it.

torchrun --nproc_per_node 2 sharded_run.py ENGINE TRAINER RECIPE [the trainer's settings]
torchrun --nproc_per_node 2 sharded_run.py ENGINE drawn [benchmarks/sharded_trainer.py's]
torchrun --nproc_per_node 2 sharded_run.py ENGINE geo4d|geo4d_points [those of `train_geo4d`]
"""

import argparse
import importlib
import os
import sys
from dataclasses import replace
from pathlib import Path

ENGINES = {
    "fsdp": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
    },
    "zero2": {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
        "DS_ACCELERATOR": "cpu",
    },
    "zero3": {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
        "DS_ACCELERATOR": "cpu",
    },
    "none": {},
}
"""What `accelerate launch` would set for the configurations in training/launch."""

ENGINES["zero2_offload"] = ENGINES["zero2"] | {
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu",
}
ENGINES["zero3_offload"] = ENGINES["zero3"] | {
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu",
}


def join_the_ranks(engine: str) -> None:
    """accelerate takes FSDP and DeepSpeed for accelerators alone; both also work on CPUs."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    state = PartialState(cpu=True)
    if engine == "fsdp":
        state.distributed_type = DistributedType.MULTI_GPU


def train_geo4d(trainer: str, arguments: list[str]) -> None:
    """Train the toy size on clips as small as they get; each rank writes its process id down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--checkpoint-every", type=int, default=100)
    parser.add_argument("--num-steps", type=int)
    parser.add_argument("--precision")
    options = parser.parse_args(arguments)
    from training.geo4d.objectives import ModalityWeights
    from training.geo4d.recipes import GEO4D_RECIPES, ClipSources, Stage
    from training.procedural.clips import ClipSettings

    options.output.mkdir(parents=True, exist_ok=True)
    rank = os.environ.get("RANK", "0")
    (options.output / f"rank-{rank}.pid").write_text(str(os.getpid()))
    config = GEO4D_RECIPES[trainer]["tiny"](options.output)
    run = replace(
        config.run,
        num_steps=options.num_steps,
        batch_size=options.batch_size,
        accumulation=2,
        precision=options.precision,
        gradient_checkpointing=True,
        ema_decay=0.5,
        tracker="none",
        checkpoint_every=options.checkpoint_every,
        export_precision="fp32",
    )
    clips = ClipSettings(size_hw=(16, 24), num_frames=4, samples=1)
    importlib.import_module(f"training.train_{trainer}").train(
        replace(
            config,
            run=run,
            data=ClipSources(procedural_share=1.0, num_clips=4, num_workers=0, procedural=clips),
            optimizer=replace(config.optimizer, learning_rate=1e-3, warmup_steps=1),
            size="toy",
            stages=(Stage(share=1, sizes_hw=((16, 24),), weights=ModalityWeights()),),
            weights=options.weights,
            frames_per_clip=2,
        )
    )


def main() -> None:
    """Train."""
    engine, trainer, *settings = sys.argv[1:]
    os.environ |= ENGINES[engine]
    from training.run.sharding import check_launch

    check_launch()
    join_the_ranks(engine)
    if trainer == "drawn":
        importlib.import_module("benchmarks.sharded_trainer").main(settings)
        return
    if trainer.startswith("geo4d"):
        train_geo4d(trainer, settings)
        return
    from training import recipes
    from training.run.command_line import parse_config

    kind = {"strag": "StragConfig", "vism": "VismConfig", "motion_vae": "MotionVaeConfig"}[trainer]
    config = parse_config(trainer, getattr(recipes, kind), settings)
    importlib.import_module(f"training.train_{trainer}").train(config)


if __name__ == "__main__":
    main()
