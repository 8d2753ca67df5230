import logging
from dataclasses import replace

import pytest
import torch

from more4d_backend.geo4d.alignment import AlignmentError, AlignmentSettings, align_windows
from more4d_backend.geo4d.alignment.block_solver import System
from more4d_backend.geo4d.predictions import WindowError
from more4d_backend.geo4d.synthetic_windows import Corruption
from more4d_backend.geometry import transform_points
from more4d_backend.shapes import ShapeError

EXACT = Corruption(noise=0.0, outlier_share=0.0)


def test_exact_windows_give_the_exact_scene(moving_view, make_windows, errors_of):
    result = align_windows(make_windows(moving_view, EXACT), moving_view.rgb, 8.0)
    errors = errors_of(result, moving_view)
    assert result.report.converged
    # What is left is the smoothness term's pull; measured 3e-5, 4e-4, 0.01 degrees, 1e-5.
    assert errors.abs_rel < 2e-4
    assert errors.ate_share < 2e-3
    assert errors.turn_deg < 0.03
    assert errors.focal < 2e-4


def test_noisy_windows_with_outliers_give_nearly_the_scene(moving_view, make_windows, errors_of):
    result = align_windows(make_windows(moving_view, Corruption()), moving_view.rgb, 8.0)
    errors = errors_of(result, moving_view)
    assert result.report.converged
    # A single window has 0.016 of noise and 0.03 of outliers. Measured 0.010, 0.006, 0.2, 0.01.
    assert errors.abs_rel < 0.014
    assert errors.ate_share < 0.015
    assert errors.turn_deg < 0.5
    assert errors.focal < 0.03


def test_the_scene_is_in_the_world_of_camera_0_with_unit_median_depth(moving_view, make_windows):
    result = align_windows(make_windows(moving_view, Corruption()), moving_view.rgb, 8.0)
    points, cameras = result.scene.points, result.scene.cameras
    assert torch.equal(cameras.world_to_camera[0], torch.eye(4))
    assert float(result.depth[points.valid].median()) == pytest.approx(1, abs=0.02)
    in_camera = transform_points(points.positions, cameras.world_to_camera[:, None, None])
    assert torch.allclose(in_camera[..., 2][points.valid], result.depth[points.valid], atol=1e-4)
    assert result.scene.fps == 8.0
    assert torch.equal(points.colors, moving_view.rgb)


def test_sky_is_not_valid_and_has_no_depth(moving_view, make_windows):
    result = align_windows(make_windows(moving_view, Corruption()), moving_view.rgb, 8.0)
    assert (~moving_view.valid).float().mean() > 0.03
    assert torch.equal(result.scene.points.valid, moving_view.valid)
    assert (result.depth[~moving_view.valid] == 0).all()


def test_the_result_does_not_depend_on_chance(moving_view, make_windows):
    windows = make_windows(moving_view, Corruption())
    first, second = (align_windows(windows, moving_view.rgb, 8.0) for _ in range(2))
    assert torch.equal(first.depth, second.depth)
    assert first.report == second.report


def test_sigma_says_which_points_to_believe(moving_view, make_windows, errors_of):
    windows = make_windows(moving_view, Corruption(outlier_share=0.0))
    spoilt, blind = [], []
    for window in windows:
        # The left half is 20 % off, and sigma knows it.
        bad = torch.zeros_like(window.valid)
        bad[:, :, :20] = True
        noise = torch.randn(window.points.shape, generator=torch.Generator().manual_seed(3))
        points = window.points + 10 * noise * window.sigma[..., None] * bad[..., None]
        sigma = window.sigma.where(~bad, 10 * window.sigma)
        spoilt.append(replace(window, points=points, sigma=sigma, disparity=None, rays=None))
        blind.append(replace(spoilt[-1], sigma=None))
    told = errors_of(align_windows(spoilt, moving_view.rgb, 8.0), moving_view)
    untold = errors_of(align_windows(blind, moving_view.rgb, 8.0), moving_view)
    assert told.ate_share < 0.8 * untold.ate_share


def test_where_windows_contradict_each_other_the_certain_one_gives_the_depth(
    moving_view, make_windows
):
    windows = [
        replace(window, disparity=None, rays=None)
        for window in make_windows(moving_view, Corruption(outlier_share=0.0))
    ]
    # In a patch of frame 4 both of its windows are wrong, one nearer and one farther, by 4 %.
    patch = (slice(10, 16), slice(20, 30))

    def depths(certain: int):
        spoilt = list(windows)
        for number, factor in ((0, 0.96), (1, 1.04)):
            window, frame = windows[number], 4 - windows[number].first_frame
            points, sigma = window.points.clone(), window.sigma.clone()
            points[frame][patch] *= factor
            sigma[frame][patch] *= 1 if number == certain else 10
            spoilt[number] = replace(window, points=points, sigma=sigma)
        return align_windows(spoilt, moving_view.rgb, 8.0).depth[4][patch]

    near, far = depths(certain=0), depths(certain=1)
    # Measured: 1.055; 1.0004 where sigma is not looked at.
    assert (far / near).median() > 1.03


