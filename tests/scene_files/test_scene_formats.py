import subprocess
import sys

import pytest
import torch

from more4d_backend.files import FileFormatError, OutputError
from more4d_backend.scene_files.formats import (
    SCENE_FORMATS,
    check_scene_format,
    export_scene,
    import_scene,
)


@pytest.mark.parametrize("name", SCENE_FORMATS)
def test_every_format_writes_under_its_own_endings(tmp_path, tracks_scene, name):
    if name == "usd":
        pytest.importorskip("pxr", reason="usd-core is not installed")
    for suffix in SCENE_FORMATS[name].suffixes:
        path = tmp_path / f"{name}{suffix}"
        export_scene(path, tracks_scene(frames=1), name)
        assert path.is_dir() == (suffix == "")
        assert SCENE_FORMATS[name].description


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".ply"])
def test_the_ending_chooses_the_format_both_ways(tmp_path, tracks_scene, suffix):
    scene = tracks_scene(frames=1)
    export_scene(tmp_path / f"scene{suffix}", scene)
    back = import_scene(tmp_path / f"scene{suffix}")
    shown = scene.points.visibility[0] if suffix == ".ply" else slice(None)
    assert torch.allclose(back.points.positions[0], scene.points.positions[0][shown], atol=1e-5)


def test_an_unknown_format_names_the_nearest_one():
    with pytest.raises(ValueError, match=r"'gausians' is unknown\. Did you mean gaussians\?"):
        check_scene_format("gausians")
    with pytest.raises(ValueError, match="Known: more4d, tapvid3d, ply, gaussians, usd"):
        check_scene_format("xxxxxxx")


def test_endings_that_fit_no_format_are_refused(tmp_path, tracks_scene):
    scene = tracks_scene()
    with pytest.raises(OutputError, match=r"ending of a\.obj fits no scene format"):
        export_scene(tmp_path / "a.obj", scene)
    with pytest.raises(
        OutputError, match=r"ending of folder fits no scene format. Name the format"
    ):
        export_scene(tmp_path / "folder", scene)
    with pytest.raises(OutputError, match=r"the format usd needs \.usd or \.usdc or \.usda"):
        export_scene(tmp_path / "a.ply", scene, "usd")
    with pytest.raises(OutputError, match=r"has 5 frames, and a.ply holds one. Name a folder"):
        export_scene(tmp_path / "a.ply", scene)
    with pytest.raises(FileFormatError, match=r"scenes are read from \.safetensors, \.npz, \.ply"):
        import_scene(tmp_path / "a.usd")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SCENE_FORMATS)
def test_a_place_that_cannot_be_written_is_refused_by_every_format(tmp_path, tracks_scene, name):
    if name == "usd":
        pytest.importorskip("pxr", reason="usd-core is not installed")
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / f"scene{SCENE_FORMATS[name].suffixes[0]}"
    with pytest.raises(OutputError, match="cannot be made"):
        export_scene(path, tracks_scene(frames=1), name)


def test_file_formats_load_no_decoder_before_it_is_needed():
    code = (
        "import sys, more4d_backend.scene_files.formats, more4d_backend.files.videos, "
        "more4d_backend.files.depth_maps; "
        "sys.exit(','.join({'av', 'pxr', 'PIL', 'cv2', 'kornia'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.strip() == ""


@pytest.mark.parametrize("name", ["ply", "gaussians"])
def test_frames_are_told_one_by_one_and_an_interrupted_export_leaves_nothing(
    tmp_path, tracks_scene, name
):
    scene, told = tracks_scene(), []
    export_scene(tmp_path / "all", scene, name, progress=lambda *done: told.append(done))
    assert told == [(i + 1, scene.num_frames) for i in range(scene.num_frames)]

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_scene(tmp_path / "none", scene, name, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["all"]
