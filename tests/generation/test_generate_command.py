"""`python -m more4d_backend generate` from a photo to completed videos, with toy weight files."""

import errno
import hashlib
import json

import pytest
import torch

from more4d_backend.camera_files import save_cameras
from more4d_backend.camera_paths import make_path
from more4d_backend.cli import main
from more4d_backend.depth import camera_from_intrinsics
from more4d_backend.files.depth_maps import save_depth_png16
from more4d_backend.files.images import save_image
from more4d_backend.files.videos import load_video
from more4d_backend.generation.models import cached_sha256
from more4d_backend.generation.run_record import only_run_in
from more4d_backend.geometry import intrinsics_from_focal
from more4d_backend.scene_files import load_scene
from more4d_backend.strag.pipeline import StragPipeline

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


@pytest.fixture
def one_camera(options):
    return [*options[: options.index("--camera")], "--camera", "dolly-zoom", "--device", "cpu"]


def test_changed_conventions_of_weights_make_their_own_stages_again(photo, one_camera, tmp_path):
    command = ["generate", str(photo), *one_camera, "-o", str(tmp_path / "out")]

    def redone(*change):
        known = {s["name"]: s["inputs_sha256"] for s in stages(tmp_path / "out")}
        times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
        assert main([*command, *change]) == 0
        made = {
            s["name"] for s in stages(tmp_path / "out") if known[s["name"]] != s["inputs_sha256"]
        }
        after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
        assert ("scene" in made) == (after["scene.safetensors"] != times["scene.safetensors"])
        return made

    assert main(command) == 0
    assert redone() == set()
    assert redone("--lora-weight", "1.0") == {"dolly-zoom: complete"}
    # Other conventions move the points, so everything after them is another picture.
    assert redone("--lora-weight", "1.0", "--profile", "released") >= {"scene"}


def test_every_option_of_speed_and_memory_reaches_the_networks(photo, one_camera, tmp_path):
    out = tmp_path / "out"
    faster = [
        "--step-cache", "0.5", "--guided-fraction", "0.5", "--attention", "measure",
        "--vae-tiling", "on", "--sequential-cfg", "on",
    ]  # fmt: skip
    assert main(["generate", str(photo), *one_camera, *faster, "-o", str(out)]) == 0
    for stage in (s for s in stages(out) if s["name"] in ("scene", "dolly-zoom: complete")):
        assert "VAE tiling, sequential guidance" in stage["chosen"]["plan"]
        assert stage["details"]["settings"]["models"]["step_cache"] == 0.5
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert settings["generation"]["strag"]["sampling"]["guided_fraction"] == 0.5
    assert settings["generation"]["vism"]["sampling"]["guided_fraction"] == 0.5
    assert settings["models"]["measure_attention"] is True


def test_a_padded_photo_of_any_proportions_keeps_its_own(options, tmp_path):
    photo, out = tmp_path / "odd.png", tmp_path / "out"
    save_image(photo, torch.rand(40, 52, 3))
    save_depth_png16(tmp_path / "odd-depth.png", 1 + torch.rand(40, 52))
    odd = ["--fit", "pad", "--depth", str(tmp_path / "odd-depth.png")]
    assert main(["generate", str(photo), *options, *odd, "-o", str(out)]) == 0
    # 42 columns show the photo, which is no multiple of 16; none was cut, none was added.
    assert load_video(out / "dolly-zoom.mp4")[0].shape == (5, 32, 42, 3)


def test_depth_options_that_leave_points_out_do_so(photo, options, tmp_path):
    out = tmp_path / "out"
    base = ["generate", str(photo), *options, "--no-complete", "-o", str(out)]
    assert main([*base, "--max-depth", "1.5"]) == 0
    near = load_scene(out / "scene.safetensors").points.visibility[0]
    assert 0.3 < near.float().mean() < 0.7
    assert main([*base, "--max-depth", "1.5", "--drop-edges"]) == 0
    assert load_scene(out / "scene.safetensors").points.visibility[0].sum() < near.sum()


def test_two_runs_into_one_folder_do_not_mix(photo, options, tmp_path, caplog):
    out = tmp_path / "out"
    command = ["generate", str(photo), *options, "--no-complete", "-o", str(out)]
    with only_run_in(out):
        assert main(command) == 2
    assert "Another run is writing" in caplog.text
    assert not (out / "run.json").exists()
    assert main(command) == 0


@pytest.mark.parametrize("reason", [errno.ENOSYS, errno.ENOLCK])
def test_a_disk_without_locks_is_warned_of_and_used(tmp_path, monkeypatch, caplog, reason):
    def refuse(_):
        raise OSError(reason, "no locks here")

    monkeypatch.setattr("more4d_backend.generation.run_record._lock", refuse)
    with only_run_in(tmp_path):
        assert "start no second run" in caplog.text


