"""Edge snapping: blurred motion becomes sharp again where image or depth say so."""

import pytest
import torch
from torch.nn.functional import avg_pool2d, pad

from more4d_backend.motion import OWN_MOTION, normalize_motion
from more4d_backend.shapes import ShapeError
from more4d_backend.strag.edge_snapping import (
    EdgeSnapping,
    snap_depth_to_edges,
    snap_motion_to_edges,
)
from more4d_backend.synthetic import make_world


def blurred(motion):
    """Average over 5x5 pixels, as a network that cannot hold edges would."""
    frames = pad(motion.permute(0, 3, 1, 2), (2, 2, 2, 2), mode="replicate")
    return avg_pool2d(frames, 5, stride=1).permute(0, 2, 3, 1)


def relative_error(motion, truth):
    return float((motion - truth).abs().sum() / truth.abs().sum())


@pytest.fixture
def square():
    """A square that moves right before a still wall: (motion, image, depth)."""
    motion = torch.zeros(5, 48, 64, 3)
    motion[:, 16:32, 20:40, 0] = torch.linspace(0, 0.2, 5)[:, None, None]
    image = torch.full((48, 64, 3), 0.3)
    image[16:32, 20:40] = 0.9
    depth = torch.full((48, 64), 4.0)
    depth[16:32, 20:40] = 2.0
    return motion, image, depth


def test_blurred_silhouettes_become_sharp(square):
    motion, image, depth = square
    soft = blurred(motion)
    before = relative_error(soft, motion)
    after = relative_error(snap_motion_to_edges(soft, image, depth), motion)
    assert before > 0.25
    assert after < 0.25 * before  # measured 0.26 -> 0.04


@pytest.mark.parametrize("guide", ["color", "depth"])
def test_one_of_the_two_guides_is_enough(square, guide):
    motion, image, depth = square
    flat = {"color": (image, torch.ones_like(depth)), "depth": (torch.zeros_like(image), depth)}
    soft = blurred(motion)
    snapped = snap_motion_to_edges(soft, *flat[guide])
    assert relative_error(snapped, motion) < 0.3 * relative_error(soft, motion)


def test_sharp_motion_is_kept(square):
    motion, image, depth = square
    snapped = snap_motion_to_edges(motion, image, depth)
    torch.testing.assert_close(snapped, motion, atol=1e-6, rtol=0)


def test_pixels_far_from_any_step_keep_their_motion_to_the_last_bit(square):
    motion, image, depth = square
    noisy = motion + 1e-3 * torch.randn(motion.shape, generator=torch.Generator().manual_seed(0))
    snapped = snap_motion_to_edges(noisy, image, depth)
    torch.testing.assert_close(snapped[:, :10], noisy[:, :10], atol=0, rtol=0)
    assert (snapped[:, 16:32, 20:40] != noisy[:, 16:32, 20:40]).any()


def test_motion_is_scaled_with_its_input(square):
    motion, image, depth = square
    soft = blurred(motion)
    torch.testing.assert_close(
        snap_motion_to_edges(1e-3 * soft, image, depth),
        1e-3 * snap_motion_to_edges(soft, image, depth),
    )


def test_every_weight_is_the_product_of_four_and_stays_inside_the_image():
    generator = torch.Generator().manual_seed(0)
    motion = torch.randn(2, 5, 6, 3, generator=generator)
    image = torch.rand(5, 6, 3, generator=generator)
    depth = 1 + 0.1 * torch.rand(5, 6, generator=generator)
    s = EdgeSnapping(radius_px=2)
    size = motion.square().sum((0, 3))
    typical = size.square().sum() / size.sum()
    places = [(y, x) for y in range(5) for x in range(6)]

    def unsteadiness(y, x):
        near = [(v, u) for v, u in places if abs(v - y) + abs(u - x) == 1]
        return max((motion[:, v, u] - motion[:, y, x]).square().sum() for v, u in near) / typical

    def weight(y, x, v, u):
        far = ((v - y) ** 2 + (u - x) ** 2) / s.distance_sigma_px**2
        color = (image[v, u] - image[y, x]).square().sum() / s.color_sigma**2
        level = ((depth[v, u] / depth[y, x]).log() / s.depth_sigma) ** 2
        return torch.exp(-(far + color + level) / 2) / (1 + unsteadiness(v, u) / s.steady**2)

    snapped = snap_motion_to_edges(motion, image, depth, s)
    for y, x in [(0, 0), (2, 3), (4, 5)]:
        near = [(v, u) for v, u in places if abs(v - y) <= 2 and abs(u - x) <= 2]
        weights = [weight(y, x, v, u) for v, u in near]
        mean = sum(w * motion[:, v, u] for w, (v, u) in zip(weights, near, strict=True))
        torch.testing.assert_close(snapped[:, y, x], mean / sum(weights), atol=1e-5, rtol=1e-5)


