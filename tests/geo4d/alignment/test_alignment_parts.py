"""The pieces of the alignment, each against a slow or exact answer."""

import math
from dataclasses import replace

import pytest
import torch

from more4d_backend.geo4d.alignment import AlignmentSettings
from more4d_backend.geo4d.alignment.adjustment import (
    _linearize,
    _moved,
    _Problem,
    _window_centers,
    term_weights,
)
from more4d_backend.geo4d.alignment.block_solver import System, layout_of
from more4d_backend.geo4d.alignment.chaining import align_trajectories, robust_similarity
from more4d_backend.geo4d.alignment.depths import NoiseWidths, Start, median_depth, robust_depth
from more4d_backend.geo4d.alignment.disparities import fit_lines, share_within
from more4d_backend.geo4d.alignment.initial import start_from_points, with_relative_weights
from more4d_backend.geo4d.alignment.pixel_terms import _point_basis, _sums
from more4d_backend.geo4d.alignment.rotations import (
    mean_rotation,
    rotation_from_vector,
    vector_from_rotation,
)
from more4d_backend.geo4d.alignment.samples import (
    at_pixels,
    cover_of,
    sample_bytes,
    take_samples,
)
from more4d_backend.geo4d.alignment.unknowns import frame_samples
from more4d_backend.geo4d.alignment.window_cameras import find_window_cameras
from more4d_backend.geo4d.synthetic_windows import Corruption
from more4d_backend.geometry import pixel_centers


@pytest.fixture(scope="module")
def problem(moving_view, make_windows):
    """Noisy windows at their start, as the adjustment sees them."""
    settings = AlignmentSettings(pixels_per_frame=300)
    windows = make_windows(moving_view, Corruption(outlier_share=0.0))
    samples = take_samples(windows, settings, torch.device("cpu"))
    start, _ = start_from_points(samples)
    samples, _ = with_relative_weights(samples, start, settings)
    parts = [frame_samples(samples, frames) for frames in samples.chunks]
    problem = _Problem(
        samples=samples,
        weights=term_weights(samples, start, settings),
        frames=samples.chunks,
        parts=parts,
        rays_count=torch.zeros(4, dtype=torch.bool),
        settings=settings,
        layout=layout_of(samples.cover),
        pivots=_window_centers(samples),
    )
    return problem, start


def settled(problem, unknowns):
    """Linearised where every depth is at its best."""
    for _ in range(8):
        state = _linearize(problem, unknowns, None)
        unknowns = state.unknowns
    return state


def test_the_gradient_is_that_of_the_loss(problem):
    """Along random directions of all unknowns, against finite differences of the loss itself."""
    problem, start = problem
    state = settled(problem, start)
    generator = torch.Generator().manual_seed(0)
    size = state.system.gradient.shape
    for _ in range(4):
        step = 0.01 * torch.randn(size, generator=generator, dtype=torch.float64)
        focal = 0.01 * torch.randn((), generator=generator, dtype=torch.float64)
        used = torch.zeros(size, dtype=torch.bool)
        used[problem.layout.camera.flatten()] = True
        used[problem.layout.window.flatten()] = True
        step = step * used
        losses = [
            settled(problem, _moved(problem, state.unknowns, h * step, h * focal)).losses.total
            for h in (0.05, -0.05)
        ]
        expected = (losses[0] - losses[1]) / 0.1
        found = float(state.system.gradient @ step + state.system.corner_gradient * focal)
        # float32 sums; measured within 1 %.
        assert found == pytest.approx(expected, rel=0.03, abs=2e-5)


