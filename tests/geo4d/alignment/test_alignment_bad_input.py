"""What windows can be like at worst: nothing valid, NaN, no baseline, a single frame."""

import logging
from dataclasses import replace

import pytest
import torch

from more4d_backend.geo4d.alignment import AlignmentError, AlignmentSettings, align_windows
from more4d_backend.geo4d.predictions import WindowError
from more4d_backend.geo4d.synthetic_windows import Corruption
from more4d_backend.geometry import pixel_centers


def without_points(window):
    """All sky."""
    return replace(
        window,
        points=torch.zeros_like(window.points),
        valid=torch.zeros_like(window.valid),
        disparity=torch.zeros_like(window.disparity),
    )


def test_a_still_camera_stays_and_nothing_blows_up(still_view, make_windows, errors_of):
    result = align_windows(make_windows(still_view, Corruption()), still_view.rgb, 8.0)
    cameras = result.scene.cameras.world_to_camera
    # Measured: 0.004 median depths, 0.2 degrees: the noise.
    assert cameras[:, :3, 3].norm(dim=1).max() < 0.02
    assert errors_of(result, still_view).turn_deg < 1.0
    assert errors_of(result, still_view).abs_rel < 0.02
    assert result.depth.isfinite().all()


def test_a_window_with_nothing_valid_is_bridged_by_its_neighbours(
    moving_view, make_windows, errors_of
):
    windows = make_windows(moving_view, Corruption(outlier_share=0.0))
    windows[1] = without_points(windows[1])
    result = align_windows(windows, moving_view.rgb, 8.0)
    assert errors_of(result, moving_view).abs_rel < 0.02
    assert result.report.windows[1].valid_share == 0
    assert result.report.windows[1].point_error is None
    assert not result.report.windows[1].disparity_used


def test_a_first_window_with_nothing_valid_leaves_its_frames_empty(moving_view, make_windows):
    windows = make_windows(moving_view, Corruption(outlier_share=0.0))
    windows[0] = without_points(windows[0])
    result = align_windows(windows, moving_view.rgb, 8.0)
    assert not result.scene.points.valid[:3].any()
    assert torch.equal(result.scene.points.valid[6:], moving_view.valid[6:])
    assert result.scene.cameras.world_to_camera.isfinite().all()


def test_windows_that_share_no_usable_frame_are_bridged_and_reported(
    moving_view, make_windows, caplog
):
    windows = make_windows(moving_view, Corruption(outlier_share=0.0), starts=(0, 6, 8))
    with caplog.at_level(logging.WARNING):
        result = align_windows(windows, moving_view.rgb, 8.0)
    assert [w.bridged for w in result.report.windows] == [False, True, False]
    assert "Windows 0 and 1 share no usable pixels" in caplog.text
    assert "bridged 1" in result.report.summary()
    # Depth goes on at about the same scale: the same floor is seen on both sides.
    before, after = result.depth[5], result.depth[6]
    both = (before > 0) & (after > 0)
    assert 0.7 < float((after[both] / before[both]).median()) < 1.4


def test_a_video_of_sky_is_refused(moving_view, make_windows, as_users_run_it):
    windows = [without_points(w) for w in make_windows(moving_view, Corruption())]
    with pytest.raises(AlignmentError, match="None of the 4 windows has a valid point"):
        align_windows(windows, moving_view.rgb, 8.0)
    settings = AlignmentSettings.disparity_only()
    with pytest.raises(AlignmentError, match="None of the 4 windows"):
        align_windows(windows, moving_view.rgb, 8.0, settings=settings)


@pytest.mark.parametrize("part", ["points", "disparity", "sigma"])
def test_nan_names_the_window(moving_view, make_windows, as_users_run_it, part):
    windows = make_windows(moving_view, Corruption())
    getattr(windows[2], part)[1][windows[2].valid[1]] = torch.nan
    with pytest.raises(WindowError, match=rf"Window 2 has NaN.*{part}.*frame 7 of the video"):
        align_windows(windows, moving_view.rgb, 8.0)


def test_one_window_is_a_scene(moving_view, make_windows):
    windows = make_windows(moving_view, Corruption(), starts=(0,))
    result = align_windows(windows, moving_view.rgb[:6], 8.0)
    assert result.scene.num_frames == 6
    assert result.report.converged


def test_one_frame_is_a_scene(moving_view, make_windows):
    window = make_windows(moving_view, Corruption(), starts=(0,))[0].frames(slice(0, 1))
    result = align_windows([window], moving_view.rgb[:1], 8.0)
    assert result.scene.num_frames == 1
    assert torch.equal(result.scene.cameras.world_to_camera[0], torch.eye(4))
    focal = float(moving_view.cameras.intrinsics[0, 0, 0])
    assert result.report.focal_px == pytest.approx(focal, rel=0.15)  # from one noisy frame


