from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from more4d_backend.files import FileFormatError
from training.data.samples import SampleError, SampleSize
from training.data.sources import training_samples
from training.procedural.dataset import procedural_sample, procedural_tiny
from training.procedural.pictures import Pictures, PictureSamples, draw_pictures
from training.run.settings import DataSettings


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
    assert torch.equal(alone.movements, two.movements)
    assert alone.captions == two.captions


def test_a_picture_makes_the_sample_of_its_seed_but_for_later_frames():
    settings = replace(procedural_tiny(), size=SampleSize(num_frames=9, height=64, width=96))
    samples = PictureSamples(draw_pictures(settings, first_seed=3, count=4))
    for number in range(4):
        made, true = samples[number], procedural_sample(3 + number, settings)
        assert made.caption == true.caption
        assert made.fps == true.fps
        assert true.motion.abs().max() > 0.1
        # Depth is held in half precision: a thousandth of what is turned about a far point.
        torch.testing.assert_close(made.motion, true.motion, atol=3e-3, rtol=5e-3)
        assert not made.motion[:, true.motion.abs().amax((0, -1)) == 0].any()
        intrinsics = true.cameras.intrinsics
        torch.testing.assert_close(made.cameras.intrinsics, intrinsics, rtol=1e-5, atol=1e-3)
        assert torch.equal(made.video[8], true.video[0])


def test_pictures_come_back_from_their_files_in_order(tmp_path):
    settings = replace(procedural_tiny(), size=SampleSize(num_frames=5, height=32, width=48))
    for number in range(2):
        drawn = draw_pictures(settings, first_seed=2 * number, count=2)
        drawn.save(tmp_path / f"{number}.safetensors")
    read = Pictures.load(sorted(tmp_path.iterdir()))
    whole = draw_pictures(settings, first_seed=0, count=4)
    assert read.captions == whole.captions
    assert torch.equal(read.part, whole.part)
    assert torch.equal(read.movements, whole.movements)


def _drawn(path, **size):
    size = SampleSize(**({"num_frames": 5, "height": 32, "width": 48} | size))
    settings = replace(procedural_tiny(), size=size)
    draw_pictures(settings, first_seed=0, count=1).save(path)
    return path


def _cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def _of_a_network(path):
    save_file({"weight": torch.zeros(3)}, path, metadata={"format": "pt"})


def _one_tensor_less(path):
    tensors = load_file(path)
    del tensors["part"]
    save_file(tensors, path, metadata={"captions": '["A."]', "fps": "8"})


def _a_caption_too_many(path):
    save_file(load_file(path), path, metadata={"captions": '["A.", "B."]', "fps": "8"})


def _without_captions(path):
    save_file(load_file(path), path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_cut_short, "incomplete|Header|buffer"),
        (_of_a_network, "it holds format, weight"),
        (_one_tensor_less, "it holds captions, depth, fps, images"),
        (_a_caption_too_many, "2 captions for 1 images"),
        (_without_captions, "it holds depth"),
    ],
)
def test_a_file_that_holds_no_pictures_is_refused_by_its_name(tmp_path, spoil, message):
    _drawn(tmp_path / "a.safetensors")
    spoil(_drawn(tmp_path / "b.safetensors"))
    size = SampleSize(num_frames=5, height=32, width=48)
    settings = DataSettings(train=tmp_path, size=size)
    with pytest.raises(FileFormatError, match=message) as error:
        training_samples(settings, torch.device("cpu"), novel_views=False)
    assert str(tmp_path / "b.safetensors") in str(error.value)
    assert "training.train_tiny draw" in str(error.value)


def test_pictures_of_two_sizes_are_not_joined(tmp_path):
    paths = [_drawn(tmp_path / "a.safetensors"), _drawn(tmp_path / "b.safetensors", height=48)]
    with pytest.raises(FileFormatError, match=r"b\.safetensors holds .* \(48, 48, 5, "):
        Pictures.load(paths)


def test_no_file_of_pictures_is_an_error():
    with pytest.raises(SampleError, match="draw"):
        Pictures.load([])
