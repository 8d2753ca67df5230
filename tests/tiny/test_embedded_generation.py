"""`generate` with the embedded layout: random values, so nothing here depends on training."""

import json
import shutil

import pytest
import torch

from more4d_backend import tiny
from more4d_backend.cli import main
from more4d_backend.files.images import save_image
from more4d_backend.files.videos import load_video
from more4d_backend.generation import choose_models
from more4d_backend.scene_files import load_scene
from more4d_backend.weights.files import WeightsError


@pytest.fixture
def embedded(random_embedded, monkeypatch):
    monkeypatch.setattr(tiny, "WEIGHTS_FOLDER", random_embedded)
    monkeypatch.setattr("more4d_backend.weights.downloads.find_downloaded", lambda *_: None)
    return random_embedded


@pytest.fixture
def command(tmp_path):
    save_image(tmp_path / "photo.png", torch.rand(40, 60, 3))
    return [
        "generate", str(tmp_path / "photo.png"), "--prompt", "the ball moves left",
        "--num-frames", "5", "--size-hw", "32", "48", "--num-steps", "2",
        "--camera", "orbit-left", "--device", "cpu", "-o", str(tmp_path / "out"),
    ]  # fmt: skip


def test_a_photo_and_a_prompt_are_enough(embedded, command, tmp_path, caplog, capsys):
    assert main(command) == 0
    out = tmp_path / "out"
    assert load_scene(out / "scene.safetensors").num_frames == 5
    assert load_video(out / "orbit-left.mp4")[0].shape == (5, 32, 48, 3)
    told = " ".join(record.getMessage() for record in caplog.records)
    assert "know procedural scenes only" in told
    assert "more4d_backend download" in told
    assert "embedded depth network (tiny) is used" in told
    assert "The VAEs compute in" in told
    run = json.loads((out / "run.json").read_text())
    models = run["settings"]["models"]
    assert models["origin"].startswith("Using the embedded weights.")
    assert models["profile"]["name"] == "own"
    assert models["profile"]["snap_to_edges"] is True
    assert models["lora_weight"] == 1.0
    assert run["settings"]["depth"].startswith("tiny")
    assert run["settings"]["generation"]["strag"]["sampling"]["guidance_scale"] == 1.5
    scene = next(stage for stage in run["stages"] if stage["name"] == "scene")
    used = scene["details"]["weights_sha256"]
    assert set(used) == {"strag", "motion-vae", "wan-vae", "text-encoder"}
    assert "orbit-left: complete" in capsys.readouterr().out  # the table of times


def test_other_embedded_depth_weights_make_the_depth_again(
    embedded, command, tmp_path, monkeypatch
):
    from more4d_backend.tiny.depth_network import DepthNetwork
    from more4d_backend.tiny.writing import write_embedded

    command = [*command, "--no-complete"]
    assert main(command) == 0
    before = (tmp_path / "out" / "depth.exr").read_bytes()
    other = tmp_path / "other"
    shutil.copytree(embedded, other)
    write_embedded("depth", DepthNetwork(), folder=other)
    monkeypatch.setattr(tiny, "WEIGHTS_FOLDER", other)
    assert main(command) == 0
    assert (tmp_path / "out" / "depth.exr").read_bytes() != before


def test_a_named_file_takes_the_place_of_an_embedded_one(embedded, tmp_path):
    own = tmp_path / "mine.safetensors"
    own.write_bytes((embedded / tiny.relative_path("strag")).read_bytes())
    choice = choose_models({"strag": own}, model="embedded")
    assert choice.files["strag"] == own
    assert choice.files["fun-inp"] == embedded / tiny.relative_path("vism")
    assert "Replaced by named files: strag." in choice.reason
    assert set(choose_models({}, model="embedded", complete=False).files) == {
        "strag", "motion-vae", "wan-vae", "text-encoder",
    }  # fmt: skip


def test_downloaded_weights_go_before_the_embedded_ones(embedded, monkeypatch, tmp_path):
    assert choose_models({}).name == "embedded"
    file = tmp_path / "downloaded.safetensors"
    file.write_bytes(b"")
    monkeypatch.setattr("more4d_backend.weights.downloads.find_downloaded", lambda *_: file)
    choice = choose_models({})
    assert choice.name == "released"
    assert set(choice.files.values()) == {file}
    assert choose_models({}, model="embedded").name == "embedded"


def test_a_half_download_says_what_is_missing(embedded, monkeypatch, tmp_path):
    def found(name, _):
        return None if name == "clip" else tmp_path

    monkeypatch.setattr("more4d_backend.weights.downloads.find_downloaded", found)
    choice = choose_models({})
    assert choice.name == "embedded"
    assert "these are not downloaded: clip." in choice.reason


@pytest.mark.parametrize(
    ("given", "model", "message"),
    [
        ({"umt5": "x"}, "embedded", "have no use for umt5"),
        ({"strag": "x"}, "embedded", "not there: x"),
        ({"text-encoder": "x"}, None, "only the embedded networks read it"),
        ({"strag": "x"}, None, "neither named nor downloaded: motion-vae"),
        ({}, "released", "neither named nor downloaded"),
    ],
)
def test_weights_that_do_not_go_together_are_refused(embedded, given, model, message):
    from pathlib import Path

    with pytest.raises(WeightsError, match=message):
        choose_models({name: Path(path) for name, path in given.items()}, model=model)


def test_an_installation_without_embedded_weights_says_so(tmp_path, monkeypatch, command, caplog):
    monkeypatch.setattr(tiny, "WEIGHTS_FOLDER", tmp_path)
    monkeypatch.setattr("more4d_backend.weights.downloads.find_downloaded", lambda *_: None)
    assert main([*command, "--model", "embedded"]) == 2
    assert "missing from this installation" in caplog.text
    caplog.clear()
    assert main(command) == 2
    assert "download strag motion-vae" in caplog.text


def test_embedded_files_are_known_by_name_only():
    with pytest.raises(WeightsError, match="There are: wan_vae"):
        tiny.embedded_file("../wan_vae")
