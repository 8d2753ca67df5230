"""The numbers of Geo4D on held-out videos: what they are read from, and what is said of them."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.scene_files import load_scene, save_scene
from more4d_backend.weights.geo4d import save_geo4d
from training import evaluate_geo4d
from training.evaluate_geo4d import (
    ABLATIONS,
    Geo4DEvaluation,
    Numbers,
    ablation_lines,
    draw_videos,
    evaluate,
    truth_folder,
)
from training.procedural.clips import ClipSettings
from training.run.settings import SettingsError

pytest.importorskip("evo", reason="pose errors need evo: pip install evo")

GOOD = Numbers(
    rotation_of_still=0.2, ate_of_line=0.4, within=0.9, within_relative=0.95,
    constant_within=0.4, abs_rel=0.1, errors_by_sigma=(0.01, 0.02, 0.03, 0.05, 0.2),
)  # fmt: skip


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """One video, and networks with random values."""
    folder = tmp_path_factory.mktemp("geo4d")
    torch.manual_seed(0)
    save_geo4d(Geo4DNetworks(GEO4D_SIZES["toy"]), folder / "toy.safetensors")
    return Geo4DEvaluation(
        output=folder / "numbers", weights=folder / "toy.safetensors", num_videos=1,
        num_frames=6, clips=ClipSettings(size_hw=(16, 32), samples=1), num_steps=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(evaluation):
    return evaluate(evaluation)


def no_networks(_networks, _settings):
    def make(true, path) -> None:
        pytest.fail("a scene was made again")

    return make


def test_the_same_weights_use_their_scenes_again(evaluation, found, monkeypatch, capsys):
    monkeypatch.setattr(evaluate_geo4d, "scene_maker", no_networks)
    assert evaluate(evaluation) == found
    assert set(found) == set(ABLATIONS)
    assert found["disparity"].ate_of_line is None
    assert found["disparity"].within is not None
    assert "NOT reached" in capsys.readouterr().out
    stored = json.loads((evaluation.output / "numbers.json").read_text())
    assert set(stored) == {"weights", "num_steps", "mirrored_windows", *ABLATIONS}
    assert (stored["num_steps"], stored["mirrored_windows"]) == (1, False)
    assert stored["all"]["abs_rel"] == found["all"].abs_rel


def test_where_no_steps_are_named_the_weights_decide(evaluation, found, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate_geo4d, "scene_maker", no_networks)
    networks = Geo4DNetworks(GEO4D_SIZES["toy"])
    unsaid = replace(evaluation, num_steps=None)
    assert [evaluate_geo4d._num_steps(asked, networks) for asked in (evaluation, unsaid)] == [1, 5]
    # Scenes of another number of steps are not taken for these.
    with pytest.raises(pytest.fail.Exception, match="a scene was made again"):
        evaluate(unsaid)
    # Nor are those for which each window was seen mirrored, too.
    with pytest.raises(pytest.fail.Exception, match="a scene was made again"):
        evaluate(replace(evaluation, mirrored_windows=True))


def test_videos_that_a_trainer_may_have_seen_are_refused(evaluation):
    with pytest.raises(SettingsError, match="first_seed is 5; expected 900000000 or more"):
        replace(evaluation, first_seed=5)


def test_what_an_earlier_run_asked_for_is_not_measured(evaluation, found, monkeypatch):
    frames = []

    def still_scenes(_networks, _settings):
        def make(true, path) -> None:
            scene = load_scene(path_of_truth / f"{true.name}.safetensors")
            frames.append(scene.num_frames)
            save_scene(path, scene)

        return make

    monkeypatch.setattr(evaluate_geo4d, "scene_maker", still_scenes)
    # Videos of other frames are drawn anew, and compared with scenes of their own.
    shorter = replace(evaluation, num_frames=5)
    path_of_truth = truth_folder(shorter)
    assert evaluate(shorter)["all"].abs_rel < 0.01
    assert frames == [5] * len(ABLATIONS)
    # Of two videos that are there one was asked for.
    draw_videos(replace(evaluation, num_videos=2), truth_folder(evaluation))
    monkeypatch.setattr(evaluate_geo4d, "scene_maker", no_networks)
    assert evaluate(evaluation) == found
    for path in truth_folder(evaluation).glob("901000001.*"):
        path.unlink()


def test_true_scenes_reach_everything(evaluation, monkeypatch, tmp_path):
    def true_scenes(_networks, _settings):
        def make(true, path) -> None:
            scene = load_scene(truth_folder(evaluation) / f"{true.name}.safetensors")
            sigma = 0.01 + torch.rand(scene.points.valid.shape)
            noise = 1 + 0.1 * sigma * torch.randn_like(sigma)
            points = replace(
                scene.points,
                positions=scene.points.positions * noise[..., None],
                confidence=1 / sigma,
            )
            save_scene(path, replace(scene, points=points))

        return make

    monkeypatch.setattr(evaluate_geo4d, "scene_maker", true_scenes)
    draw_videos(evaluation, truth_folder(evaluation))
    torch.manual_seed(3)
    save_geo4d(Geo4DNetworks(GEO4D_SIZES["toy"]), tmp_path / "other.safetensors")
    found = evaluate(replace(evaluation, weights=tmp_path / "other.safetensors"))["all"]
    assert found.rotation_of_still < 0.01
    assert found.ate_of_line < 0.01
    assert found.within > 0.95
    assert found.within_relative > 0.95
    assert found.constant_within < 0.8
    aims = [line for line in found.lines() if "aim" in line and "constant" not in line]
    assert len(aims) == 4
    assert all("; reached" in line for line in aims)


@pytest.mark.parametrize(("fails_in", "status"), [(None, 0), ("all", 1), ("disparity", 1)])
def test_the_exit_code_is_1_if_a_video_failed_and_all_is_told_first(
    evaluation, monkeypatch, tmp_path, capsys, fails_in, status
):
    output = tmp_path / "numbers"
    truth = truth_folder(replace(evaluation, output=output))

    def scenes(_networks, _settings):
        def make(true, path) -> None:
            if path.parent.name == fails_in and true.name == "901000001":
                raise ValueError("It cannot be reconstructed.")
            save_scene(path, load_scene(truth / f"{true.name}.safetensors"))

        return make

    monkeypatch.setattr(evaluate_geo4d, "scene_maker", scenes)
    arguments = f"--output {output} --weights {evaluation.weights} --num-videos 2 --num-frames 6 "
    arguments += "--clips.size-hw 16 32 --clips.samples 1 --num-steps 1"
    monkeypatch.setattr(sys, "argv", ["evaluate_geo4d", *arguments.split()])
    assert evaluate_geo4d._main() == status
    told = capsys.readouterr().out
    assert ("FAILED 901000001: It cannot be reconstructed." in told) == bool(status)
    assert "rotation RPE / still camera: all" in told.splitlines()[-1]
    stored = json.loads((output / "numbers.json").read_text())
    failed = {name: stored[name]["failed"] for name in ABLATIONS if stored[name]["failed"]}
    assert failed == ({} if fails_in is None else {fails_in: ["901000001"]})


def test_videos_turn_as_much_as_is_said_and_are_held_out(evaluation):
    draw_videos(evaluation, truth_folder(evaluation))
    names = sorted(path.name for path in truth_folder(evaluation).iterdir())
    assert names == ["901000000.mkv", "901000000.safetensors"]
    cameras = load_scene(truth_folder(evaluation) / "901000000.safetensors").cameras
    rotation = cameras.world_to_camera[:, :3, :3].double()
    cosine = ((rotation[1:] @ rotation[:-1].mT).diagonal(dim1=1, dim2=2).sum(-1) - 1) / 2
    angle_deg = torch.rad2deg(torch.acos(cosine))
    assert ((angle_deg > 0.95) & (angle_deg < 3.05)).all()


def test_every_aim_is_judged_by_itself():
    assert sum("; reached" in line for line in GOOD.lines()) == 5
    for change in (
        {"rotation_of_still": 0.36}, {"ate_of_line": 0.51}, {"within": 0.84},
        {"constant_within": 0.61}, {"errors_by_sigma": (0.01, 0.03, 0.02, 0.05, 0.2)},
    ):  # fmt: skip
        lines = replace(GOOD, **change).lines()
        assert sum("NOT reached" in line for line in lines) == 1, change
    failed = replace(GOOD, within=None, errors_by_sigma=None).lines()
    assert sum("not measured" in line for line in failed) == 2


def test_the_ablation_says_what_came_out():
    worse = replace(GOOD, abs_rel=0.2, ate_of_line=0.6, rotation_of_still=0.3)
    lines = ablation_lines({"all": GOOD, "points": worse, "disparity": worse})
    assert all(line.endswith("best: yes") for line in lines)
    lines = ablation_lines({"all": worse, "points": GOOD, "disparity": worse})
    assert all(line.endswith("best: NO") for line in lines)
    failed = replace(worse, abs_rel=None)
    lines = ablation_lines({"all": GOOD, "points": failed, "disparity": worse})
    assert "points NaN" in lines[0]
    assert lines[0].endswith("best: not measured")
    assert "disparity" not in lines[1]  # its cameras stand still
    lines = ablation_lines({"all": failed, "points": GOOD, "disparity": worse})
    assert lines[0].endswith("best: not measured")
