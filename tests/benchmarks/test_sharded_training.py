"""What is started, and what is not started twice, in measuring trainings split over GPUs."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import sharded_training
from benchmarks.sharded_training import Curve, measure_curves


@pytest.mark.parametrize("first", [["fsdp"], ["fsdp", "zero2"]])
def test_the_curve_of_one_gpu_is_measured_once_for_calls_that_share_a_folder(
    first, tmp_path, monkeypatch
):
    started = []

    def start(_launch, arguments, output):
        started.append(arguments)
        output.mkdir(parents=True)
        lines = [json.dumps({"loss": 2.0}) + "\n"] * 20
        (output / "metrics.jsonl").write_text("".join(lines))
        (output / "figures.json").write_text("{}")
        return SimpleNamespace(wait_or_fail=lambda: None)

    def interrupted(engine, _launch, _common, _output, alone, _ranks):
        return Curve(engine=engine, alone=alone, split=[2.01] * 20, before_kill=[2.01] * 14)

    monkeypatch.setattr(sharded_training, "start", start)
    monkeypatch.setattr(sharded_training, "interrupted", interrupted)
    for engines in (first, ["zero3"]):
        assert measure_curves(engines, 2, tmp_path, ["--num-frames", "9"]) == 0
    assert len(started) == 1
    assert started[0][-2:] == ["--batch-size", "2"]
