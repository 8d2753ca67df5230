"""The command `reconstruct`, with small networks that know nothing."""

import pytest

from more4d_backend.files.videos import save_video
from more4d_backend.geo4d.alignment import AlignmentSettings
from more4d_backend.geo4d.decoding import DecodingSettings
from more4d_backend.geo4d.modalities import ModalitySettings
from more4d_backend.geo4d.pipeline import ReconstructionSettings
from more4d_backend.geo4d.sampling import SamplingSettings
from more4d_backend.geo4d.video import VideoFile
from more4d_backend.scene_files import load_scene


def test_a_video_file_becomes_a_scene_file_that_renders(colors, toy_weights, tmp_path, capsys):
    pytest.importorskip("tyro", reason="the command line needs the extra [headless]")
    from more4d_backend.cli import main

    save_video(tmp_path / "a.mp4", colors(6), 12)
    scene = tmp_path / "scene.safetensors"
    command = ["reconstruct", str(tmp_path / "a.mp4"), "-o", str(scene), "--device", "cpu"]
    assert main([*command, "--weights", str(toy_weights), "--num-steps", "1"]) == 0
    assert load_scene(scene).num_frames == 6
    assert "6 frames from 3 windows." in capsys.readouterr().err
    assert main([*command, "--weights", str(toy_weights), "--max-frames", "1"]) == 0
    said = capsys.readouterr().err
    assert "1 frame from 1 window." in said
    assert "Denoising in 5 steps: what these weights are made for." in said
    assert main([*command, "--weights", str(toy_weights), "--num-steps", "0"]) == 2
    render = ["render", str(scene), "-o", str(tmp_path / "out")]
    assert main([*render, "--device", "cpu", "--camera", "truck-left"]) == 0
    assert VideoFile(tmp_path / "out" / "truck-left.mp4").fps != 0


@pytest.mark.parametrize(("arguments", "message"), [
    (["missing.mp4"], "There is no file missing.mp4"),
    (["a.mp4", "-o", "scene.mp4"], "does not end in .safetensors"),
    (["a.mp4", "--frame-step", "0"], "frame_step is 0"),
    (["."], ". is a folder; expected a file"),
    (["a.mp4", "-o", "file/scene.safetensors"], "file is a file; expected a folder"),
    (["a.mp4", "--seed", "-1"], "seed is -1"),
])  # fmt: skip
def test_the_command_refuses_in_words(arguments, message, toy_weights, tmp_path, monkeypatch,
                                      capsys):  # fmt: skip
    pytest.importorskip("tyro", reason="the command line needs the extra [headless]")
    from more4d_backend.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["reconstruct", *arguments, "--weights", str(toy_weights)]) == 2
    assert message in capsys.readouterr().err


def test_every_option_of_the_command_reaches_the_settings():
    pytest.importorskip("tyro", reason="the command line needs the extra [headless]")
    from more4d_backend.cli.reconstruct_command import WindowOptions

    assert WindowOptions().settings() == ReconstructionSettings()
    same = {
        "stride": 3, "fit": "pad", "network_hw": (16, 24), "resolution": "network", "seed": 9,
        "condition_fps": 7, "windows_per_batch": 2,
    }  # fmt: skip
    sampling = {"num_steps": 4, "rescale": "released"}
    reductions = {"ray_reduction": 2, "disparity_reduction": 1}
    options = WindowOptions(
        **same, **sampling, **reductions, sky_tolerance=0.35, modalities="points",
        alignment_weights="paper",
    )  # fmt: skip
    assert options.settings() == ReconstructionSettings(
        **same,
        sampling=SamplingSettings(**sampling),
        decoding=DecodingSettings(**reductions, modalities=ModalitySettings(sky_tolerance=0.35)),
        alignment=AlignmentSettings.points_only().with_paper_weights(),
    )
