"""Clips for Geo4D: the same images as the backend makes, and clips that fit a size."""

from dataclasses import replace

import pytest
import torch

from more4d_backend.geo4d.modalities import modality_images
from more4d_backend.geo4d.ray_maps import cameras_from_rays
from more4d_backend.geometry import project, transform_points
from training.data.samples import SampleError
from training.geo4d.clips import (
    batch_images,
    check_clip,
    fit_clip,
    stack_clips,
    world_positions,
)
from training.procedural.clips import ClipSettings, ProceduralClips, procedural_clip

SMALL = ClipSettings(size_hw=(24, 32), num_frames=5, samples=1)


@pytest.fixture(scope="module")
def clips():
    return [procedural_clip(seed, SMALL) for seed in (4, 5, 7)]


def test_a_batch_has_the_images_that_the_backend_makes_of_each_clip(clips):
    assert not all(clip.valid.all() for clip in clips), "one of them should see the sky"
    batch = stack_clips(clips)
    images = batch_images(batch)
    for number, clip in enumerate(clips):
        truth = modality_images(world_positions(clip.depth, clip.cameras), clip.valid, clip.cameras)
        for name in ("points", "ray_directions", "ray_moments", "disparity"):
            ours, theirs = getattr(images, name)[number], getattr(truth, name)
            # The largest seen is 3e-6: the box's sides are found in the same way.
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_geometry_is_exact_under_autocast_too(clips):
    batch = stack_clips(clips)
    expected = batch_images(batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = batch_images(batch)
    for name in ("points", "ray_directions", "ray_moments", "disparity"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_the_camera_turns_as_much_as_the_settings_say():
    for seed in range(6):
        clip = procedural_clip(seed, ClipSettings(size_hw=(16, 32), num_frames=33, samples=1))
        turns = clip.cameras.world_to_camera[:, :3, :3].double()
        relative = turns[1:] @ turns[:-1].transpose(1, 2)
        trace = relative.diagonal(dim1=1, dim2=2).sum(-1)
        angle_deg = torch.rad2deg(torch.acos(((trace - 1) / 2).clamp(-1, 1)))
        assert angle_deg.min() > 0.9
        assert angle_deg.max() < 3.1
        assert torch.equal(clip.cameras.world_to_camera[0], torch.eye(4))


def test_a_clip_may_begin_anywhere_on_the_path_of_its_camera():
    def first_turn_back(seed, lead_frames):
        settings = replace(SMALL, num_frames=8, size_hw=(16, 16), lead_frames=lead_frames)
        poses = procedural_clip(seed, settings).cameras.world_to_camera
        yaw = poses[:, 0, 2].diff().sign()
        return next((frame for frame in range(1, 7) if yaw[frame] != yaw[0]), None)

    seeds = range(12)
    assert {first_turn_back(seed, 0) for seed in seeds} <= {None, 6}
    assert len({first_turn_back(seed, 24) for seed in seeds}) >= 4


def test_the_cameras_are_those_that_saw_the_depth(clips):
    rays = batch_images(stack_clips(clips))
    found = cameras_from_rays(rays.ray_directions.movedim(2, -1), rays.ray_moments.movedim(2, -1))
    for number, clip in enumerate(clips):
        rotation = clip.cameras.camera_to_world[:, :3, :3]
        torch.testing.assert_close(found.rotation[number], rotation, atol=1e-4, rtol=0)


def test_a_seed_means_one_clip_and_another_seed_another():
    again = procedural_clip(4, SMALL)
    first, second = ProceduralClips(SMALL, first_seed=4)[0], ProceduralClips(SMALL, first_seed=4)[1]
    assert torch.equal(again.video, first.video)
    assert torch.equal(again.depth, first.depth)
    assert not torch.equal(again.video, second.video)


@pytest.mark.parametrize("size_hw", [(24, 32), (12, 32), (16, 16), (48, 64), (9, 13)])
def test_a_fitted_clip_sees_the_same_world(clips, size_hw):
    fitted = fit_clip(clips[0], size_hw)
    assert fitted.video.shape == (5, *size_hw, 3)
    check_clip(fitted)
    # Its points, seen by the whole camera, lie inside of the picture and at their own depth.
    points = world_positions(fitted.depth, fitted.cameras)[fitted.valid]
    frame = fitted.valid.nonzero()[:, 0]
    world_to_camera = clips[0].cameras.world_to_camera[frame]
    pixels, depth = project(
        transform_points(points, world_to_camera), clips[0].cameras.intrinsics[frame]
    )
    torch.testing.assert_close(depth, fitted.depth[fitted.valid], atol=1e-4, rtol=1e-4)
    size = torch.tensor([32.0, 24.0])
    assert ((pixels > -1) & (pixels < size + 1)).all()


def test_an_empty_clip_is_refused_by_name(clips):
    clip = clips[0]
    clip = type(clip)(
        name="nothing", video=clip.video, depth=clip.depth, valid=torch.zeros_like(clip.valid),
        cameras=clip.cameras,
    )  # fmt: skip
    with pytest.raises(SampleError, match="nothing has no valid depth"):
        check_clip(clip)
    with pytest.raises(SampleError, match="nothing has no valid depth"):
        batch_images(stack_clips([clips[1], clip]))
