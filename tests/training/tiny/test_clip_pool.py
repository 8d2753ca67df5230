from dataclasses import replace

import pytest
import torch
from einops import rearrange

from more4d_backend.motion import normalize_motion
from more4d_backend.strag.profile import OWN
from training.data.samples import SampleSize, stack_samples
from training.procedural.dataset import procedural_sample, procedural_tiny
from training.procedural.pictures import draw_pictures
from training.tiny.clip_pool import ClipPool

SMALL = SampleSize(num_frames=5, height=16, width=16)


@pytest.fixture
def pool():
    motion = torch.zeros(2, 3, 17, 48, 64)
    ramp = torch.arange(17.0)[None, :, None, None]
    motion[:, :, :, 20:24, 40:44] = torch.tensor([0.1, 0.2, -0.3]).view(3, 1, 1, 1) * ramp
    video = torch.arange(17, dtype=torch.uint8).view(1, 1, 17, 1, 1).expand(2, 3, 17, 48, 64)
    depth = torch.linspace(-1, 1, 64).expand(2, 3, 1, 48, 64)
    image = torch.full((2, 3, 1, 48, 64), 200, dtype=torch.uint8)
    return ClipPool(motion=motion.half(), image=image, depth_picture=depth.half(), video=video)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_crops_of_motion_hold_what_moves(pool):
    crops = pool.motion_crops(40, SMALL, generator())
    assert crops.shape == (40, 3, 5, 16, 16)
    assert (crops.abs().amax((1, 2, 3, 4)) > 0).all()


def test_crops_of_motion_begin_at_rest_and_keep_their_proportions(pool):
    crops = pool.motion_crops(40, SMALL, generator())
    assert not crops[:, :, 0].any()
    size = crops.abs().amax((3, 4))
    torch.testing.assert_close(size[:, 1, -1], 2 * size[:, 0, -1], atol=2e-3, rtol=0)
    last = {round(v) for v in (size[:, 0, -1] * 10).tolist()}
    assert last == {4, 8, 12, 16}  # every first to fourth frame


def test_crops_of_motion_go_every_way(pool):
    crops = pool.motion_crops(64, SMALL, generator())
    signs = {tuple(s) for s in crops[:, :, -1].sum((-1, -2)).sign().int().tolist()}
    assert len(signs) == 8


def test_a_quarter_of_the_pictures_is_still_depth_and_a_quarter_still_images(pool):
    clips = pool.picture_crops(8, SMALL, generator())
    still = (clips == clips[:, :, :1]).flatten(1).all(1)
    assert still.tolist() == [True] * 4 + [False] * 4
    torch.testing.assert_close(clips[2:4], torch.full_like(clips[2:4], 200 / 127.5 - 1))
    assert clips.abs().max() <= 1


def test_halves_are_cut_under_autocast_to_bfloat16(pool):
    with torch.autocast("cpu", torch.bfloat16):
        assert pool.picture_crops(8, SMALL, generator()).dtype == torch.float32
        assert pool.motion_crops(8, SMALL, generator()).dtype == torch.float32


def test_a_pool_holds_the_motion_of_its_pictures_and_the_videos_of_its_samples():
    settings = replace(procedural_tiny(), size=SampleSize(num_frames=5, height=32, width=48))
    pictures = draw_pictures(settings, first_seed=7, count=3)
    samples = [procedural_sample(20 + n, settings) for n in range(2)]
    pool = ClipPool.filled(pictures, [stack_samples(samples)], OWN.motion)
    sample = procedural_sample(8, settings)
    true = normalize_motion(sample.positions(), sample.cameras, OWN.motion)
    true = rearrange(true, "f h w c -> c f h w")
    torch.testing.assert_close(pool.motion[1].float(), true, atol=5e-3, rtol=5e-3)
    assert torch.equal(pool.image[1, :, 0], sample.video[0].permute(2, 0, 1))
    assert torch.equal(pool.video[0], samples[0].video.permute(3, 0, 1, 2))
    assert samples[1].novel_video is not None
    assert torch.equal(pool.video[1], samples[1].novel_video.permute(3, 0, 1, 2))


def test_equal_seeds_cut_equal_parts(pool):
    first, second = (pool.motion_crops(6, SMALL, generator(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, pool.motion_crops(6, SMALL, generator(4)))


def test_whole_clips_come_whole(pool):
    whole = SampleSize(num_frames=17, height=48, width=64)
    crops = pool.motion_crops(3, whole, generator()).abs()
    torch.testing.assert_close(
        crops.sum((2, 3, 4)), pool.motion[:1].float().abs().sum((2, 3, 4)).expand(3, -1)
    )
