"""A trainer with a network of one layer, which the tests of the loop also start as a process.

python stand_in_run.py DATA OUTPUT NUM_STEPS SLEEP_S
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from training.data.loader import TrainingLoader
from training.data.samples import SampleSize
from training.data.shards import ShardDataset
from training.run.loop import TrainingRun
from training.run.settings import DataSettings, OptimizerSettings, RunSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    run: RunSettings
    data: DataSettings
    optimizer: OptimizerSettings


class Objective(torch.nn.Module):
    """Depth from colours, with dropout (global random state) and drawn noise."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.dropout = dropout
        self.layer = torch.nn.Linear(3, 8)
        self.last = torch.nn.Linear(8, 1)
        self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, colors, depth, noise):
        hidden = self.layer(colors + 0.1 * noise).relu()
        hidden = torch.nn.functional.dropout(hidden, self.dropout)
        return (self.last(hidden)[..., 0] - depth).square().flatten(1).mean(1)


def config(data: Path, output: Path, num_steps: int, **run) -> Config:
    settings = {"checkpoint_every": 3, "checkpoints_kept": 2, "validate_every": 0} | run
    settings = {"precision": "fp32", "tracker": "none", "batch_size": 2} | settings
    return Config(
        run=RunSettings(output=output, num_steps=num_steps, **settings),
        data=DataSettings(train=data, size=SampleSize(num_frames=1, height=16, width=32)),
        optimizer=OptimizerSettings(learning_rate=1e-2, weight_decay=1e-2, warmup_steps=4),
    )


def train(config: Config, each=lambda run: None, objective=None) -> TrainingRun:
    run = TrainingRun(config)
    dataset = ShardDataset(config.data.train, config.data.size)
    loader = TrainingLoader(
        dataset,
        batch_size=config.run.batch_size,
        seed=config.run.seed,
        rank=run.rank,
        num_ranks=run.num_ranks,
    )
    run.prepare(objective or Objective(), loader, {"last.": 0.5})
    for batch in run.batches():
        colors = batch.video[:, 0] / 255
        noise = torch.randn(colors.shape, generator=run.generator())
        if run.module.dropout == 0:
            noise.zero_()
        run.update(batch, lambda c=colors, b=batch, n=noise: run.objective(c, b.depth, n))
        each(run)
    run.close()
    return run


if __name__ == "__main__":
    data, output, num_steps, sleep_s, *batch_size = sys.argv[1:]
    torch.manual_seed(0)
    settings = {"batch_size": int(batch_size[0])} if batch_size else {"ema_decay": 0.9}
    train(
        config(Path(data), Path(output), int(num_steps), **settings),
        each=lambda run: time.sleep(float(sleep_s)),
        objective=Objective(0.0) if batch_size else None,
    )
