import pytest
import torch
from safetensors.torch import save_file

from more4d_backend.cli import main

pytestmark = pytest.mark.usefixtures("as_users_run_it")


@pytest.fixture
def adapter(tmp_path):
    """A part of a STraG file: known, and not whole."""
    tensors = {
        "blocks.0.self_attn.q.weight": torch.zeros(4, 4),
        "patch_embedding.weight": torch.zeros(4, 64, 1, 2, 2),
    }
    save_file(tensors, tmp_path / "part.safetensors")
    return str(tmp_path / "part.safetensors")


def test_every_file_is_checked_though_one_is_damaged(adapter, tmp_path, caplog):
    (tmp_path / "cut.safetensors").write_bytes(b"\x80")
    assert main(["weights", "check", str(tmp_path / "cut.safetensors"), adapter]) == 1
    assert "cut.safetensors is not a whole safetensors file" in caplog.text
    assert "part.safetensors: the 4D-STraG transformer cannot be without" in caplog.text


def test_a_scene_is_told_from_weights(tmp_path, caplog):
    assert main(["synthetic", "--num-frames", "1", "--size-hw", "8", "8", "-o", str(tmp_path)]) == 0
    assert main(["weights", "check", str(tmp_path / "scene.safetensors")]) == 1
    assert "a scene, not a model" in caplog.text


def test_what_cannot_be_converted_is_told_in_one_sentence(tmp_path, caplog):
    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    command = ["weights", "convert", str(tmp_path / "a.safetensors")]
    assert main([*command, str(tmp_path / "b.safetensors")]) == 2
    assert "Needed here: weights of this project, whole and of a known kind." in caplog.text
    assert not (tmp_path / "b.safetensors").exists()


def test_the_table_of_downloads_names_every_entry_and_group(capsys):
    assert main(["download"]) == 0
    shown = capsys.readouterr().out
    assert "vism-lora" in shown
    assert "image-to-4d" in shown
    assert main(["download", "nosuch"]) == 2
