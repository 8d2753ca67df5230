import pytest
from PIL import Image

from more4d_backend.cli import main


@pytest.fixture
def scene(tmp_path):
    size = ["--size-hw", "32", "48", "--num-frames", "5"]
    assert main(["synthetic", "--seed", "3", *size, "-o", str(tmp_path)]) == 0
    return str(tmp_path / "scene.safetensors")


def test_what_the_motion_vae_keeps_is_told_and_drawn(scene, weight_files, tmp_path, caplog):
    picture = tmp_path / "motion.png"
    named = ["--motion-vae", str(weight_files["motion-vae"]), "--profile", "own"]
    assert main(["reconstruct-motion", scene, *named, "--device", "cpu", "-o", str(picture)]) == 0
    assert "relative error" in caplog.text.lower()
    assert Image.open(picture).width > 48


def test_where_no_motion_vae_is_at_hand_the_way_to_get_one_is_named(
    scene, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("more4d_backend.weights.downloads.find_downloaded", lambda *_: None)
    monkeypatch.setattr("more4d_backend.tiny.WEIGHTS_FOLDER", tmp_path)
    assert main(["reconstruct-motion", scene, "-o", str(tmp_path / "motion.png")]) == 2
    assert "the embedded one is looked into" in caplog.text
    assert "more4d_backend download" in caplog.text