def test_the_unit_of_depth_does_not_matter(square):
    motion, image, depth = square
    soft = blurred(motion)
    torch.testing.assert_close(
        snap_motion_to_edges(soft, image, 1000 * depth), snap_motion_to_edges(soft, image, depth)
    )


def test_stillness_stays_still(square):
    _, image, depth = square
    still = torch.zeros(3, 48, 64, 3)
    assert not snap_motion_to_edges(still, image, depth).any()


def test_missing_depth_does_not_spread_nan(square):
    motion, image, depth = square
    holes = depth.clone()
    holes[10:36, 30:34] = torch.tensor([float("nan"), float("inf"), 0.0, -1.0])
    snapped = snap_motion_to_edges(blurred(motion), image, holes)
    assert snapped.isfinite().all()
    assert snap_motion_to_edges(blurred(motion), image, 0 * depth).isfinite().all()


def test_a_mean_of_neighbours_never_leaves_their_range(square):
    motion, image, depth = square
    soft = blurred(motion)
    snapped = snap_motion_to_edges(soft, image, depth)
    assert snapped.max() <= soft.max() + 1e-6
    assert snapped.min() >= soft.min() - 1e-6


def test_worlds_with_textures_lose_a_third_of_the_error():
    before, after, size = 0.0, 0.0, 0.0
    for seed in range(4):
        world = make_world(seed)
        cameras = world.cameras(9, 96, 128)
        tracks, view = world.tracks(cameras), world.view(cameras.frames([0]))
        motion = normalize_motion(tracks.positions, cameras, OWN_MOTION)
        motion = motion.reshape(9, 96, 128, 3).float()
        soft = blurred(motion)
        snapped = snap_motion_to_edges(soft, view.rgb[0], view.depth[0])
        before += float((soft - motion).abs().sum())
        after += float((snapped - motion).abs().sum())
        size += float(motion.abs().sum())
    assert before / size > 0.15
    assert after < 0.67 * before


def test_half_precision_comes_back_as_it_came(square):
    motion, image, depth = square
    assert snap_motion_to_edges(motion.half(), image, depth).dtype == torch.float16


def test_sizes_that_differ_are_refused(square, as_users_run_it):
    motion, image, depth = square
    with pytest.raises(ShapeError, match="depth has shape"):
        snap_motion_to_edges(motion, image, depth[:-1])


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="radius"):
        EdgeSnapping(radius_px=0)
    with pytest.raises(ValueError, match="positive"):
        EdgeSnapping(color_sigma=0)


def step_of_depth(height=24, width=40, edge=20):
    """A near thing on the left before a wall on the right, and its picture."""
    near = torch.arange(width) < edge
    depth = torch.where(near, 2.0, 5.0).expand(height, width).clone()
    image = torch.where(near, 0.9, 0.2)[:, None].expand(height, width, 3).clone()
    return depth, image


def test_blurred_depth_is_sharp_again_where_the_picture_has_its_edge():
    depth, image = step_of_depth()
    weights = torch.ones(1, 1, 1, 7) / 7
    padded = pad(depth.log()[None, None], (3, 3, 0, 0), mode="replicate")
    blurred = torch.nn.functional.conv2d(padded, weights)[0, 0].exp()
    error, left = ((d - depth).abs().sum() for d in (blurred, snap_depth_to_edges(blurred, image)))
    assert left < 0.3 * error  # measured: 0.14


def test_sharpening_depth_knows_no_units():
    depth, image = step_of_depth()
    depth = depth * (1 + 0.1 * torch.rand(depth.shape, generator=torch.Generator().manual_seed(0)))
    metres, feet = snap_depth_to_edges(depth, image), snap_depth_to_edges(3.28 * depth, image)
    torch.testing.assert_close(feet, 3.28 * metres)
    assert not torch.equal(metres, depth)


def test_depth_without_steps_stays_as_it_is():
    depth = torch.full((24, 40), 3.0)
    image = torch.rand(24, 40, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(snap_depth_to_edges(depth, image), depth)