def test_disparity_at_the_floor_does_not_push_points_away(moving_view, make_windows):
    windows = make_windows(moving_view, Corruption(outlier_share=0.0))
    patch = (slice(None), slice(-8, -4), slice(20, 30))  # of the ground, which is near

    def depths(value: float | None):
        spoilt = []
        for window in windows:
            disparity = window.disparity.clone()
            if value is not None:
                disparity[patch] = value
            spoilt.append(replace(window, disparity=disparity))
        return align_windows(spoilt, moving_view.rgb, 8.0).depth[patch]

    whole, at_floor, above = depths(None), depths(0.05), depths(0.06)
    # Measured: 1.0015 and 4.4.
    assert abs((at_floor / whole).median() - 1) < 0.02
    assert (above / whole).median() > 2


@pytest.mark.parametrize(("blind", "seen"), [((), True), ((2,), True), ((2, 3), False)])
def test_a_point_is_valid_where_at_least_half_of_the_windows_see_one(
    moving_view, make_windows, blind, seen
):
    windows = make_windows(moving_view, Corruption(outlier_share=0.0))
    # Windows 1, 2 and 3 see frame 8.
    patch = (slice(-8, -4), slice(20, 30))
    for number in blind:
        valid = windows[number].valid.clone()
        valid[8 - windows[number].first_frame][patch] = False
        windows[number] = replace(windows[number], valid=valid)
    found = align_windows(windows, moving_view.rgb, 8.0).scene.points.valid[8][patch]
    assert torch.equal(found, moving_view.valid[8][patch] & seen)


def test_confidence_follows_sigma_and_is_none_without(moving_view, make_windows):
    windows = make_windows(moving_view, Corruption())
    points = align_windows(windows, moving_view.rgb, 8.0).scene.points
    # Sigma is 2 % of the depth, give or take a fifth: 0.5 in units of 1 %, the best window's more.
    assert 0.45 < float(points.confidence[points.valid].median()) < 0.75
    assert (points.confidence[~points.valid] == 0).all()
    blind = [replace(window, sigma=None) for window in windows]
    assert align_windows(blind, moving_view.rgb, 8.0).scene.points.confidence is None


@pytest.mark.parametrize(
    "settings", [AlignmentSettings.points_only(), AlignmentSettings(rays=False)]
)
def test_the_ablations_with_points_find_cameras(moving_view, make_windows, errors_of, settings):
    result = align_windows(
        make_windows(moving_view, Corruption()), moving_view.rgb, 8.0, settings=settings
    )
    errors = errors_of(result, moving_view)
    assert errors.abs_rel < 0.03
    assert errors.ate_share < 0.02
    assert not any(window.rays_used for window in result.report.windows)
    assert all(w.disparity_used == settings.disparity for w in result.report.windows)


def test_disparity_alone_gives_depth_up_to_scale_and_shift_and_a_still_camera(
    moving_view, make_windows
):
    windows = make_windows(moving_view, Corruption(outlier_share=0.0))
    settings = AlignmentSettings.disparity_only()
    result = align_windows(windows, moving_view.rgb, 8.0, settings=settings)
    assert torch.equal(result.scene.cameras.world_to_camera, torch.eye(4).expand(14, 4, 4))
    known = moving_view.valid & (result.depth > 0)
    # Windows agree: one line for the video explains the disparity. Measured 0.9995.
    pairs = torch.stack([1 / result.depth[known], 1 / moving_view.depth[known]])
    assert torch.corrcoef(pairs)[0, 1] > 0.998


def test_disparity_and_rays_give_turning_cameras(moving_view, make_windows, errors_of):
    windows = make_windows(moving_view, Corruption())
    settings = AlignmentSettings(points=False)
    result = align_windows(windows, moving_view.rgb, 8.0, settings=settings)
    errors = errors_of(result, moving_view)
    assert errors.turn_deg < 1.0
    assert errors.focal < 0.03