def test_windows_of_different_lengths_work(moving_view, make_windows, errors_of):
    windows = make_windows(moving_view, Corruption(outlier_share=0.0))
    windows[1], windows[3] = windows[1].frames(slice(0, 4)), windows[3].frames(slice(3, 6))
    result = align_windows(windows, moving_view.rgb, 8.0)
    assert [w.num_frames for w in result.report.windows] == [6, 4, 6, 3]
    assert errors_of(result, moving_view).abs_rel < 0.02


def test_the_order_of_windows_does_not_matter(moving_view, make_windows):
    windows = make_windows(moving_view, Corruption(outlier_share=0.0))
    first = align_windows(windows, moving_view.rgb, 8.0)
    second = align_windows([windows[i] for i in (2, 0, 3, 1)], moving_view.rgb, 8.0)
    known = first.depth > 0
    # Another window is the unit then; converged, both are the same.
    assert torch.allclose(first.depth[known], second.depth[known], rtol=0.02)


def test_a_frame_without_a_window_is_named(moving_view, make_windows, as_users_run_it):
    windows = make_windows(moving_view, Corruption(), starts=(0, 8))
    with pytest.raises(AlignmentError, match="No window covers frame 6 of 14"):
        align_windows(windows, moving_view.rgb, 8.0)


def test_no_window_at_all_is_refused(moving_view, as_users_run_it):
    with pytest.raises(AlignmentError, match="no window"):
        align_windows([], moving_view.rgb, 8.0)


def test_disparity_that_contradicts_the_points_is_left_out(moving_view, make_windows, caplog):
    windows = make_windows(moving_view, Corruption(outlier_share=0.0))
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(windows[1].disparity.shape, generator=generator)
    windows[1] = replace(windows[1], disparity=noise.pow(8) * 50 + 0.06)
    with caplog.at_level(logging.WARNING):
        result = align_windows(windows, moving_view.rgb, 8.0)
    used = [w.disparity_used for w in result.report.windows]
    if result.report.windows[1].disparity_share < 0.3:
        assert used == [True, False, True, True]
        assert "disparity of window 1" in caplog.text
    else:
        pytest.fail(f"share {result.report.windows[1].disparity_share}")


def test_rays_that_turn_otherwise_are_left_out(moving_view, make_windows, errors_of, caplog):
    windows = make_windows(moving_view, Corruption(outlier_share=0.0))
    rays = windows[2].rays
    # Every second frame is mirrored in time: jumps of several degrees.
    windows[2] = replace(
        windows[2],
        rays=replace(rays, directions=rays.directions[[0, 5, 1, 4, 2, 3]]),
    )
    with caplog.at_level(logging.WARNING):
        result = align_windows(windows, moving_view.rgb, 8.0)
    assert [w.rays_used for w in result.report.windows] == [True, True, False, True]
    assert "ray cameras of window 2 turn differently" in caplog.text
    assert errors_of(result, moving_view).turn_deg < 0.5


def test_what_is_left_out_of_many_windows_is_said_in_one_line(moving_view, make_windows, caplog):
    windows = make_windows(moving_view, Corruption(outlier_share=0.0))
    settings = AlignmentSettings(max_ray_error_deg=0.0, max_iterations=1)
    with caplog.at_level(logging.WARNING):
        align_windows(windows, moving_view.rgb, 8.0, settings=settings)
    (told,) = [m for m in caplog.messages if "ray cameras" in m]
    assert told.startswith("The ray cameras of 4 of 4 windows (0, 1, 2, 3) turn differently, by 0.")


def test_points_that_no_camera_sees_keep_a_believable_focal_length(moving_view, make_windows):
    """What is farther looks larger: without bounds the focal length goes to 26 image widths."""
    height, width = moving_view.rgb.shape[1:3]
    across = (pixel_centers(height, width) - torch.tensor([width / 2, height / 2])) / width
    generator = torch.Generator().manual_seed(0)
    windows = []
    for window in make_windows(moving_view, Corruption()):
        depth = torch.rand((window.num_frames, height, width, 1), generator=generator)
        points = torch.cat([across * (1.3 - depth), depth], dim=-1)
        valid = torch.ones_like(window.valid)
        windows.append(replace(window, points=points, valid=valid, disparity=None, rays=None))
    settings = AlignmentSettings(max_iterations=150)
    result = align_windows(windows, moving_view.rgb, 8.0, settings=settings)
    assert 0.2 * width <= result.report.focal_px <= 10 * width * (1 + 1e-9)
    assert result.depth.isfinite().all()
