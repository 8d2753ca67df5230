from dataclasses import replace

import torch

from training.pictures import draw_pictures
from training.procedural import procedural_sample, procedural_tiny
from training.samples import SampleSize


def test_a_picture_is_frame_0_of_the_sample_of_its_seed():
    settings = replace(procedural_tiny(), size=SampleSize(num_frames=5, height=32, width=48))
    pool = draw_pictures(settings, first_seed=7, count=3)
    assert pool.images.shape == (3, 3, 32, 48)
    for number in range(3):
        sample = procedural_sample(7 + number, settings)
        assert torch.equal(pool.images[number], sample.video[0].permute(2, 0, 1))
        assert torch.equal(pool.depth[number], sample.depth.half())
        share = sample.cameras.intrinsics[0, 0, 0] / 48
        torch.testing.assert_close(pool.log_focal[number].exp(), share)


def test_pictures_do_not_depend_on_the_number_of_processes():
    settings = replace(procedural_tiny(), size=SampleSize(num_frames=5, height=32, width=48))
    alone, two = (draw_pictures(settings, first_seed=0, count=70, num_workers=n) for n in (0, 2))
    assert torch.equal(alone.images, two.images)
    assert torch.equal(alone.log_focal, two.log_focal)
