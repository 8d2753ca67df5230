"""Files beside files: scenes, videos and depth, by manifest and by folder."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from more4d_backend.evaluation import (
    DepthPair,
    EvaluationError,
    ScenePair,
    VideoPair,
    evaluate,
    pairs_of_folders,
    read_manifest,
)
from more4d_backend.files import FileFormatError
from more4d_backend.files.videos import save_mask_video, save_video
from more4d_backend.scene_files import save_scene


@pytest.fixture
def scenes(tmp_path, moving_square):
    """A true scene, one predicted at nine tenths of the speed, and a still one."""
    for name, speed in (("truth", 0.1), ("good", 0.09), ("still", 0.0)):
        save_scene(tmp_path / f"{name}.safetensors", moving_square(speed))
    labels = np.zeros((8, 8), np.uint8)
    labels[2:6, 2:6] = 1
    Image.fromarray(labels).save(tmp_path / "objects.png")
    return tmp_path


def test_scenes_are_compared_and_the_best_sample_is_told(scenes):
    manifest = {
        "scenes": [
            {
                "name": "square",
                "predicted": ["still.safetensors", "good.safetensors"],
                "truth": "truth.safetensors",
                "objects": "objects.png",
                "words": ["moves right"],
            }
        ]
    }
    (scenes / "manifest.json").write_text(json.dumps(manifest))
    (report,) = evaluate(read_manifest(scenes / "manifest.json"))
    means = report.means()
    assert means["relative error"] == pytest.approx((1 + 0.1) / 2, abs=1e-3)  # float16 motion
    assert means["best sample"] == pytest.approx(0.1, abs=1e-3)
    assert means["of moving points"] == pytest.approx(0.55, abs=1e-3)
    assert means["leak into still points"] == 0
    assert means["stillness"] == 0
    assert means["direction right"] == 0.5
    assert means["end-point error"] == pytest.approx(0.25 * 0.25 * (1 + 0.1) / 2, abs=1e-3)
    assert 0.4 < means["within thresholds"] < 1
    assert "average Jaccard" not in means  # visibility was not predicted


def test_the_choice_of_the_world_changes_nothing(scenes, moving_square, with_positions):
    good = moving_square(0.09)
    turn = torch.tensor([[0.0, 0, 1, 3], [0, 1, 0, -2], [-1, 0, 0, 5], [0, 0, 0, 1]])
    moved = with_positions(good, good.points.positions @ turn[:3, :3].T + turn[:3, 3])
    cameras = replace(
        good.cameras, world_to_camera=torch.linalg.inv(turn).expand(good.num_frames, 4, 4)
    )
    save_scene(scenes / "turned.safetensors", replace(moved, cameras=cameras))

    def means(name):
        pair = ScenePair(
            name="a",
            predicted=(scenes / f"{name}.safetensors",),
            truth=scenes / "truth.safetensors",
        )
        return evaluate([pair])[0].means()

    assert means("turned") == pytest.approx(means("good"), abs=1e-3)


def test_the_scale_of_a_prediction_is_free_within_thresholds(scenes, moving_square, with_positions):
    truth = moving_square(0.1)
    save_scene(scenes / "twice.safetensors", with_positions(truth, 2 * truth.points.positions))
    pair = ScenePair(
        name="a", predicted=(scenes / "twice.safetensors",), truth=scenes / "truth.safetensors"
    )
    means = evaluate([pair])[0].means()
    assert means["within thresholds"] == 1
    assert means["relative error"] == pytest.approx(1, abs=1e-3)


def test_predicted_visibility_is_judged(scenes, moving_square):
    truth = moving_square(0.1)
    visibility = torch.ones_like(truth.points.visibility)
    visibility[2:, :8] = False
    hidden = replace(truth, points=replace(truth.points, visibility=visibility))
    save_scene(scenes / "hidden.safetensors", hidden)
    pair = ScenePair(
        name="a",
        predicted=(scenes / "hidden.safetensors",),
        truth=scenes / "truth.safetensors",
    )
    means = evaluate([pair])[0].means()
    assert means["visibility right"] == pytest.approx(1 - 24 / 320)
    assert means["average Jaccard"] == pytest.approx(1 - 24 / 320)


def test_a_failed_sample_is_named_and_the_others_are_still_evaluated(scenes):
    truth = scenes / "truth.safetensors"
    pairs = [
        ScenePair(name="lost", predicted=(scenes / "nothing.safetensors",), truth=truth),
        ScenePair(name="there", predicted=(truth,), truth=truth),
    ]
    (report,) = evaluate(pairs)
    assert list(report.failures) == ["lost"]
    assert "nothing.safetensors" in report.failures["lost"]
    assert report.rows[1].values["relative error"] == 0
    assert math.isnan(report.mean("relative error"))


def test_other_points_are_a_failure_that_says_so(scenes, moving_square):
    save_scene(scenes / "short.safetensors", moving_square(0.1, frames=4))
    pair = ScenePair(
        name="a", predicted=(scenes / "short.safetensors",), truth=scenes / "truth.safetensors"
    )
    (report,) = evaluate([pair])
    assert "4 frames of 64 points" in report.failures["a"]
    assert report.header()[1].startswith("end-point error")


def test_errors_of_the_program_are_not_failures_of_a_sample(scenes, monkeypatch):
    def broken(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr("more4d_backend.evaluation.file_pairs.compare_scenes", broken)
    truth = scenes / "truth.safetensors"
    with pytest.raises(RuntimeError, match="a defect"):
        evaluate([ScenePair(name="a", predicted=(truth,), truth=truth)])


def test_point_maps_are_compared_by_depth(tmp_path, point_maps_scene):
    true = point_maps_scene(0)
    save_scene(tmp_path / "truth.safetensors", true)
    (report,) = evaluate(
        [
            ScenePair(
                name="maps",
                predicted=(tmp_path / "truth.safetensors",),
                truth=tmp_path / "truth.safetensors",
            )
        ]
    )
    means = report.means()
    assert means["AbsRel"] < 1e-3
    assert means["fov error"] == 0
    assert means["constant AbsRel"] > 0.3
    assert "relative error" not in means


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "truth").mkdir()
    (tmp_path / "predicted").mkdir()
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(60, 180, (5, 24, 32, 3), generator=generator) / 255
    holes = torch.zeros(5, 24, 32, dtype=torch.bool)
    holes[:, 6:18, 8:20] = True
    predicted = true.clone()
    predicted[holes] += 51 / 255
    save_video(tmp_path / "truth/clip.mkv", true, 8, lossless=True)
    save_video(tmp_path / "predicted/clip.mkv", predicted, 8, lossless=True)
    save_mask_video(tmp_path / "truth/clip.holes.mkv", holes, 8)
    return tmp_path


def test_folders_are_paired_by_name_with_their_hole_masks(videos):
    (report,) = evaluate(pairs_of_folders(videos / "predicted", videos / "truth"))
    means = report.means()
    assert means["PSNR known"] == 100
    assert means["PSNR filled"] == pytest.approx(-20 * math.log10(0.2), abs=0.01)
    assert means["filled"] == pytest.approx(144 / 768)
    assert means["liveliness"] == pytest.approx(1, abs=1e-6)


def test_without_a_mask_all_counts_as_filled(videos):
    pair = VideoPair(
        name="clip", predicted=videos / "predicted/clip.mkv", truth=videos / "truth/clip.mkv"
    )
    means = evaluate([pair])[0].means()
    assert means["filled"] == 1
    assert "PSNR known" not in means


def test_a_prediction_that_is_missing_in_its_folder_fails_by_name(videos):
    (videos / "predicted/clip.mkv").unlink()
    (report,) = evaluate(pairs_of_folders(videos / "predicted", videos / "truth"))
    assert list(report.failures) == ["clip"]


def test_depth_maps_and_fields_of_view_are_compared(tmp_path):
    true = np.linspace(1, 5, 48, dtype=np.float32).reshape(6, 8)
    np.save(tmp_path / "truth.npy", np.where(true > 4.9, 0, true))
    np.save(tmp_path / "predicted.npy", true * 3)
    manifest = {
        "depths": [
            {
                "name": str(index),
                "predicted": "predicted.npy",
                "truth": "truth.npy",
                "predicted_fov_deg": 50 + error,
                "fov_deg": 50,
            }
            for index, error in enumerate((1, -2, 20))
        ]
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    pairs = read_manifest(tmp_path / "manifest.json")
    assert isinstance(pairs[0], DepthPair)
    means = evaluate(pairs)[0].means()
    assert means["AbsRel"] < 1e-6
    assert means["fov error"] == 2
    assert evaluate(pairs, depth_alignment="none")[0].means()["AbsRel"] == pytest.approx(2)


def test_progress_counts_pairs_and_can_interrupt(scenes):
    truth = scenes / "truth.safetensors"
    pairs = [ScenePair(name=name, predicted=(truth,), truth=truth) for name in "ab"]
    seen = []
    evaluate(pairs, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(pairs, progress=stop)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"scene": []}, "the key 'scene'"),
        ({"scenes": {}}, "expected an array"),
        ({"scenes": [{"name": "a"}]}, r"scenes\[0\]\.truth is missing"),
        ({"videos": [{"name": "a", "predicted": 3, "truth": "b"}]}, "predicted is 3"),
        ({"videos": [{"name": "a", "predicted": "b", "truth": "c", "hole": "d"}]}, "'hole'"),
        ({"scenes": [{"name": "a", "predicted": "b", "truth": "c", "words": "d"}]}, "both or none"),
    ],
)
def test_a_wrong_manifest_is_refused_where_it_is_wrong(tmp_path, manifest, message):
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FileFormatError, match=message):
        read_manifest(tmp_path / "manifest.json")


def test_nothing_to_evaluate_is_refused(tmp_path, scenes):
    with pytest.raises(EvaluationError, match="nothing to evaluate"):
        evaluate([])
    with pytest.raises(EvaluationError, match="not a folder"):
        pairs_of_folders(tmp_path / "no", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="nothing to compare"):
        pairs_of_folders(tmp_path, tmp_path / "empty")
    truth = scenes / "truth.safetensors"
    with pytest.raises(EvaluationError, match="named a"):
        evaluate([ScenePair(name="a", predicted=(truth,), truth=truth)] * 2)
