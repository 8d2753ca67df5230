"""`generate` of many images, with toy weight files: each network is loaded once."""

from contextlib import contextmanager

import pytest
import torch

from more4d_backend.cli import main
from more4d_backend.depth import DepthPrediction
from more4d_backend.files.images import load_image, save_image
from more4d_backend.generation import FileModels
from more4d_backend.strag.pipeline import StragPipeline


@pytest.fixture
def counted(monkeypatch):
    """Count the loads of the networks that the command itself loads."""
    loads = []

    class Depth:
        @classmethod
        def load(cls, *_, **__):
            loads.append("depth")
            return cls()

        def predict(self, image):
            return DepthPrediction(
                depth=1 + image.mean(-1), intrinsics=None, provider="stand-in", is_metric=True
            )

    monkeypatch.setattr("more4d_backend.cli.depth_options.provider_class", lambda _: Depth)
    for name in ("strag", "vism"):
        monkeypatch.setattr(FileModels, name, noting(loads, name, getattr(FileModels, name)))
    return loads


def noting(loads, name, load):
    @contextmanager
    def noted(models, num_frames, size_hw):
        loads.append(name)
        with load(models, num_frames, size_hw) as pipeline:
            yield pipeline
        loads.append(f"{name} freed")

    return noted


@pytest.fixture
def command(tmp_path, weight_files):
    for index in range(3):
        picture = torch.rand(32, 48, 3, generator=torch.Generator().manual_seed(index))
        save_image(tmp_path / "photos" / f"{index}.png", picture)
    weights = [f"--weights={name}={path}" for name, path in weight_files.items()]
    return [
        "generate", str(tmp_path / "photos"), *weights, "--prompt", "the ball moves left",
        "--depth", "stand-in", "--fov-deg", "55", "--profile", "own", "--num-frames", "5",
        "--size-hw", "32", "48", "--num-steps", "2", "--step-cache", "0.5",
        "--camera", "orbit-left", "--camera", "dolly-zoom", "--device", "cpu",
        "-o", str(tmp_path / "out"),
    ]  # fmt: skip


def test_the_command_loads_each_network_once_and_results_are_those_of_single_runs(
    tmp_path, command, counted, results, exact_videos, capsys
):
    assert main(command) == 0
    once = ["depth", "strag", "strag freed", "vism", "vism freed"]
    assert counted == once
    assert capsys.readouterr().out.count("time and memory") == 3
    counted.clear()
    assert main(command) == 0
    assert counted == []
    for index in range(3):
        alone = tmp_path / "alone" / str(index)
        photo = tmp_path / "photos" / f"{index}.png"
        assert main([command[0], str(photo), *command[2:-1], str(alone)]) == 0
        assert results(alone) == results(tmp_path / "out" / str(index))
    assert counted == 3 * once


def test_a_full_device_fails_one_image_in_words_and_leaves_the_others(
    tmp_path, command, counted, caplog, monkeypatch
):
    generate = StragPipeline.generate

    def full(pipeline, image, *args, **kwargs):
        if torch.equal(image, load_image(tmp_path / "photos" / "1.png")):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generate(pipeline, image, *args, **kwargs)

    monkeypatch.setattr(StragPipeline, "generate", full)
    assert main([*command, "--no-complete"]) == 1
    listed = [record.getMessage() for record in caplog.records[-2:]]
    assert "1.png: cpu ran out of memory in mode resident" in listed[0]
    assert listed[1] == "2 of 3 done."
    assert all((tmp_path / "out" / name / "contact-sheet.png").exists() for name in "02")
