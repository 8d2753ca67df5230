"""Training split over GPUs, measured: the same curve as on one, and what full size costs.

    python -m benchmarks.sharded_training curve    # 2 GPUs: 1.3B on 1 and on 2, a rank is killed
    python -m benchmarks.sharded_training full     # 4 GPUs: 14B 4D-STraG, its weights gathered
    python -m benchmarks.sharded_training lora     # 1 GPU: 14B 4D-ViSM under a LoRA of rank 128

Weights and data are random (benchmarks/sharded_trainer.py); the rest is what trainers run. What is
not listed by --help is for that trainer: `--batch-size 3`, `--compile`, `--kept-blocks 0.3`. Losses
are to be within 1 % at every step, 14B is to use 35 % of what the cards can do, the LoRA 40 %.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from more4d_backend.weights.model_loading import load_strag
from training.gather import gather_fragments

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "training" / "launch"

MAX_DIFFERENCE = 0.01
"""Of a loss, relative to one GPU's."""

GRACE_S = 10
"""What the launcher gets to notice that a rank is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Losses of one engine beside those of one GPU."""

    engine: str
    """`fsdp`, `zero2` or `zero3`."""

    alone: list[float]
    """On one GPU, by step."""

    split: list[float]
    """Split over ranks, with a rank killed in between."""

    before_kill: list[float]
    """Of the steps before that; the last ones were done twice."""

    @property
    def difference(self) -> float:
        """The largest one to one GPU, relative."""
        return max(abs(b / a - 1) for a, b in zip(self.alone, self.split, strict=True))

    @property
    def resumed_difference(self) -> float:
        """The largest one between what was done before the kill and again after it, relative."""
        return max(abs(b / a - 1) for a, b in zip(self.before_kill, self.split, strict=False))


