"""`python -m more4d_backend generate` from a photo to completed videos, with toy weight files."""

import json

import pytest
import torch

from more4d_backend.cli import main
from more4d_backend.depth_files import save_depth_png16
from more4d_backend.image_files import save_image
from more4d_backend.scene_files import load_scene
from more4d_backend.video_files import load_video

HEIGHT, WIDTH = 32, 48


@pytest.fixture
def photo(tmp_path):
    g = torch.Generator().manual_seed(0)
    save_image(tmp_path / "photo.png", torch.rand(HEIGHT, WIDTH, 3, generator=g))
    depth = 1 + torch.rand(HEIGHT, WIDTH, generator=g)
    save_depth_png16(tmp_path / "depth.png", depth)
    return tmp_path / "photo.png"


@pytest.fixture
def options(weight_files, photo):
    weights = [f"--weights={name}={path}" for name, path in weight_files.items()]
    return [
        *weights, "--prompt", "the ball moves left", "--depth", str(photo.with_name("depth.png")),
        "--fov-deg", "55", "--profile", "own", "--num-frames", "5", "--size-hw", "32", "48",
        "--num-steps", "2", "--camera", "orbit-left", "--camera", "dolly-zoom", "--device", "cpu",
    ]  # fmt: skip


def stages(folder):
    return json.loads((folder / "run.json").read_text())["stages"]


def test_a_photo_becomes_a_scene_and_its_films(photo, options, tmp_path, caplog):
    out = tmp_path / "out"
    assert main(["generate", str(photo), *options, "-o", str(out)]) == 0
    assert load_scene(out / "scene.safetensors").num_frames == 5
    for camera in ("orbit-left", "dolly-zoom"):
        completed, fps = load_video(out / f"{camera}.mp4")
        assert completed.shape == (5, HEIGHT, WIDTH, 3)
        assert fps == 8
    assert (out / "contact-sheet.png").stat().st_size > 1000
    names = [stage["name"] for stage in stages(out)]
    assert names == [
        "depth", "scene", "orbit-left: render", "dolly-zoom: render", "orbit-left: complete",
        "dolly-zoom: complete",
    ]  # fmt: skip
    hashes = stages(out)[1]["details"]["weights_sha256"]
    assert set(hashes) == {"strag", "motion-vae", "wan-vae", "umt5", "umt5-tokenizer", "clip"}
    assert all(len(value) == 64 for value in hashes.values())


def test_a_second_run_redoes_only_what_changed(photo, options, tmp_path):
    out = tmp_path / "out"
    command = ["generate", str(photo), *options, "-o", str(out)]
    main(command)
    before = {stage["name"]: stage["seconds"] for stage in stages(out)}
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "dolly-zoom.mp4").write_bytes(b"damaged")
    assert main(command) == 0
    after = {stage["name"]: stage["seconds"] for stage in stages(out)}
    redone = {
        path.name
        for path in out.iterdir()
        if path.suffix in (".mp4", ".mkv", ".safetensors", ".exr")
        and path.stat().st_mtime_ns != times[path.name]
    }
    assert redone == {"dolly-zoom.mp4"}
    assert {name for name in before if before[name] != after[name]} <= {"dolly-zoom: complete"}
    main([*command, "--seed", "1"])
    assert {p.name for p in out.iterdir() if p.stat().st_mtime_ns != times[p.name]} >= {
        "scene.safetensors", "orbit-left.mp4", "orbit-left-render.mkv",
    }  # fmt: skip


def test_a_batch_finishes_the_others_and_reports_the_failed_one(photo, options, tmp_path, caplog):
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "good.png").write_bytes(photo.read_bytes())
    (folder / "bad.png").write_bytes(b"not a picture")
    status = main(["generate", str(folder), *options, "--no-complete", "-o", str(tmp_path / "out")])
    assert status == 1
    assert (tmp_path / "out" / "good" / "scene.safetensors").exists()
    assert "bad.png" in caplog.text
    assert "1 of 2 done" in caplog.text


def test_a_csv_file_has_a_prompt_and_a_depth_per_image(photo, options, tmp_path):
    listing = tmp_path / "list.csv"
    listing.write_text("image,prompt,depth\nphoto.png,the ball moves right,depth.png\n")
    out = tmp_path / "out"
    assert main(["generate", str(listing), *options, "--no-complete", "-o", str(out)]) == 0
    settings = json.loads((out / "photo" / "run.json").read_text())["settings"]
    assert settings["generation"]["prompt"] == "the ball moves right"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--num-frames", "6"], "Use 5 or 9"),
        (["--prompt", " "], "prompt is empty"),
        (["--camera", "orbit-lft"], "orbit-left"),
        (["--weights", "strga=x"], "expected NAME=FILE"),
        (["--weights", "strag=nowhere.safetensors"], "not there"),
    ],
)
def test_bad_requests_are_refused_and_nothing_is_written(
    photo, options, tmp_path, caplog, change, message
):
    out = tmp_path / "out"
    assert main(["generate", str(photo), *options, *change, "-o", str(out)]) == 2
    assert message in caplog.text
    assert not out.exists()


def test_a_wrong_file_in_a_slot_is_named_for_what_it_is(
    photo, options, weight_files, tmp_path, caplog
):
    swapped = ["--weights", f"strag={weight_files['fun-inp']}"]
    assert main(["generate", str(photo), *options, *swapped, "-o", str(tmp_path / "out")]) == 2
    assert "Fun-InP" in caplog.text
    assert "STraG" in caplog.text


def test_missing_weights_are_listed_with_the_command_that_gets_them(
    photo, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("more4d_backend.downloads.find_downloaded", lambda *_: None)
    base = ["generate", str(photo), "--prompt", "x", "--depth", "d.png"]
    assert main([*base, "-o", str(tmp_path / "out")]) == 2
    assert "download strag motion-vae wan-vae" in caplog.text