def test_more_rays_weigh_more(moving_view, make_windows, errors_of):
    """The camera term pulls cameras to the ray maps: with exact rays and poor points it helps."""
    exact = make_windows(moving_view, EXACT)
    noisy = make_windows(moving_view, Corruption(noise=0.1, similarity=False))
    # Rays of the exact windows have their unit; only turns matter here.
    windows = [replace(n, rays=e.rays) for n, e in zip(noisy, exact, strict=True)]
    settings = AlignmentSettings(camera_weight=5.0)
    strong = errors_of(align_windows(windows, moving_view.rgb, 8.0, settings=settings), moving_view)
    settings = AlignmentSettings(camera_weight=0.0)
    none = errors_of(align_windows(windows, moving_view.rgb, 8.0, settings=settings), moving_view)
    assert strong.turn_deg < 0.5 * none.turn_deg


def test_smoothness_shortens_the_path(moving_view, make_windows):
    windows = make_windows(moving_view, Corruption())

    def path(weight):
        settings = AlignmentSettings(smoothness_weight=weight, smoothness="still")
        result = align_windows(windows, moving_view.rgb, 8.0, settings=settings)
        centers = result.scene.cameras.camera_to_world[:, :3, 3]
        return float((centers[1:] - centers[:-1]).norm(dim=1).sum())

    assert path(0.5) < 0.9 * path(0.015) < path(0.0)


def test_disparity_may_be_smaller_than_the_points(moving_view, make_windows, errors_of):
    # Outliers on single pixels would be smeared over many: no decoder makes them.
    windows = make_windows(moving_view, Corruption(outlier_share=0.0))
    small = [
        replace(w, disparity=torch.nn.functional.avg_pool2d(w.disparity[:, None], 2)[:, 0])
        for w in windows
    ]
    result = align_windows(small, moving_view.rgb, 8.0)
    errors = errors_of(result, moving_view)
    assert all(window.disparity_used for window in result.report.windows)
    assert errors.abs_rel < 0.014
    assert errors.ate_share < 0.02
    points = [replace(w, disparity=None) for w in windows]
    alone = errors_of(align_windows(points, moving_view.rgb, 8.0), moving_view)
    assert errors.abs_rel < 1.02 * alone.abs_rel


def test_progress_counts_up_to_the_end_and_can_interrupt(moving_view, make_windows):
    windows = make_windows(moving_view, Corruption())
    seen = []
    align_windows(windows, moving_view.rgb, 8.0, progress=lambda *step: seen.append(step))
    done = [step[0] for step in seen]
    assert done == sorted(done)
    assert seen[-1][0] == seen[-1][1]

    class Stop(Exception):
        pass

    def stop(done, total):
        if done == 3:
            raise Stop

    with pytest.raises(Stop):
        align_windows(windows, moving_view.rgb, 8.0, progress=stop)


def test_the_report_says_that_too_few_steps_were_allowed(moving_view, make_windows, caplog):
    settings = AlignmentSettings(max_iterations=1)
    with caplog.at_level(logging.WARNING):
        result = align_windows(
            make_windows(moving_view, Corruption()), moving_view.rgb, 8.0, settings=settings
        )
    assert not result.report.converged
    assert result.report.iterations == 1
    assert result.report.end.total < result.report.start.total
    assert "NOT converged" in caplog.text


def test_steps_that_are_short_for_their_damping_are_no_convergence(
    moving_view, make_windows, monkeypatch
):
    # Equations whose own steps lead nowhere: only such as are damped to next to nothing are taken.
    solve = System.solve

    def misled(system, damping):
        step, focal = solve(system, damping)
        return (step, focal) if damping >= 1e3 else (step + 3, focal)

    monkeypatch.setattr(System, "solve", misled)
    result = align_windows(make_windows(moving_view, Corruption()), moving_view.rgb, 8.0)
    assert result.report.last_step < AlignmentSettings().tolerance
    assert not result.report.converged


def test_colors_of_another_size_are_refused(moving_view, make_windows, as_users_run_it):
    with pytest.raises(ShapeError, match=r"colors has shape.*expected \(14, 30, 40, 3\)"):
        align_windows(make_windows(moving_view, EXACT), moving_view.rgb[:5], 8.0)


def test_a_scene_of_neither_points_nor_disparity_is_refused(as_users_run_it):
    with pytest.raises(AlignmentError, match="at least one"):
        AlignmentSettings(points=False, disparity=False)


def test_windows_of_another_size_are_named(moving_view, make_windows, as_users_run_it):
    windows = make_windows(moving_view, EXACT)
    windows[2] = replace(
        windows[2], points=windows[2].points[:, :20], valid=windows[2].valid[:, :20],
        sigma=None, disparity=None, rays=None,
    )  # fmt: skip
    with pytest.raises(WindowError, match=r"Window 2 has images of \(20, 40\)"):
        align_windows(windows, moving_view.rgb, 8.0)