def main() -> int:
    """Measure; 1 where an aim is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("curve", "full", "lora"))
    parser.add_argument("--engines", nargs="+", default=["fsdp", "zero2", "zero3"])
    parser.add_argument("--num-gpus", type=int, help="2 for curve, 4 for full")
    parser.add_argument("--folder", type=Path, help="for runs and weights; by default temporary")
    options, trainer = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="sharded-") as temporary:
        folder = options.folder or Path(temporary)
        if options.what == "curve":
            return measure_curves(options.engines, options.num_gpus or 2, folder, trainer)
        if options.what == "full":
            return measure_full(options.num_gpus or 4, folder, trainer)
        return measure_lora(folder, trainer)


def measure_curves(engines: list[str], num_gpus: int, folder: Path, trainer: list[str]) -> int:
    """Train the 1.3B layout on one GPU and split over several; print and judge the difference."""
    common = ["--size", "1.3b", "--num-steps", "21", "--stop-at", "20", *trainer]
    alone = folder / "alone"
    if not (alone / "figures.json").exists():  # one call for every engine: the first one measures
        start(plain(), [*common, "--batch-size", str(num_gpus)], alone).wait_or_fail()
    print(f"one GPU: {losses(alone)}", flush=True)
    missed = 0
    for engine in engines:
        launch = partial(accelerate, engine, num_gpus)
        curve = interrupted(engine, launch, common, folder / engine, losses(alone), num_gpus)
        print(f"{engine}: {curve.split}", flush=True)
        print(
            f"{engine}: at most {curve.difference:.2e} from one GPU over {len(curve.split)} steps; "
            f"{len(curve.before_kill)} steps before a rank was killed, those after the checkpoint "
            f"again within {curve.resumed_difference:.2e}",
            flush=True,
        )
        missed += max(curve.difference, curve.resumed_difference) > MAX_DIFFERENCE
    return int(missed > 0)


def interrupted(
    engine: str,
    launch: Callable[[], list[str]],
    common: list[str],
    output: Path,
    alone: list[float],
    num_ranks: int,
) -> Curve:
    """Train on several ranks, kill the last one after two thirds of the steps, and go on."""
    num_steps = len(alone)
    saved, killed = num_steps // 2, 2 * num_steps // 3
    arguments = [*common, "--batch-size", "1", "--checkpoint-every", str(saved)]
    run = start(launch(), arguments, output)
    while not (output / "metrics.jsonl").exists() or len(losses(output)) < killed:
        run.check()
        time.sleep(0.1)
    before = losses(output)
    kill_rank(output, num_ranks - 1)
    run.end_after(GRACE_S, [rank_pid(output, rank) for rank in range(num_ranks - 1)])
    if len(before) >= num_steps:
        raise RuntimeError(f"{engine} was through before its rank could be killed: take more steps")
    start(launch(), arguments, output).wait_or_fail()
    return Curve(engine=engine, alone=alone, split=losses(output), before_kill=before)


def measure_full(num_gpus: int, folder: Path, trainer: list[str]) -> int:
    """Train 14B 4D-STraG for a few steps, write its weights, gather them and load them strictly."""
    output, weights = folder / "full", folder / "weights"
    arguments = ["--size", "14b", "--random-shards", "--num-steps", "10", "--stop-at", "9"]
    arguments += ["--weights", str(weights), *trainer]
    start(accelerate("fsdp", num_gpus), arguments, output).wait_or_fail()
    figures = json.loads((output / "figures.json").read_text())
    begun = time.perf_counter()
    path = gather_fragments(weights)
    gathered = time.perf_counter()
    network = load_strag(path)
    loaded = time.perf_counter()
    count = sum(p.numel() for p in network.parameters())
    print(
        f"gathered into {path.stat().st_size / 1e9:.1f} GB in {gathered - begun:.0f} s; loaded "
        f"strictly in {loaded - gathered:.0f} s: {count / 1e9:.2f} billion parameters"
    )
    return judged(figures, 0.35)


def measure_lora(folder: Path, trainer: list[str]) -> int:
    """Train a LoRA of 14B 4D-ViSM for a few steps on one GPU."""
    output = folder / "lora"
    arguments = ["--trainer", "vism", "--size", "14b", "--num-steps", "10", "--stop-at", "9"]
    start(plain(), [*arguments, *trainer], output).wait_or_fail()
    return judged(json.loads((output / "figures.json").read_text()), 0.40)


def judged(figures: dict[str, float], aim: float) -> int:
    """Print the figures; 1 where too little of the cards was used."""
    share = figures["utilisation_3_forward"]
    print(
        f"{figures['seconds_per_step']:.2f} s per step of {figures['samples_per_rank_and_step']} "
        f"samples a GPU; {100 * share:.1f} % of the cards by 3 x forward, "
        f"{100 * figures['utilisation_2_forward']:.1f} % by 2 x forward, aim {100 * aim:.0f} %; "
        f"peak {figures['peak_gib_per_rank']} GiB",
        flush=True,
    )
    return int(share < aim)


class Started:
    """A launcher that runs, and its ranks."""

    def __init__(self, command: list[str]) -> None:
        print(" ".join(command), flush=True)
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment)

    def check(self) -> None:
        """Raise if it has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"The training ended early, with {self.process.returncode}.")

    def wait_or_fail(self) -> None:
        """Wait for the end; raise where it is no good one."""
        if self.process.wait() != 0:
            raise RuntimeError(f"The training ended with {self.process.returncode}.")

    def end_after(self, seconds: float, ranks: list[int]) -> None:
        """Let the launcher end by itself; after so long end the given ranks, and wait for it."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            for pid in ranks:  # they wait for the one that is gone, deaf to all but this
                os.kill(pid, signal.SIGKILL)
            self.process.wait()
        if self.process.returncode == 0:
            raise RuntimeError("The training ended well, though one of its ranks was killed.")


def start(launch: list[str], arguments: list[str], output: Path | None) -> Started:
    """Start a trainer, this benchmark's where an output folder is named."""
    return Started([*launch, *arguments, *(("--output", str(output)) if output else ())])


def plain() -> list[str]:
    """Return how to start it on one GPU."""
    return [sys.executable, "-m", "benchmarks.sharded_trainer"]


def accelerate(engine: str, num_gpus: int) -> list[str]:
    """Return how to start it split over GPUs."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(LAUNCH / f"{engine}.yaml")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        command += ["--main_process_port", str(free.getsockname()[1])]
    return [*command, "--num_processes", str(num_gpus), "-m", "benchmarks.sharded_trainer"]


def losses(output: Path) -> list[float]:
    """Return the loss of every step so far."""
    whole = (output / "metrics.jsonl").read_text().split("\n")[:-1]
    return [json.loads(line)["loss"] for line in whole]


def kill_rank(output: Path, rank: int) -> None:
    """Kill a rank as a machine that fails would."""
    os.kill(rank_pid(output, rank), signal.SIGKILL)


def rank_pid(output: Path, rank: int) -> int:
    """Return the process id that a rank wrote down."""
    return int((output / f"rank-{rank}.pid").read_text())


if __name__ == "__main__":
    sys.exit(main())
