"""Benchmarks as a whole: predictions beside data sets, protocols, and failures by name."""

import math
from dataclasses import replace

import pytest
import torch

from more4d_backend.devices import DeviceMemoryError
from more4d_backend.evaluation.benchmarks import (
    BENCHMARKS,
    SHOWN_ALIGNMENTS,
    camera_title,
    confidence_title,
    depth_title,
    evaluate_benchmark,
)
from more4d_backend.evaluation.tables import EvaluationError
from more4d_backend.scene_files import save_scene

pytest.importorskip("evo", reason="pose errors need evo: pip install evo")

SINTEL = replace(
    BENCHMARKS["sintel"], depth_videos=("alley_1", "alley_2"), camera_videos=("alley_2",)
)


def report_of(reports, title):
    (found,) = [report for report in reports if report.title == title]
    return found


def rescaled(scene, scale=3.0):
    """The same scene in another unit, with a confidence."""
    positions = scale * scene.points.positions
    world_to_camera = scene.cameras.world_to_camera.clone()
    world_to_camera[:, :3, 3] *= scale
    confidence = torch.rand(positions.shape[:3], generator=torch.Generator().manual_seed(0))
    return replace(
        scene,
        points=replace(scene.points, positions=positions, confidence=confidence),
        cameras=replace(scene.cameras, world_to_camera=world_to_camera),
    )


def test_a_true_scene_in_another_unit_has_no_errors(sintel, scene, tmp_path):
    for name in SINTEL.depth_videos:
        save_scene(tmp_path / "scenes" / f"{name}.safetensors", rescaled(scene))
    reports = evaluate_benchmark(SINTEL, sintel, tmp_path / "scenes")
    for alignment in SHOWN_ALIGNMENTS:
        depth = report_of(reports, depth_title(SINTEL, alignment))
        assert [row.name for row in depth.rows] == ["alley_1", "alley_2"]
        assert depth.mean("AbsRel") == pytest.approx(0, abs=2e-3)  # depth is stored in half
        assert depth.mean("within 1.25") == 1
        assert depth.mean("constant within 1.25") < 1
    cameras = report_of(reports, camera_title(SINTEL))
    assert [row.name for row in cameras.rows] == ["alley_2"]
    assert cameras.mean("ATE") == pytest.approx(0, abs=1e-5)
    assert cameras.mean("RPE rotation") == pytest.approx(0, abs=1e-3)
    assert cameras.mean("RPE rotation of still camera") == pytest.approx(math.degrees(0.03), 1e-4)
    assert cameras.mean("RPE rotation / still") < 1e-3
    assert len(report_of(reports, confidence_title(SINTEL)).rows) == 2


def test_a_video_that_fails_is_named_and_makes_the_means_nan(sintel, scene, tmp_path):
    save_scene(tmp_path / "alley_1.safetensors", scene)
    reports = evaluate_benchmark(SINTEL, sintel, tmp_path)
    depth = report_of(reports, depth_title(SINTEL, "absolute-scale-shift"))
    assert "alley_2.safetensors" in depth.failures["alley_2"]
    assert math.isnan(depth.mean("AbsRel"))
    assert math.isnan(report_of(reports, camera_title(SINTEL)).mean("ATE"))


def test_cameras_that_cannot_be_aligned_fail_and_depth_does_not(sintel, scene, tmp_path):
    still = replace(
        scene.cameras, world_to_camera=scene.cameras.world_to_camera[:1].expand(5, 4, 4)
    )
    for name in SINTEL.depth_videos:
        save_scene(tmp_path / f"{name}.safetensors", replace(scene, cameras=still))
    reports = evaluate_benchmark(SINTEL, sintel, tmp_path)
    assert (
        "on one line or in one point"
        in report_of(reports, camera_title(SINTEL)).failures["alley_2"]
    )
    assert not report_of(reports, depth_title(SINTEL, "absolute-scale-shift")).failures


def test_scenes_that_are_missing_are_made_once(sintel, scene, tmp_path):
    made = []

    def make(true, path) -> None:
        made.append(true.name)
        if true.name == "alley_2":
            raise EvaluationError("It cannot be made.")
        save_scene(path, scene)

    reports = evaluate_benchmark(SINTEL, sintel, tmp_path, make=make)
    assert made == ["alley_1", "alley_2"]
    for report in reports:
        assert report.failures == {"alley_2": "It cannot be made."}
    evaluate_benchmark(SINTEL, sintel, tmp_path, make=make)
    assert made == ["alley_1", "alley_2", "alley_2"]


