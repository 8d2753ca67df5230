import os

import numpy as np
import pytest
import torch
from PIL import Image

from more4d_backend import PointMaps
from more4d_backend.camera_files import load_cameras, save_cameras
from more4d_backend.camera_paths import path_descriptions, scene_path
from more4d_backend.camera_paths.keyframes import keyframes_from_cameras, save_keyframes
from more4d_backend.cli import main
from more4d_backend.files.videos import load_mask_video, load_video
from more4d_backend.scene_files import load_scene
from more4d_backend.scene_files.formats import SCENE_FORMATS

pytestmark = pytest.mark.usefixtures("as_users_run_it")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A photo, its depth and intrinsics, and the moving scene, as `synthetic` writes them."""
    folder = tmp_path_factory.mktemp("world")
    size = ["--size-hw", "32", "48", "--num-frames", "3"]
    assert main(["synthetic", "--seed", "3", *size, "-o", str(folder)]) == 0
    return folder


@pytest.fixture
def photo(world):
    """Arguments that name the photo with its depth and its camera."""
    depth, camera = str(world / "depth.png"), str(world / "intrinsics.npy")
    return [str(world / "photo.png"), "--depth", depth, "--intrinsics", camera]


def _keyframe_file(path, world):
    path.parent.mkdir(exist_ok=True)
    cameras = scene_path("arc-left", load_scene(world / "scene.safetensors"), 5)
    save_keyframes(path, keyframes_from_cameras(cameras, tolerance=1e-3))
    return str(path)


def test_one_command_renders_a_photo_along_two_paths(photo, world, tmp_path):
    out = tmp_path / "out"
    cameras = ["--camera", "orbit-left", "--camera", "dolly-zoom", "--num-frames", "3"]
    assert main(["render", *photo, *cameras, "--lossless", "-o", str(out)]) == 0
    names = {"contact-sheet.png"}
    names |= {f"{p}{end}" for p in ("orbit-left", "dolly-zoom") for end in (".mkv", "-holes.mkv")}
    assert {path.name for path in out.iterdir()} == names
    picture = torch.from_numpy(np.array(Image.open(world / "photo.png"))) / 255
    for name in ("orbit-left", "dolly-zoom"):
        frames, _ = load_video(out / f"{name}.mkv")
        holes, _ = load_mask_video(out / f"{name}-holes.mkv")
        seen = holes[0] == 0
        assert seen.float().mean() > 0.9
        assert (frames[0] - picture)[seen].abs().max() < 1.5 / 255
        assert not torch.equal(frames[0], frames[-1])


def test_a_scene_of_any_format_that_can_be_read_is_rendered(world, tmp_path):
    scene = str(world / "scene.safetensors")
    assert main(["convert", scene, str(tmp_path / "s.npz")]) == 0
    for source in (scene, str(tmp_path / "s.npz")):
        assert main(["render", source, "--mode", "nearest", "-o", str(tmp_path / "out")]) == 0


def test_depth_and_soft_masks_are_written_when_asked_for(world, tmp_path):
    options = ["--save-depth", "--grow-px", "1", "--feather-px", "2", "--min-area-px", "3"]
    scene = str(world / "scene.safetensors")
    assert main(["render", scene, *options, "-o", str(tmp_path)]) == 0
    assert len(list((tmp_path / "orbit-left-depth").glob("*.exr"))) == 3


def test_lift_convert_and_info_agree(photo, tmp_path, capsys):
    scene, points = tmp_path / "s.safetensors", tmp_path / "s.ply"
    assert main(["lift", *photo, "-o", str(scene)]) == 0
    assert main(["convert", str(scene), str(points)]) == 0
    assert main(["info", str(scene)]) == 0
    assert "1 at" in capsys.readouterr().out
    lifted = load_scene(scene).points
    assert isinstance(lifted, PointMaps)
    valid = int(lifted.valid.sum())
    assert main(["info", str(points)]) == 0
    assert f"{valid}, 100.0 % usable" in capsys.readouterr().out


def test_every_path_and_format_is_listed_and_every_scene_format_is_in_the_help(capsys):
    assert main(["paths", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in path_descriptions())
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in SCENE_FORMATS)
    assert "python -m more4d_backend convert" in shown


def test_names_keyframes_and_camera_files_are_previewed_with_and_without_a_scene(world, tmp_path):
    save_cameras(tmp_path / "c.npz", scene_path("spiral", load_scene(world / "scene.safetensors")))
    sources = ["orbit-left", _keyframe_file(tmp_path / "k.json", world), str(tmp_path / "c.npz")]
    for index, source in enumerate(sources):
        for scene in ([], ["--scene", str(world / "scene.safetensors")]):
            picture = tmp_path / f"{index}{len(scene)}.png"
            assert main(["paths", "preview", source, *scene, "-o", str(picture)]) == 0
            assert Image.open(picture).size[0] > 100


def test_camera_files_are_converted(world, tmp_path):
    path = scene_path("truck-left", load_scene(world / "scene.safetensors"))
    save_cameras(tmp_path / "a.npz", path)
    assert main(["paths", "convert", str(tmp_path / "a.npz"), str(tmp_path / "a.json")]) == 0
    loaded = load_cameras(tmp_path / "a.json")
    torch.testing.assert_close(loaded.world_to_camera, path.world_to_camera, rtol=0, atol=1e-5)


def test_two_paths_of_one_name_are_refused_because_one_would_overwrite_the_other(
    world, tmp_path, caplog
):
    first = _keyframe_file(tmp_path / "a" / "path.json", world)
    second = _keyframe_file(tmp_path / "b" / "path.json", world)
    scene, out = str(world / "scene.safetensors"), tmp_path / "out"
    assert main(["render", scene, "--camera", first, "--camera", second, "-o", str(out)]) == 2
    assert "would both be written as path" in caplog.text
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--camera", "orbt-left"], "Did you mean orbit-left"),
        (["--mode", "spla"], "did you mean 'splat'?"),
        (["--ease", "inout"], "Did you mean in-out?"),
        (["--num-frames", "0"], "num_frames is 0"),
        (["--fps", "0"], "fps is 0"),
        (["--grow-px", "-1"], "grow_px is -1"),
        (["--max-footprint-px", "0"], "max_footprint_px is 0"),
        (["--device", "cdua"], "device is 'cdua'"),
        (["--device", "cuda:99"], "device is cuda:99"),
        (["--fov-deg", "50"], "Give --intrinsics or --fov-deg, not both"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(photo, tmp_path, caplog, change, message):
    out = tmp_path / "out"
    assert main(["render", *photo, "--num-frames", "2", *change, "-o", str(out)]) == 2
    assert message.lower() in caplog.text.lower()
    assert not out.exists()


def _millimetres(shape, value):
    return np.full(shape, value, np.uint16)


@pytest.mark.parametrize(
    ("depth", "intrinsics", "message"),
    [
        (_millimetres((10, 48), 900), None, "The depth map is 10x48 and the image is 32x48"),
        (_millimetres((32, 48), 0), None, "1536 are zero"),
        (np.full((32, 48), np.nan, np.float32), None, "1536 are NaN or infinite"),
        (None, np.eye(3, 4), "expected a 3x3 matrix"),
        (None, np.zeros((3, 3)), "is singular"),
        (None, np.diag([0.9, 1.2, 1.0]), "looks normalised by the image size"),
        (None, np.eye(3) * (40 + 1j), "cannot be read as a 3x3 matrix"),
    ],
)
def test_bad_depth_and_intrinsics_are_refused_and_nothing_is_written(
    world, tmp_path, caplog, depth, intrinsics, message
):
    files = {"depth": world / "depth.png", "intrinsics": world / "intrinsics.npy"}
    for name, array in (("depth", depth), ("intrinsics", intrinsics)):
        if array is not None:
            files[name] = tmp_path / f"{name}.npy"
            np.save(files[name], array)
    options = [argument for name, path in files.items() for argument in (f"--{name}", str(path))]
    out = tmp_path / "out"
    assert main(["render", str(world / "photo.png"), *options, "-o", str(out)]) == 2
    assert message in caplog.text
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--num-frames", "0"], "num_frames is 0; expected at least 1."),
        (["--seed", "99999999999999999999"], "expected a number of at most 64 bits"),
    ],
)
def test_a_synthetic_world_without_frames_or_seed_is_refused(tmp_path, caplog, change, message):
    assert main(["synthetic", *change, "-o", str(tmp_path / "out")]) == 2
    assert message in caplog.text
    assert not (tmp_path / "out").exists()


def test_options_of_depth_that_a_scene_does_not_need_are_warned_of(world, tmp_path, caplog):
    scene, out = str(world / "scene.safetensors"), ["--num-frames", "3", "-o", str(tmp_path)]
    assert main(["render", scene, "--max-depth", "3", "--fov-deg", "50", *out]) == 0
    warned = [line.split()[0] for line in caplog.messages if "no effect" in line]
    assert warned == ["--max-depth", "--fov-deg"]


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 80 bytes."),
    ],
)
def test_memory_that_runs_out_is_told_in_a_sentence(world, tmp_path, caplog, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("more4d_backend.rendering.render", fail)
    assert main(["render", str(world / "scene.safetensors"), "-o", str(tmp_path)]) == 2
    assert "Memory ran out. Use fewer frames or a smaller size" in caplog.text


def test_other_errors_of_torch_are_not_taken_for_full_memory(world, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("more4d_backend.rendering.render", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["render", str(world / "scene.safetensors"), "-o", str(tmp_path)])


def test_what_is_no_picture_is_named_by_its_first_bytes(world, tmp_path, caplog):
    (tmp_path / "notes.txt").write_text("hello, world")
    assert main(["lift", str(tmp_path / "notes.txt"), "--depth", str(world / "depth.png")]) == 2
    assert "notes.txt cannot be read as a PNG" in caplog.text
    assert "it begins with the bytes 68 65 6c 6c 6f 2c 20 77." in caplog.text


def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    photo, tmp_path, caplog, monkeypatch
):
    (tmp_path / "file").write_text("kept")
    assert main(["render", *photo, "-o", str(tmp_path / "file")]) == 2
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert main(["render", *photo, "-o", str(tmp_path / "new")]) == 2
    assert main(["lift", *photo, "-o", str(tmp_path / "scene.mp4")]) == 2
    for message in ("file is a file", "is not writable", "does not end in .safetensors"):
        assert message in caplog.text
    assert "Depth is usable" not in caplog.text
    assert (tmp_path / "file").read_text() == "kept"


def test_a_missing_file_is_named_in_a_sentence(world, tmp_path, caplog):
    missing = str(tmp_path / "no.png")
    assert main(["render", missing, "--depth", str(world / "depth.png")]) == 2
    assert f"There is no file {missing}." in caplog.text
    assert main(["info", str(tmp_path / "no.safetensors")]) == 2
    assert f"There is no file {tmp_path / 'no.safetensors'}." in caplog.text
