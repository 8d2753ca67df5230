"""A trainer on two processes of the CPU, split over ranks by an engine; `torchrun` starts it.

torchrun --nproc_per_node 2 sharded_run.py ENGINE TRAINER RECIPE [the trainer's settings]
torchrun --nproc_per_node 2 sharded_run.py ENGINE drawn [benchmarks/sharded_trainer.py's]
"""

import importlib
import os
import sys

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


def join_the_ranks(engine: str) -> None:
    """accelerate takes FSDP and DeepSpeed for accelerators alone; both also work on CPUs."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    state = PartialState(cpu=True)
    if engine == "fsdp":
        state.distributed_type = DistributedType.MULTI_GPU


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
    from training import recipes
    from training.run.command_line import parse_config

    kind = {"strag": "StragConfig", "vism": "VismConfig", "motion_vae": "MotionVaeConfig"}[trainer]
    config = parse_config(trainer, getattr(recipes, kind), settings)
    importlib.import_module(f"training.train_{trainer}").train(config)


if __name__ == "__main__":
    main()