def test_sums_over_pixels_are_those_of_the_equations_written_out():
    """Normal equations of one frame, every pixel's depth eliminated by hand (float64)."""
    generator = torch.Generator().manual_seed(0)

    def positive(*shape):
        return 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)

    slots, pixels, widths = 3, 7, NoiseWidths(point=0.3, disparity=0.2)
    depth, rays = positive(1, pixels), positive(pixels, 3)
    rays[:, 2] = 1
    start = Start(depth=depth, point_unit=depth[:, None], disparity_unit=1 / depth[:, None])
    points, disparity = positive(1, slots, pixels, 3), positive(1, slots, pixels)
    of_point, of_disparity = positive(2, 1, slots, pixels)
    found = _sums(points, of_point, disparity, of_disparity, start, rays, widths)

    d, fused = depth[0], depth[0, :, None] * rays
    away, error = fused - points[0], 1 / d - disparity[0]
    w = of_point[0] / ((away.norm(dim=-1) / d).clamp_min(0.3) * d.square())
    v = of_disparity[0] / (error.abs() * d).clamp_min(0.2) * d.square()
    moment = torch.cat([fused, torch.ones(pixels, 1, dtype=torch.float64)], dim=-1)
    by_point = torch.einsum("pa,aic->pic", moment, _point_basis())
    by_line = torch.stack([-1 / d, -torch.ones_like(d)], dim=-1)[:, None]
    # All residuals of a pixel: of each slot three of its point and one of its disparity.
    jacobian = torch.zeros(pixels, slots, 4, slots, 10, dtype=torch.float64)
    for slot in range(slots):
        jacobian[:, slot, :3, slot, :8], jacobian[:, slot, 3:, slot, 8:] = by_point, by_line
    by_depth = torch.cat([fused, -1 / d[:, None]], dim=-1)[:, None].expand(-1, slots, -1)
    residual = torch.cat([away, error[..., None]], dim=-1).transpose(0, 1)
    weights = torch.stack([w, w, w, v], dim=-1).transpose(0, 1).flatten(1)
    j, k, r = jacobian.flatten(3).flatten(1, 2), by_depth.flatten(1), residual.flatten(1)
    lost = torch.einsum("pa,pac,pa->pc", weights, j, k)
    power = (weights * k.square()).sum(1, keepdim=True)
    normal = torch.einsum("pa,pac,pad->cd", weights, j, j) - lost.T @ (lost / power)
    pull = (weights * k * r).sum(1, keepdim=True) / power
    gradient = torch.einsum("pa,pac,pa->c", weights, j, r) - (lost * pull).sum(0)
    torch.testing.assert_close(found.normal[0].flatten(2).flatten(0, 1), normal, atol=1e-9, rtol=0)
    torch.testing.assert_close(found.gradient[0].flatten(), gradient, atol=1e-9, rtol=0)


def test_a_video_longer_than_a_chunk_gives_the_same_system(problem):
    problem, start = problem
    whole = _linearize(problem, start, None)
    short = [slice(at, min(at + 5, 14)) for at in range(0, 14, 5)]
    parts = [frame_samples(problem.samples, frames) for frames in short]
    split = _linearize(replace(problem, frames=short, parts=parts), start, None)
    assert torch.allclose(whole.system.diagonal, split.system.diagonal, rtol=1e-4, atol=1e-6)
    assert torch.allclose(whole.system.gradient, split.system.gradient, rtol=1e-3, atol=1e-6)


def test_the_block_solver_agrees_with_a_dense_one(problem):
    problem, start = problem
    system = _linearize(problem, start, None).system
    system.fix(problem.layout.window[0, :7])
    step, focal = system.solve(1e-3)
    blocks, size = problem.layout.num_blocks, problem.layout.block_size
    assert blocks == 3
    dense = torch.zeros(blocks * size + 1, blocks * size + 1, dtype=torch.float64)
    for b in range(blocks):
        here = slice(b * size, (b + 1) * size)
        dense[here, here] = system.diagonal.view(blocks, size, size)[b]
        if b:
            before = slice((b - 1) * size, b * size)
            dense[here, before] = system.below.view(blocks, size, size)[b]
            dense[before, here] = dense[here, before].T
    dense[-1, :-1] = dense[:-1, -1] = system.border
    dense[-1, -1] = system.corner
    strength = dense.diagonal().clone()
    floor = 1e-10 * strength[:-1].view(blocks, size).median().clamp_min(1e-12)
    strength[:-1] += floor / 1e-3 + (strength[:-1] <= floor) / 1e-3
    dense += torch.diag(1e-3 * strength)
    right = -torch.cat([system.gradient, system.corner_gradient[None]])
    expected = torch.linalg.solve(dense, right)
    assert torch.allclose(step, expected[:-1], atol=1e-8)
    assert torch.allclose(focal, expected[-1], atol=1e-8)


