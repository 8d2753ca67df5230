import json

import pytest

from more4d_backend.cli import main
from more4d_backend.scene_files import save_scene
from more4d_backend.synthetic import make_world


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two scenes; the prediction of the first is exact, that of the second stands still."""
    import dataclasses

    root = tmp_path_factory.mktemp("evaluate")
    for number in range(2):
        world = make_world(number)
        scene = world.scene(world.cameras(5, 24, 32))
        save_scene(root / "truth" / f"{number}.safetensors", scene)
        if number == 1:
            still = scene.points.positions[:1].expand(5, -1, -1)
            scene = dataclasses.replace(
                scene, points=dataclasses.replace(scene.points, positions=still)
            )
        save_scene(root / "predicted" / f"{number}.safetensors", scene)
    return root


def test_a_table_and_a_file_tell_the_good_prediction_from_the_still_one(folders, capsys, tmp_path):
    command = ["--predicted", str(folders / "predicted"), "--truth", str(folders / "truth")]
    assert main(["evaluate", *command, "-o", str(tmp_path / "result.json")]) == 0
    assert "mean" in capsys.readouterr().out
    text = (tmp_path / "result.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)


def test_a_failed_sample_is_named_and_makes_the_exit_code_1(folders, capsys, tmp_path):
    truth = tmp_path / "truth"
    truth.mkdir()
    (truth / "0.safetensors").write_bytes((folders / "truth" / "0.safetensors").read_bytes())
    predicted = tmp_path / "predicted"
    predicted.mkdir()
    (predicted / "0.safetensors").write_bytes(b"damaged")
    assert main(["evaluate", "--predicted", str(predicted), "--truth", str(truth)]) == 1
    out = capsys.readouterr().out
    assert "0" in out
    assert "nan" in out.lower()


def test_what_to_compare_must_be_said(caplog):
    assert main(["evaluate"]) == 2
    assert "--manifest" in caplog.text


def test_the_mean_is_that_of_an_exact_and_a_still_prediction(folders):
    from more4d_backend.evaluation import evaluate, pairs_of_folders

    (report,) = evaluate(pairs_of_folders(folders / "predicted", folders / "truth"))
    assert not report.failures
    assert report.mean("end-point error") > 0


def test_a_benchmark_is_evaluated_from_scene_files(folders, capsys, tmp_path):
    pytest.importorskip("evo", reason="pose errors need evo: pip install evo")
    command = [
        "--benchmark",
        "tum-dynamics",
        "--predicted",
        str(tmp_path),
        "--truth",
        str(tmp_path),
    ]
    assert main(["evaluate", *command, "-o", str(tmp_path / "tum.json")]) == 1
    assert "FAILED walking_xyz" in capsys.readouterr().out
    (report,) = json.loads((tmp_path / "tum.json").read_text())
    assert report["title"] == "TUM-dynamics: cameras"
    assert len(report["failed"]) == 8
    assert report["mean"]["ATE"] is None


def test_options_that_have_no_effect_are_refused(tmp_path, caplog):
    both = ["--predicted", str(tmp_path), "--truth", str(tmp_path)]
    assert main(["evaluate", *both, "--reconstruct"]) == 2
    assert "only go with --benchmark" in caplog.text
    manifest = ["--manifest", str(tmp_path / "m.json"), "--benchmark", "sintel"]
    assert main(["evaluate", *manifest]) == 2
    assert "not --manifest" in caplog.text
    weights = ["--weights", str(tmp_path / "w.safetensors"), "--benchmark", "sintel"]
    assert main(["evaluate", *both, *weights]) == 2
    assert "only go with --reconstruct" in caplog.text


@pytest.mark.parametrize("more", [[], ["--benchmark", "procedural", "--reconstruct"]])
def test_a_device_that_is_not_there_is_refused_in_words(folders, caplog, monkeypatch, more):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    both = ["--predicted", str(folders / "predicted"), "--truth", str(folders / "truth")]
    weights = ["--weights", str(folders / "weights.safetensors")] if more else []
    assert main(["evaluate", *both, *more, *weights, "--device", "cuda"]) == 2
    assert "device is cuda, but" in caplog.text


def test_scenes_are_made_in_the_precision_that_reconstruct_computes_in(folders, monkeypatch):
    import torch

    from more4d_backend.cli.evaluate_command import Evaluate
    from more4d_backend.geo4d.model import Geo4DNetworks
    from more4d_backend.geo4d.sizes import GEO4D_SIZES
    from more4d_backend.weights.geo4d import save_geo4d

    path = folders / "toy.safetensors"
    save_geo4d(Geo4DNetworks(GEO4D_SIZES["toy"]), path, dtype=torch.bfloat16)
    dtypes = []
    monkeypatch.setattr(
        "more4d_backend.evaluation.reconstruction.scene_maker", lambda n: dtypes.append(n.dtype)
    )
    Evaluate(benchmark="procedural", reconstruct=True, weights=path)._reconstruction()
    assert dtypes == [torch.float32]  # on a CPU; it was the file's bfloat16


def test_scenes_that_were_there_before_are_told_of(tmp_path, monkeypatch, caplog):
    from more4d_backend.cli.evaluate_command import Evaluate

    monkeypatch.setattr(Evaluate, "_reconstruction", lambda _self: lambda _true, _path: None)
    (tmp_path / "sitting_xyz.safetensors").touch()
    both = ["--benchmark", "tum-dynamics", "--predicted", str(tmp_path), "--truth", str(tmp_path)]
    assert main(["evaluate", *both]) == 1
    assert "already" not in caplog.text
    assert main(["evaluate", *both, "--reconstruct"]) == 1
    assert f"1 scene in {tmp_path} already: compared as they are" in caplog.text
