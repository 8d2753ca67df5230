"""The trainers on CUDA: bfloat16, gradient checkpointing, and parameters split over two GPUs."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    from training.data.samples import SampleSize
    from training.data.shards import write_shard
    from training.procedural.dataset import procedural_sample, procedural_tiny

    folder = tmp_path_factory.mktemp("data")
    size = SampleSize(num_frames=9, height=64, width=96)
    settings = replace(procedural_tiny(), size=size)
    for part, seeds in (("train", range(8)), ("validation", range(100, 101))):
        samples = (procedural_sample(seed, settings) for seed in seeds)
        write_shard(folder / part / "0.tar", samples)
    return folder


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    from accelerate.state import AcceleratorState, PartialState

    yield
    AcceleratorState._reset_state(True)
    PartialState._reset_state()


def _losses(output: Path) -> list[float]:
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [m["loss"] for m in map(json.loads, lines) if "loss" in m]


@pytest.mark.parametrize(
    ("trainer", "recipe"),
    [("motion_vae", "tiny"), ("strag", "tiny"), ("vism", "tiny"), ("vism", "tiny-lora")],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_trainer_runs_in_bfloat16_and_resumes(trainer, recipe, checkpointing, data, tmp_path):
    from importlib import import_module

    from training.data.samples import SampleSize
    from training.recipes import RECIPES

    train = import_module(f"training.train_{trainer}").train

    def config(output: str, num_steps: int):
        made = RECIPES[trainer][recipe](data, tmp_path / output)
        run = replace(
            made.run,
            num_steps=num_steps,
            batch_size=2,
            gradient_checkpointing=checkpointing,
            tracker="none",
            validate_every=num_steps,
        )
        size = SampleSize(num_frames=9, height=64, width=96)
        return replace(
            made,
            run=run,
            data=replace(made.data, size=size, num_workers=2, num_validation_samples=1),
        )

    train(config("whole", 4))
    train(config("parts", 2))
    path = train(config("parts", 4))
    assert path.stat().st_size > 0
    whole, parts = _losses(tmp_path / "whole"), _losses(tmp_path / "parts")
    assert len(whole) == 4
    # CUDA's sums have no fixed order, so not to the last bit.
    assert parts == pytest.approx(whole, rel=0.02)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_parameters_split_over_two_gpus_train_as_whole_ones(data, tmp_path):
    def launch(output: str, num_steps: int, *how: str) -> None:
        size = ["--data.size.num-frames", "9", "--data.size.height", "64"]
        settings = ["--data.train", str(data / "train"), "--data.validation", "None", *size]
        settings += ["--data.size.width", "96", "--run.ema-decay", "None"]
        settings += ["--run.output", str(tmp_path / output), "--run.num-steps", str(num_steps)]
        settings += ["--run.batch-size", "1", "--run.tracker", "none", "--data.num-workers", "0"]
        done = subprocess.run(
            [
                *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"),
                *(*how, "-m", "training.train_strag", "tiny", *settings),
            ],
            cwd=ROOT,
            env=dict(os.environ),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]

    split = ("--config_file", str(ROOT / "training" / "launch" / "fsdp.yaml"))
    launch("whole", 4, "--multi_gpu")
    launch("split", 2, *split)
    launch("split", 4, *split)
    assert _losses(tmp_path / "split") == pytest.approx(_losses(tmp_path / "whole"), rel=0.02)
    assert (tmp_path / "split" / "strag.safetensors").exists()


def test_fused_updates_are_those_of_single_kernels():
    from training.run.optimizers import fuse

    ends = []
    for fused in (False, True):
        torch.manual_seed(0)
        layer = torch.nn.Linear(64, 64).cuda()
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, foreach=False)
        if fused:
            optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
            fuse(optimizer)
        for number in range(10):
            layer(torch.full((8, 64), number / 10).cuda()).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(layer.weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)