def test_windows_far_apart_do_not_touch():
    """Every entry that is added lies on the diagonal blocks or next to them."""
    windows = [(0, 16), (4, 16), (40, 16), (24, 16), (56, 5), (12, 16)]
    cover = cover_of([_blank(first, length) for first, length in windows])
    layout = layout_of(cover)
    size = layout.block_size
    for window, (first, length) in enumerate(windows):
        for frame in range(first, first + length):
            apart = layout.camera[frame, 0] // size - layout.window[window, 0] // size
            assert abs(int(apart)) <= 1
    system = System(layout)
    system.add(layout.camera[[5]], torch.eye(6, dtype=torch.float64)[None])
    assert float(system.diagonal.sum()) == 6


def _blank(first, length):
    from more4d_backend.geo4d.predictions import WindowPrediction

    return WindowPrediction(
        first_frame=first,
        points=torch.zeros(length, 2, 2, 3),
        valid=torch.ones(length, 2, 2, dtype=torch.bool),
    )


def test_cameras_of_windows_are_found_from_their_points(moving_view, make_windows):
    corruption = Corruption(noise=0.0, outlier_share=0.0, similarity=False)
    windows = make_windows(moving_view, corruption)
    samples = take_samples(windows, AlignmentSettings(), torch.device("cpu"))
    found = find_window_cameras(samples)
    assert found.focal_px == pytest.approx(float(moving_view.cameras.intrinsics[0, 0, 0]), rel=1e-3)
    for number, window in enumerate(windows):
        frames = slice(window.first_frame, window.last_frame + 1)
        world_to_camera = moving_view.cameras.world_to_camera[frames].double()
        expected = world_to_camera @ torch.linalg.inv(world_to_camera[0])
        assert torch.allclose(found.window_to_camera[number], expected, atol=5e-3)


def test_rotations_and_vectors_are_inverse():
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    vector = vector / vector.norm(dim=1, keepdim=True) * torch.linspace(0, 3.1, 50)[:, None]
    back = vector_from_rotation(rotation_from_vector(vector))
    assert torch.allclose(back, vector, atol=1e-7)


def test_the_mean_of_a_rotation_and_its_inverse_is_none():
    rotation = rotation_from_vector(torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64))
    both = torch.stack([rotation, rotation.T])
    mean = mean_rotation(both, torch.ones(2, dtype=torch.float64))
    assert torch.allclose(mean, torch.eye(3, dtype=torch.float64), atol=1e-12)


def test_lines_are_found_in_spite_of_outliers_and_only_where_weights_are():
    generator = torch.Generator().manual_seed(0)
    predicted = torch.rand(3, 2000, generator=generator)
    scale, shift = torch.tensor([2.0, 0.5, 7.0]), torch.tensor([0.1, 0.3, -0.2])
    known = scale[:, None] * predicted + shift[:, None]
    known[:, :200] = 20 * torch.rand(3, 200, generator=generator)
    weights = torch.ones(3, 2000)
    known[:, 200:800], weights[:, 200:800] = -5, 0
    found = fit_lines(predicted, known, weights)
    assert torch.allclose(found[0], scale, rtol=2e-3)
    assert torch.allclose(found[1], shift, atol=5e-3)


def test_noise_does_not_flatten_the_line():
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(1, 50_000, generator=generator)
    predicted = true + 0.2 * torch.randn(true.shape, generator=generator)
    scale, _ = fit_lines(predicted, 3 * true, torch.ones_like(true))
    # Least squares the other way round finds 2.0.
    assert float(scale) == pytest.approx(3, rel=0.02)


def test_lines_without_spread_or_weight_have_safe_answers():
    predicted = torch.rand(3, 100)
    known = torch.full((3, 100), 2.0)
    weights = torch.tensor([1.0, 0.0, 1.0])[:, None].expand(3, 100)
    scale, shift = fit_lines(predicted, known, weights)
    assert scale.tolist() == [1.0, 1.0, 1.0]
    assert float(shift[1]) == 0
    assert float((scale[0] * predicted[0] + shift[0]).median()) == pytest.approx(2.0, abs=0.1)


def test_the_share_within_a_factor_counts_both_sides():
    fitted = torch.tensor([[1.0, 1.3, 0.7, 1.2, 9.0]])
    weights = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0]])
    assert share_within(fitted, torch.ones(1, 5), weights).tolist() == [0.5]


