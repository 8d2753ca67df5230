from dataclasses import replace

import pytest
import torch

from more4d_backend.geometry import project
from training.data.samples import SampleError, SampleSize, check_sample, fit_sample, stack_samples


def test_positions_of_frame_0_project_to_the_pixel_centers(make_sample):
    sample = make_sample()
    pixels, depth = project(sample.positions()[0], sample.cameras.intrinsics[0])
    assert torch.allclose(depth, sample.depth)
    assert torch.allclose(pixels[0, 0], torch.tensor([0.5, 0.5]), atol=1e-4)
    assert torch.allclose(pixels[15, 31], torch.tensor([31.5, 15.5]), atol=1e-4)


def test_a_sample_is_a_scene_whose_motion_is_the_motion(make_sample):
    sample = make_sample()
    scene = sample.scene()
    # float16 motion added to float32 positions and taken off again.
    assert torch.allclose(
        scene.points.motion.reshape(5, 16, 32, 3), sample.motion.float(), atol=1e-6
    )
    assert scene.points.grid_hw == (16, 32)
    assert scene.fps == 8


def test_a_good_sample_passes(make_sample):
    check_sample(make_sample(novel=True))


def _with_nan(sample):
    motion = sample.motion.clone()
    motion[3, 4, 5, 1] = float("nan")
    return replace(sample, motion=motion)


def _with_infinite_motion(sample):
    motion = sample.motion.clone()
    motion[-1, -1, -1, -1] = float("-inf")
    return replace(sample, motion=motion)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_with_nan, "random-0000 has motion that is NaN or infinite"),
        (_with_infinite_motion, "random-0000 has motion that is NaN or infinite"),
        (lambda s: replace(s, motion=s.motion.float() / 0), "motion that is NaN or infinite"),
        (lambda s: replace(s, motion=s.motion + 1), "motion in frame 0"),
        (lambda s: replace(s, depth=s.depth * 0), "random-0000 has depth that is not"),
        (lambda s: replace(s, depth=s.depth / 0), "random-0000 has depth that is not"),
        (lambda s: replace(s, caption=" \n"), "random-0000 has no caption"),
        (lambda s: replace(s, name="../up"), "'../up'; expected letters"),
        (lambda s: replace(s, name="a.b"), "'a.b'; expected letters"),
        (lambda s: replace(s, fps=0.0), "fps 0.0"),
        (lambda s: replace(s, visibility=s.visibility[1:]), r"visibility has shape \(4, 16, 32\)"),
        (lambda s: replace(s, cameras=s.cameras.resized(8, 16)), "cameras are for 8x16 pixels"),
        (lambda s: replace(s, novel_video=s.video), "novel_cameras come together"),
    ],
)
def test_a_spoiled_sample_is_refused_by_name_and_field(spoil, said, make_sample, as_users_run_it):
    with pytest.raises(SampleError, match=said):
        check_sample(spoil(make_sample()))


def test_the_world_is_the_camera_of_frame_0(make_sample):
    sample = make_sample()
    moved = sample.cameras.world_to_camera.clone()
    moved[:, 0, 3] += 0.1
    moved = replace(sample, cameras=replace(sample.cameras, world_to_camera=moved))
    with pytest.raises(SampleError, match="is not the identity"):
        check_sample(moved)


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(5, 32, 64), (9, 40, 70), (9, 67, 131), (5, 96, 160)]
)
def test_fitting_keeps_every_point_at_its_pixel(frames, height, width, make_sample):
    sample = make_sample(frames=frames, height=height, width=width, novel=True)
    fitted = fit_sample(sample, SampleSize(num_frames=5, height=32, width=64))
    check_sample(fitted)
    assert fitted.size_fhw == (5, 32, 64)
    # The kept points are points of the whole sample, at their old places in the world.
    kept = fitted.positions().double()
    among = torch.cdist(kept[0].reshape(-1, 3), sample.positions()[0].double().reshape(-1, 3))
    nearest = among.min(1)
    assert nearest.values.max() < 1e-6
    old = sample.positions()[:5].reshape(5, -1, 3)[:, nearest.indices]
    assert torch.allclose(kept.reshape(5, -1, 3).float(), old, atol=1e-6)
    # One pixel of the small picture is a block of the large one.
    step = min(height // 32, width // 64)
    pixels, _ = project(old[0], fitted.cameras.intrinsics[0])
    before, _ = project(old[0], sample.cameras.intrinsics[0])
    assert torch.allclose(pixels[1] - pixels[0], (before[1] - before[0]) / step, atol=1e-4)


def test_fitting_averages_the_colors_of_each_block(make_sample):
    sample = make_sample(height=64, width=128)
    fitted = fit_sample(sample, SampleSize(num_frames=1, height=32, width=64))
    block = sample.video[0, 10:12, 20:22].float().mean((0, 1))
    assert torch.equal(fitted.video[0, 5, 10], block.round().to(torch.uint8))


def test_the_released_crop_takes_8_rows_from_either_end_of_384(make_sample):
    sample = make_sample(frames=1, height=384, width=512)
    fitted = fit_sample(sample, SampleSize(num_frames=1, height=368, width=512))
    assert torch.equal(fitted.video, sample.video[:, 8:376])
    assert fitted.cameras.intrinsics[0, 1, 2] == 192 - 8


def test_a_sample_too_small_is_refused(make_sample):
    with pytest.raises(SampleError, match="random-0000 has 5 frames of 16x32; expected at least 9"):
        fit_sample(make_sample(), SampleSize(num_frames=9, height=16, width=32))


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((48, 16, 16), "48; expected 4k \\+ 1. Use 45 or 49."),
        ((0, 16, 16), "expected 4k \\+ 1"),
        ((-3, 16, 16), "expected 4k \\+ 1"),
        ((49, 370, 512), "height is 370; expected a multiple of 16. Use 368 or 384."),
        ((49, 368, 0), "width is 0"),
    ],
)
def test_sizes_that_no_network_takes_are_refused_with_the_nearest(size, said):
    frames, height, width = size
    with pytest.raises(ValueError, match=said):
        SampleSize(num_frames=frames, height=height, width=width)


def test_a_batch_has_novel_views_only_if_every_sample_has(make_sample):
    both = stack_samples([make_sample(0, novel=True), make_sample(1, novel=True)])
    assert both.novel_video is not None
    assert both.novel_video.shape == (2, 5, 16, 32, 3)
    assert stack_samples([make_sample(0, novel=True), make_sample(1)]).novel_video is None


def test_the_scenes_and_cameras_of_a_batch_are_those_of_its_samples(make_sample):
    samples = [make_sample(seed, novel=True) for seed in range(3)]
    batch = stack_samples(samples).to("cpu")
    assert batch.names == ("random-0000", "random-0001", "random-0002")
    for index, sample in enumerate(samples):
        scene, expected = batch.scene(index), sample.scene()
        for name in ("positions", "colors", "visibility", "grid_hw"):
            there, here = getattr(expected.points, name), getattr(scene.points, name)
            assert torch.equal(there, here) if name != "grid_hw" else there == here
        assert scene.fps == sample.fps
        novel = batch.novel_cameras(index)
        assert torch.equal(novel.world_to_camera, sample.novel_cameras.world_to_camera)
        assert (novel.height, novel.width) == (16, 32)


def test_novel_cameras_that_are_not_there_are_refused(make_sample):
    with pytest.raises(SampleError, match="random-0000 has a novel view"):
        stack_samples([make_sample(0)]).novel_cameras(0)
