import pytest
import torch

from more4d_backend import Cameras, PointMaps, Scene4D
from more4d_backend.camera_files import save_cameras
from more4d_backend.camera_paths import CameraPathError, PathSettings, scene_path
from more4d_backend.camera_paths.keyframes import keyframes_from_cameras, save_keyframes
from more4d_backend.camera_paths.sources import (
    camera_source_files,
    check_source,
    path_from,
    source_label,
)
from more4d_backend.files import FileFormatError
from more4d_backend.geometry import intrinsics_from_focal


@pytest.fixture
def scene():
    camera = Cameras(
        world_to_camera=torch.eye(4)[None],
        intrinsics=intrinsics_from_focal(torch.tensor([50.0]), 48, 64),
        height=48,
        width=64,
    )
    points = PointMaps(
        positions=torch.tensor([0.0, 0.0, 4.0]).expand(1, 48, 64, 3),
        colors=torch.zeros(1, 48, 64, 3),
        valid=torch.ones(1, 48, 64, dtype=torch.bool),
    )
    return Scene4D(points=points, cameras=camera, fps=8.0)


def test_a_name_is_a_preset_scaled_to_the_scene(scene):
    expected = scene_path("orbit-left", scene, 9, settings=PathSettings(ease="in-out"))
    assert torch.equal(path_from("orbit-left", scene, 9).world_to_camera, expected.world_to_camera)


@pytest.mark.parametrize("name", ["path.npz", "transforms.json", "path.tum"])
def test_a_file_of_another_size_and_place_starts_at_the_input_view(scene, tmp_path, name):
    moved = scene_path("orbit-left", scene, 7).resized(96, 128)
    save_cameras(tmp_path / name, moved)
    path = path_from(str(tmp_path / name), scene, 13)
    assert path.num_frames == 13
    assert (path.height, path.width) == (48, 64)
    assert torch.equal(path.world_to_camera[0], scene.cameras.world_to_camera[0])
    expected = scene_path("orbit-left", scene, 7)
    torch.testing.assert_close(
        path.world_to_camera[-1], expected.world_to_camera[-1], rtol=0, atol=1e-4
    )


def test_a_keyframe_file_is_told_from_a_camera_file(scene, tmp_path):
    expected = scene_path("arc-left", scene, 9)
    save_keyframes(tmp_path / "arc.json", keyframes_from_cameras(expected, tolerance=1e-4))
    path = path_from(str(tmp_path / "arc.json"), scene, 9)
    torch.testing.assert_close(path.world_to_camera, expected.world_to_camera, rtol=0, atol=2e-2)


def test_a_file_keeps_its_own_number_of_frames_for_a_still_scene(scene, tmp_path):
    save_cameras(tmp_path / "path.npz", scene_path("spiral", scene, 7))
    assert path_from(str(tmp_path / "path.npz"), scene).num_frames == 7


def test_ease_changes_the_timing_of_a_file(scene, tmp_path):
    save_cameras(tmp_path / "path.npz", scene_path("truck-left", scene, 9))
    linear, eased = (
        path_from(str(tmp_path / "path.npz"), scene, settings=PathSettings(ease=ease))
        for ease in ("linear", "in")
    )
    assert torch.equal(linear.world_to_camera[-1], eased.world_to_camera[-1])
    assert linear.world_to_camera[4, 0, 3].abs() > eased.world_to_camera[4, 0, 3].abs()


def test_a_file_keeps_its_own_timing(scene, tmp_path):
    cameras = scene_path("orbit-left", scene, 9)
    save_cameras(tmp_path / "path.npz", cameras)
    path = path_from(str(tmp_path / "path.npz"), scene)
    torch.testing.assert_close(path.world_to_camera, cameras.world_to_camera)


@pytest.mark.usefixtures("as_users_run_it")
def test_only_settings_that_were_given_and_have_no_effect_are_warned_of(scene, tmp_path, caplog):
    keyframes = keyframes_from_cameras(scene_path("arc-left", scene, 9), tolerance=1e-2)
    save_keyframes(tmp_path / "arc.json", keyframes)
    save_cameras(tmp_path / "path.npz", scene_path("spiral", scene, 7))
    sources = ["static", str(tmp_path / "arc.json"), str(tmp_path / "path.npz")]
    for source in sources:
        path_from(source, scene, 5)
    assert "no effect" not in caplog.text
    asked = PathSettings(amplitude=2.0, angle_deg=30.0, ease="in", loop=True)
    expected = [{"amplitude", "angle_deg", "ease", "loop"}] * 2 + [{"angle_deg", "loop"}]
    for source, names in zip(sources, expected, strict=True):
        caplog.clear()
        path_from(source, scene, 5, settings=asked)
        assert {line.split()[0] for line in caplog.messages if "no effect" in line} == names


def test_every_file_that_decides_a_path_is_known(scene, tmp_path):
    save_cameras(tmp_path / "model", scene_path("spiral", scene, 3))
    save_cameras(tmp_path / "path.npz", scene_path("spiral", scene, 3))
    both = [tmp_path / "model" / "cameras.txt", tmp_path / "model" / "images.txt"]
    assert camera_source_files(str(tmp_path / "model")) == both
    assert camera_source_files(str(both[1])) == both
    assert camera_source_files(str(tmp_path / "path.npz")) == [tmp_path / "path.npz"]
    assert camera_source_files("orbit-left") == []


@pytest.mark.parametrize("name", ["", "folder"])
def test_nothing_and_a_folder_without_cameras_are_refused_by_name(scene, tmp_path, name):
    (tmp_path / "folder").mkdir()
    source = name and str(tmp_path / name)
    with pytest.raises(ValueError, match=f"camera path {source!r}|folder is not a camera file"):
        path_from(source, scene, 5)


def test_what_is_neither_a_name_nor_a_file_is_refused_before_any_work(tmp_path):
    with pytest.raises(CameraPathError, match="orbit-left"):
        check_source("orbit-lefft")
    with pytest.raises(CameraPathError, match="no camera file"):
        check_source(str(tmp_path / "missing.json"))
    check_source("orbit-left")


def test_a_file_that_holds_no_cameras_is_refused(scene, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(FileFormatError, match=r"notes\.txt"):
        path_from(str(tmp_path / "notes.txt"), scene, 5)


def test_files_are_labelled_by_their_stem(tmp_path):
    (tmp_path / "my path.json").write_text("{}")
    assert source_label(str(tmp_path / "my path.json")) == "my path"
    assert source_label("orbit-left") == "orbit-left"


def test_a_name_is_meant_even_where_a_folder_has_that_name(scene, tmp_path, monkeypatch):
    (tmp_path / "left").mkdir()
    monkeypatch.chdir(tmp_path)
    expected = scene_path("left", scene, 5, settings=PathSettings(ease="in-out"))
    assert torch.equal(path_from("left", scene, 5).world_to_camera, expected.world_to_camera)
    assert source_label("left") == "left"


def test_a_path_in_the_scenes_world_is_not_moved(scene, tmp_path):
    away = scene_path("orbit-left", scene, 7).frames([3, 4, 5])
    save_cameras(tmp_path / "away.npz", away)
    path = path_from(str(tmp_path / "away.npz"), scene, 3, in_scene_world=True)
    torch.testing.assert_close(path.world_to_camera, away.world_to_camera)
    moved = path_from(str(tmp_path / "away.npz"), scene, 3)
    assert torch.equal(moved.world_to_camera[0], scene.cameras.world_to_camera[0])