def test_noise_on_both_sides_does_not_shrink_a_similarity():
    generator = torch.Generator().manual_seed(1)
    source = torch.randn(2, 20_000, 3, generator=generator)
    turn = rotation_from_vector(torch.tensor([0.2, 0.4, -0.3]))
    target = 2.5 * source @ turn.T + torch.tensor([1.0, 2.0, 3.0])
    source = source + 0.3 * torch.randn(source.shape, generator=generator)
    target = target + 2.5 * 0.3 * torch.randn(source.shape, generator=generator)
    scale, rotation, shift = robust_similarity(source, target, torch.ones(2, 20_000))
    # Least squares would give 2.3.
    assert torch.allclose(scale, torch.full((2,), 2.5), rtol=0.01)
    assert torch.allclose(rotation, turn.expand(2, 3, 3), atol=0.01)
    assert torch.allclose(shift, torch.tensor([1.0, 2.0, 3.0]).expand(2, 3), atol=0.03)


def test_a_trajectory_without_baseline_keeps_the_usual_scale():
    center = torch.ones(6, 3, dtype=torch.float64)
    rotation = torch.eye(3, dtype=torch.float64).expand(6, 3, 3)
    usual = torch.tensor(0.7, dtype=torch.float64)
    scale, turn, shift = align_trajectories(rotation, center, rotation, 3 * center, usual)
    assert float(scale) == pytest.approx(0.7)
    assert torch.allclose(scale * turn @ center[0] + shift, 3 * center[0])


def test_depth_is_fused_from_points_and_disparity_without_the_outlier():
    rays = torch.tensor([[0.2, -0.1, 1.0]])
    points = torch.stack([2.0 * rays, 2.1 * rays, 9.0 * rays])[None]  # frame slot pixel 3
    weights = torch.ones(1, 3, 1)
    depth = robust_depth(points, weights, rays, NoiseWidths(point=0.05), rounds=30)
    assert 2.0 <= float(depth) < 2.15
    disparity = torch.full((1, 3, 1), 1 / 2.05)
    both = robust_depth(
        points, weights, rays, NoiseWidths(), disparity=disparity, disparity_weights=2 * weights
    )
    assert float(both) == pytest.approx(2.05, abs=0.01)


def test_depths_behind_the_camera_have_no_say():
    depths = torch.tensor([-3.0, -2.0, -1.0, 4.0]).view(1, 4, 1)
    assert float(median_depth(depths, torch.ones(1, 4, 1))) == 4


def test_where_nothing_is_known_the_depth_is_1():
    rays = torch.tensor([[0.0, 0.0, 1.0]])
    depth = robust_depth(torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1), rays, NoiseWidths())
    assert float(depth) == 1


def test_smaller_images_are_read_at_the_same_place_of_the_scene():
    centers = pixel_centers(8, 12).reshape(-1, 2)
    large = (centers[:, 0] + 2 * centers[:, 1]).reshape(1, 8, 12)
    small = torch.nn.functional.avg_pool2d(large[:, None], 2)[:, 0]
    assert torch.equal(at_pixels(large, centers, 8, 12), large.flatten(1))
    inside = ((centers > 1) & (centers < torch.tensor([11.0, 7.0]))).all(1)
    read = at_pixels(small, centers, 8, 12)
    assert torch.allclose(read[:, inside], large.flatten(1)[:, inside], atol=1e-4)


def test_a_long_video_is_solved_in_linear_memory():
    cover = cover_of([_blank(first, 16) for first in range(0, 1985, 4)])
    layout = layout_of(cover)
    assert layout.num_blocks == math.ceil(cover.num_frames / 16)
    assert layout.block_size == 16 * 6 + 4 * 9


@pytest.mark.parametrize("pixels_per_frame", [1, 100, 2500])
def test_the_memory_of_samples_is_counted_from_as_many_as_are_taken(
    moving_view, make_windows, pixels_per_frame
):
    settings = AlignmentSettings(pixels_per_frame=pixels_per_frame)
    samples = take_samples(make_windows(moving_view, Corruption()), settings, torch.device("cpu"))
    # 72 bytes with what is made of them, of which they have 28 themselves.
    held = (samples.points, samples.weights, samples.sigma, samples.disparity,
            samples.disparity_weights)  # fmt: skip
    assert 4 * sample_bytes(6, (30, 40), settings) == sum(part.nbytes for part in held) * 72 // 28
