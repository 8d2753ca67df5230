"""Train the point decoder of Geo4D with its uncertainty: Laplace likelihood, frozen encoder.

    accelerate launch --num_processes 4 -m training.train_geo4d_points released \
        --weights start.safetensors --data.point-odyssey D/pointodyssey --data.tartanair D/tartanair
    python -m training.train_geo4d_points tiny --weights more4d_tiny_geo4d.safetensors

Writes `geo4d.safetensors`, the whole file with the new decoder in it. Settings: `--help` after a
recipe's name.
"""

from pathlib import Path

from .geo4d.loader import ClipLoader
from .geo4d.objectives import PointDecoderObjective
from .geo4d.recipes import Geo4DConfig, parse_geo4d_config
from .run.command_line import train_and_exit
from .run.loop import TrainingRun
from .train_geo4d import exported, networks_to_train, prepare, write_trained


def train(config: Geo4DConfig) -> Path:
    """Train, and return the path of the weights."""
    # 1. The run: devices, seeds, what to continue.
    run = TrainingRun(config)  # pyright: ignore[reportArgumentType] (data of its own kind)

    # 2. The data.
    dataset = config.data.dataset(config.run.seed)
    loader = ClipLoader(dataset, config, rank=run.rank, num_ranks=run.num_ranks)

    # 3. The networks.
    networks = networks_to_train(config)
    networks.vae.to(run.device)
    networks.vae.set_gradient_checkpointing(config.run.gradient_checkpointing)
    objective = PointDecoderObjective(networks.vae, exported(config, networks)).train()
    prepare(run, networks, objective, loader)

    # 4. The loop.
    for batch in run.batches():
        points = batch.images().points[:, : config.frames_per_clip]  # pyright: ignore
        run.update(batch, lambda p=points: run.objective(p))

    # 5. The weights.
    path = write_trained(run, networks)
    run.close()
    return path


if __name__ == "__main__":
    train_and_exit(lambda: parse_geo4d_config("geo4d_points"), train)
