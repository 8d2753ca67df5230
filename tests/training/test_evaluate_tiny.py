"""What is measured is tested with each metric; here, that random weights go through all parts."""

import json
from dataclasses import replace

import pytest

from training import evaluate_tiny as module
from training.data.samples import SampleSize
from training.evaluate_tiny import TinyEvaluation, evaluate_tiny
from training.procedural.settings import ProceduralSettings


@pytest.fixture
def told(monkeypatch, random_embedded, tmp_path):
    size = SampleSize(num_frames=5, height=64, width=96)
    small = ProceduralSettings(size=size, moving_camera_share=0.0, samples=1)
    monkeypatch.setattr(module, "procedural_tiny", lambda: small)
    monkeypatch.setattr(module, "_ORACLE_SEED", module.FIRST_HELD_OUT_SEED)  # knows all its words
    return TinyEvaluation(
        weights=random_embedded,
        num_samples=1,
        num_depth_samples=2,
        num_oracle_samples=40,
        generations=2,
        num_steps=1,
        output=tmp_path / "card.json",
    )


def test_every_part_is_measured_beside_its_baselines(told, capsys):
    pytest.importorskip("cv2", reason="Telea's fill is OpenCV's")
    reports = evaluate_tiny(told)
    titles = {report.title for report in reports}
    assert {"Motion VAE, snapped to edges", "4D-STraG", "Telea", "Mid-grey"} <= titles
    assert not any(report.failures for report in reports)
    printed = capsys.readouterr().out
    assert all(title in printed for title in titles)
    assert told.output is not None
    assert [r["title"] for r in json.loads(told.output.read_text())] == [r.title for r in reports]


def test_parts_that_were_not_asked_for_need_no_file(told, random_embedded, tmp_path):
    (tmp_path / "other").mkdir()
    name = "other/more4d_tiny_depth.safetensors"
    (tmp_path / name).write_bytes((random_embedded / name).read_bytes())
    (report,) = evaluate_tiny(replace(told, parts=("depth",), weights=tmp_path))
    assert report.title == "Depth, one scale per image"


def test_scenes_are_held_out_and_follow_each_other(told):
    names = [sample.name for sample in told.samples(2)]
    assert names == ["procedural-900000000", "procedural-900000001"]