def test_a_full_device_is_told_with_what_was_free_before_its_networks_left(
    photo, options, tmp_path, caplog, monkeypatch
):
    held = []

    def full(pipeline, *_, **__):
        monkeypatch.setattr(
            "more4d_backend.devices.free_bytes",
            lambda _: held.append(pipeline.transformer.device.type) or 3 << 30,
        )
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(StragPipeline, "generate", full)
    assert main(["generate", str(photo), *options, "-o", str(tmp_path / "out")]) == 2
    assert "ran out of memory in mode resident" in caplog.text
    assert "3.0 GiB could still be allocated" in caplog.text
    assert held == ["cpu"]  # not meta: nothing had been freed yet


def test_pictures_of_one_name_are_refused_before_any_work(photo, options, tmp_path, caplog):
    for suffix in ("png", "jpg"):
        save_image(tmp_path / "many" / f"same.{suffix}", torch.rand(32, 48, 3))
    out = tmp_path / "out"
    assert main(["generate", str(tmp_path / "many"), *options, "-o", str(out)]) == 2
    assert "several images named same" in caplog.text
    assert not out.exists()


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
    ("contents", "message"),
    [
        ("image,prompt\nphoto.png,le b\xe9b\xe9 court\n".encode("latin-1"), "not text in UTF-8"),
        (b"image,prompt\nphoto.png," + b"x" * 200_000, "cannot be read as a CSV file"),
        (b"picture,prompt\nphoto.png,it moves\n", "no rows with a column named image"),
        (b"image,prompt\n,it moves\n", "line 2: the image or the prompt is missing"),
    ],
)
def test_a_damaged_csv_file_is_refused_by_name(options, tmp_path, caplog, contents, message):
    listing = tmp_path / "list.csv"
    listing.write_bytes(contents)
    assert main(["generate", str(listing), *options, "-o", str(tmp_path / "out")]) == 2
    assert str(listing) in caplog.text
    assert message in caplog.text


def test_other_cameras_in_the_same_colmap_folder_are_rendered_anew(photo, options, tmp_path):
    camera = camera_from_intrinsics(intrinsics_from_focal(torch.tensor(46.0), 32, 48), 32, 48)
    model, out = tmp_path / "model", tmp_path / "out"
    others = [*options[: options.index("--camera")], "--device", "cpu", "--no-complete"]
    films = []
    for name in ("truck-left", "truck-right"):
        save_cameras(model, make_path(name, camera, 5))
        command = ["generate", str(photo), *others, "--camera", str(model), "-o", str(out)]
        assert main(command) == 0
        films.append(load_video(out / "model-render.mkv")[0])
    assert not torch.equal(*films)


def test_hashes_that_cannot_be_remembered_stop_nothing(tmp_path, monkeypatch, caplog):
    (tmp_path / "home").write_text("no folder")
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    expected = hashlib.sha256(b"weights").hexdigest()
    assert cached_sha256(tmp_path / "weights.safetensors") == expected
    assert "not remembered" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--num-frames", "6"], "Use 5 or 9"),
        (["--prompt", " "], "prompt is empty"),
        (["--camera", "orbit-lft"], "orbit-left"),
        (["--weights", "strga=x"], "expected NAME=FILE"),
        (["--weights", "strag=nowhere.safetensors"], "not there"),
        (["--size-hw", "30", "48"], "Use 16 or 32"),
        (["--step-cache", "2"], "less than 1"),
        (["--compile-blocks", "--memory-mode", "fp8"], "cannot hold their weights in 8 bits"),
        (["--memory-mode", "block-offload", "--attention", "native"], "Use resident"),
        (["--overlap-frames", "49", "--num-frames", "53"], "overlap_frames is 49"),
        (["--guided-fraction", "1.5"], "expected 0 to 1"),
        (["--seed", "-1"], "seed is -1"),
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
    for slot, other, words in (
        ("strag", "fun-inp", ("Fun-InP", "STraG")),
        # Its stage is the last one, and yet nothing was begun.
        ("vism-lora", "umt5", ("the UMT5 text encoder", "ViSM LoRA")),
    ):
        caplog.clear()
        swapped = ["--weights", f"{slot}={weight_files[other]}"]
        assert main(["generate", str(photo), *options, *swapped, "-o", str(tmp_path / "out")]) == 2
        assert all(word in caplog.text for word in words)
        assert not (tmp_path / "out").exists()


def test_missing_weights_are_listed_with_the_command_that_gets_them(
    photo, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("more4d_backend.weights.downloads.find_downloaded", lambda *_: None)
    base = ["generate", str(photo), "--model", "released", "--prompt", "x", "--depth", "d.png"]
    assert main([*base, "-o", str(tmp_path / "out")]) == 2
    assert "download strag motion-vae wan-vae" in caplog.text
