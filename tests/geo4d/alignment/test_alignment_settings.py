"""The paper's ablations: which modalities are aligned, and with which weights."""

from dataclasses import asdict

import pytest

from more4d_backend.cli.reconstruct_command import WindowOptions
from more4d_backend.geo4d.alignment import AlignmentSettings, align_windows
from more4d_backend.geo4d.synthetic_windows import Corruption

PAPER = {
    "point_weight": 1.0, "disparity_weight": 2.0, "camera_weight": 0.005,
    "smoothness_weight": 0.015, "smoothness": "still", "pose_terms": "sum",
}  # fmt: skip
"""The weights of arXiv 2504.07961; norms, means and sums of the published code."""


@pytest.mark.parametrize(
    ("modalities", "used"),
    [
        ("all", {"points": True, "disparity": True, "rays": True}),
        ("points", {"points": True, "disparity": False, "rays": False}),
        ("disparity", {"points": False, "disparity": True, "rays": False}),
    ],
)
def test_every_ablation_of_the_paper_can_be_asked_for_with_its_weights(modalities, used):
    own = WindowOptions(modalities=modalities).settings().alignment
    paper = WindowOptions(modalities=modalities, alignment_weights="paper").settings().alignment
    assert used.items() <= asdict(own).items()
    assert (used | PAPER).items() <= asdict(paper).items()
    rest = asdict(own).keys() - used.keys() - PAPER.keys()
    assert rest
    assert all(asdict(own)[name] == asdict(paper)[name] for name in rest)


def test_the_papers_weights_replace_those_that_were_changed():
    changed = AlignmentSettings(point_weight=3.0, disparity_weight=0.0, camera_weight=1.0)
    assert changed.with_paper_weights() == AlignmentSettings().with_paper_weights()


def test_ray_cameras_count_as_asked_for_then_as_the_weights_need_then_as_in_the_paper():
    assert AlignmentSettings().for_weights().camera_weight == 0.005
    assert AlignmentSettings().for_weights(0.5).camera_weight == 0.5
    assert AlignmentSettings(camera_weight=0.0).for_weights(0.5).camera_weight == 0.0
    assert AlignmentSettings().with_paper_weights().for_weights(0.5).camera_weight == 0.005


def test_the_papers_smoothness_draws_the_camera_path_inwards(moving_view, make_windows, errors_of):
    windows = make_windows(moving_view, Corruption(outlier_share=0.0))
    own = AlignmentSettings.points_only()
    results = [
        align_windows(windows, moving_view.rgb, 8.0, settings=settings)
        for settings in (own, own.with_paper_weights())
    ]
    centers = [r.scene.cameras.camera_to_world[:, :3, 3] for r in results]
    ours, papers = (float((c[1:] - c[:-1]).norm(dim=1).sum()) for c in centers)
    assert papers < 0.95 * ours
    errors = [errors_of(result, moving_view) for result in results]
    assert errors[1].turn_deg > errors[0].turn_deg
