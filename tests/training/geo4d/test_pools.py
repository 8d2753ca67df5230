"""Pools of clips and latents: variants of a clip, time limits, seeds."""

from dataclasses import replace

import pytest
import torch

from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.geo4d.vae import Geo4DVAE
from training.geo4d.clips import batch_images, stack_clips
from training.geo4d.pools import ClipPool, LatentPool, drawn_clips, held_out_clips, varied
from training.geo4d.tiny_settings import HELD_OUT, TinyGeo4DTraining
from training.procedural.clips import ClipSettings, procedural_clip

SMALL = ClipSettings(size_hw=(16, 32), num_frames=16, samples=1)


@pytest.fixture(scope="module")
def batch():
    return stack_clips([procedural_clip(seed, SMALL) for seed in (5, 7)])


@pytest.fixture
def training():
    return TinyGeo4DTraining(
        clips=SMALL, pool_size=3, variants=3, device="cpu", precision="fp32", workers=0
    )


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_variant_is_a_true_clip_of_another_world(batch, mirrored):
    images = batch_images(batch)
    for seed in range(4):  # backwards or not
        with torch.autocast("cpu", torch.bfloat16):
            other = varied(batch, torch.Generator().manual_seed(seed), mirrored=mirrored)
        again = batch_images(other)
        backwards = not torch.equal(other.intrinsics, batch.intrinsics) or not torch.equal(
            other.depth, batch.depth.flip(3) if mirrored else batch.depth
        )
        if backwards:
            continue
        expected = images.points.flip(-1) if mirrored else images.points
        sign = torch.tensor([-1.0, 1.0, 1.0]) if mirrored else torch.ones(3)
        valid = other.valid[:, :, None].expand_as(expected)
        expected = expected * sign[:, None, None]
        torch.testing.assert_close(again.points[valid], expected[valid], atol=1e-4, rtol=0)
        rays = images.ray_directions.flip(-1) if mirrored else images.ray_directions
        rays = rays * sign[:, None, None]
        torch.testing.assert_close(again.ray_directions, rays, atol=1e-5, rtol=0)
        return
    pytest.fail("four seeds never gave a clip that runs forwards")


def test_another_seed_draws_other_clips_and_held_out_ones_are_apart(training):
    first = replace(training, pool_size=1)
    one, two = (next(drawn_clips(t)) for t in (first, replace(first, seed=2)))
    assert not torch.equal(one.video, two.video)
    (held_out,) = held_out_clips(first, 16, 1)
    assert held_out.names == (f"procedural-clip-{HELD_OUT:09d}",)


def test_a_pool_gives_back_the_windows_of_the_clips_that_were_drawn(training):
    longer = replace(training, clips=replace(SMALL, num_frames=20))
    pool = ClipPool.drawn(longer, 16)
    assert len(pool) == 3
    one = next(iter(drawn_clips(longer)))
    chosen = pool.windows(torch.tensor([2, 0]), torch.tensor([3, 0]))
    assert chosen.names == (one.names[2], one.names[0])
    assert torch.equal(chosen.video[0], one.video[2, 3:19])
    assert torch.equal(chosen.world_to_camera[1], one.world_to_camera[0, :16])
    assert chosen.depth.dtype == torch.float32
    assert [len(part) for part in pool.in_parts(2)] == [2]


def test_windows_begin_anywhere_in_their_clips_and_end_in_them(training):
    pool = ClipPool.drawn(replace(training, clips=replace(SMALL, num_frames=18)), 16)
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(20):
        window = pool.somewhere(torch.tensor([1]), generator)
        first = [
            i for i in range(3) if torch.equal(window.video[0], pool.batch.video[1, i : i + 16])
        ]
        assert len(first) == 1
        seen.update(first)
    assert seen == {0, 1, 2}


def test_held_out_clips_are_one_window_long(training):
    longer = replace(training, clips=replace(SMALL, num_frames=20))
    assert held_out_clips(longer, 16, 1)[0].depth.shape[1] == 16


def test_without_time_there_is_one_batch_of_clips_and_no_variant_of_them(training):
    torch.manual_seed(0)
    vae, generator = Geo4DVAE(GEO4D_SIZES["toy"].vae).eval(), torch.Generator().manual_seed(0)
    pool = ClipPool.drawn(training, 16, seconds=0)
    assert len(pool) == 3  # they come sixteen at a time
    hurried = LatentPool.encoded(vae, pool, training, generator, seconds=0)
    whole = LatentPool.encoded(vae, pool, training, generator)
    assert (len(hurried), len(whole)) == (3, 9)
    assert torch.equal(hurried.geometry, whole.geometry[:3])
    assert not torch.equal(whole.geometry[:3], whole.geometry[3:6])


def test_encoding_in_half_precision_leaves_the_vae_as_it_is(training):
    torch.manual_seed(0)
    vae, generator = Geo4DVAE(GEO4D_SIZES["toy"].vae).eval(), torch.Generator().manual_seed(0)
    pool = ClipPool.drawn(training, 16)
    exact = LatentPool.encoded(vae, pool, replace(training, variants=1), generator)
    halved = replace(training, variants=1, precision="bf16")
    rounded = LatentPool.encoded(vae, pool, halved, generator)
    assert next(vae.parameters()).dtype == torch.float32
    assert not torch.equal(rounded.geometry, exact.geometry)
    # Of a tenth of their deviation: those of an untrained network are hardly larger than rounding.
    error = (rounded.geometry - exact.geometry).float().square().mean().sqrt()
    assert error < 0.2 * exact.geometry.float().std()


def test_the_variance_is_that_between_windows():
    torch.manual_seed(0)
    shared = torch.randn(16, 4, 2, 2) * 100
    geometry = torch.randn(64, 16, 4, 2, 2) * 3 + shared
    pool = LatentPool(video=torch.zeros(64, 4, 4, 2, 2), geometry=geometry)
    # 1024 values for each of 16 places and frames: 0.4 is four standard deviations of the mean.
    torch.testing.assert_close(pool.variance(), torch.full((16,), 9.0), atol=1.6, rtol=0)
    # What they have in common: the mean of 64 values of deviation 3, times five.
    torch.testing.assert_close(pool.mean(), shared, atol=5 * 3 / 8, rtol=0)