def test_a_video_for_which_memory_runs_out_fails_and_the_others_do_not(sintel, scene, tmp_path):
    def make(true, path) -> None:
        if true.name == "alley_2":
            raise DeviceMemoryError("The device has not enough memory.")
        save_scene(path, scene)

    reports = evaluate_benchmark(SINTEL, sintel, tmp_path, make=make)
    for report in reports:
        assert report.failures == {"alley_2": "The device has not enough memory."}
    assert (tmp_path / "alley_1.safetensors").is_file()


@pytest.mark.parametrize(("cut", "told"), [(slice(0, 24), 0), (slice(1, 23), 0), (slice(4, 20), 1)])
def test_a_scene_of_another_shape_is_told_of(sintel, scene, tmp_path, caplog, cut, told):
    points = scene.points
    cropped = replace(
        scene,
        points=replace(
            points, positions=points.positions[:, cut], colors=points.colors[:, cut],
            valid=points.valid[:, cut],
        ),
        cameras=replace(scene.cameras, height=cut.stop - cut.start),
    )  # fmt: skip
    save_scene(tmp_path / "alley_1.safetensors", cropped)
    evaluate_benchmark(SINTEL, sintel, tmp_path)
    assert caplog.text.count("alley_1: the scene has 16 x 32 pixels and the truth 24 x 32") == told
    assert ("another shape" in caplog.text) == bool(told)


def test_pixels_of_all_videos_weigh_alike(sintel, scene, tmp_path):
    # The second video has less truth, and a worse prediction.
    for path in (sintel / "training" / "depth" / "alley_2").glob("*.dpt"):
        data = bytearray(path.read_bytes())
        data[12 : 12 + 4 * 32 * 18] = bytes(4 * 32 * 18)  # 18 of 24 rows are not known
        path.write_bytes(data)
    worse = scene.points.positions * (1 + 0.3 * torch.rand_like(scene.points.positions[..., :1]))
    save_scene(tmp_path / "alley_1.safetensors", scene)
    points = replace(scene.points, positions=worse)
    save_scene(tmp_path / "alley_2.safetensors", replace(scene, points=points))
    depth = evaluate_benchmark(SINTEL, sintel, tmp_path)[0]
    first, second = (row.values["AbsRel"] for row in depth.rows)
    assert second.reference == first.reference / 4
    expected = (4 * first.value + second.value) / 5
    assert depth.mean("AbsRel") == pytest.approx(expected)
    assert second.value > 10 * first.value


def test_the_benchmarks_have_the_published_videos():
    assert len(set(BENCHMARKS["sintel"].depth_videos)) == 23
    assert len(set(BENCHMARKS["sintel"].camera_videos)) == 14
    assert set(BENCHMARKS["sintel"].camera_videos) < set(BENCHMARKS["sintel"].depth_videos)
    assert len(set(BENCHMARKS["tum-dynamics"].camera_videos)) == 8
    assert BENCHMARKS["sintel"].depth.max_depth == 70


def test_an_empty_folder_of_procedural_videos_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="holds no video of Procedural"):
        evaluate_benchmark(BENCHMARKS["procedural"], tmp_path, tmp_path)


def test_a_network_makes_the_scenes_of_procedural_videos(procedural, tmp_path):
    from more4d_backend.evaluation.reconstruction import scene_maker
    from more4d_backend.geo4d.model import Geo4DNetworks
    from more4d_backend.geo4d.sizes import GEO4D_SIZES
    from more4d_backend.scene_files import load_scene

    torch.manual_seed(0)
    make = scene_maker(Geo4DNetworks(GEO4D_SIZES["toy"]).eval())
    reports = evaluate_benchmark(BENCHMARKS["procedural"], procedural, tmp_path / "made", make=make)
    made = load_scene(tmp_path / "made" / "one.safetensors")
    assert made.points.positions.shape == (5, 24, 32, 3)
    assert [row.name for row in reports[0].rows] == ["one"]
