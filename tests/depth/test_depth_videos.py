from dataclasses import replace

import pytest
import torch

from more4d_backend.depth.lifting import DepthError, lift_depth
from more4d_backend.depth.videos import DepthVideo, lift_video
from more4d_backend.shapes import ShapeError
from more4d_backend.synthetic import make_world


@pytest.fixture(scope="module")
def seen():
    world = make_world(1, moving_camera=True)
    view = world.view(world.cameras(4, 24, 32))
    video = DepthVideo(
        images=view.rgb,
        depth=view.depth,
        usable=torch.ones_like(view.depth, dtype=torch.bool),
        cameras=view.cameras,
        confidence=1 / view.depth,
    )
    return view, video


def test_every_frame_is_lifted_to_the_true_points_of_one_world(seen):
    view, video = seen
    scene = lift_video(video, fps=12.0)
    torch.testing.assert_close(scene.points.positions, view.positions, atol=1e-4, rtol=1e-5)
    assert scene.points.valid.all()
    assert torch.equal(scene.points.colors, view.rgb)
    assert torch.equal(scene.points.confidence, video.confidence)
    assert scene.fps == 12
    assert torch.equal(scene.cameras.world_to_camera, view.cameras.world_to_camera)


def test_a_video_of_one_frame_is_lifted_as_a_picture_is(seen):
    view, video = seen
    one = replace(
        video,
        images=video.images[:1],
        depth=video.depth[:1],
        usable=video.usable[:1],
        cameras=video.cameras.frames([0]),
        confidence=None,
    )
    wanted = lift_depth(view.rgb[0], view.depth[0], video.cameras.frames([0]), drop_edges=True)
    found = lift_video(one, fps=8.0, drop_edges=True)
    assert torch.equal(found.points.positions, wanted.points.positions)
    assert torch.equal(found.points.valid, wanted.points.valid)
    assert not found.points.valid.all()


def test_far_missing_and_unusable_pixels_have_no_point(seen):
    _, video = seen
    depth, usable = video.depth.clone(), video.usable.clone()
    depth[1, 0, 0], usable[2, 3] = torch.nan, False
    far = float(depth[0].quantile(0.9))
    scene = lift_video(replace(video, depth=depth, usable=usable), fps=8.0, max_depth=far)
    valid = scene.points.valid
    assert not valid[1, 0, 0]
    assert not valid[2, 3].any()
    assert 0.85 < valid[0].float().mean() < 0.95
    assert scene.points.positions.isfinite().all()


def test_progress_is_told_per_frame_and_may_interrupt(seen):
    _, video = seen
    told = []
    lift_video(video, fps=8.0, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lift_video(video, fps=8.0, progress=stop)


def test_a_video_without_any_usable_depth_is_refused(seen):
    _, video = seen
    with pytest.raises(DepthError, match="No pixel of any frame"):
        lift_video(replace(video, depth=torch.zeros_like(video.depth)), fps=8.0)
    with pytest.raises(DepthError, match="No pixel of any frame"):
        lift_video(replace(video, usable=torch.zeros_like(video.usable)), fps=8.0)


def test_depth_of_another_size_than_the_images_is_refused(seen, as_users_run_it):
    _, video = seen
    with pytest.raises(ShapeError, match="depth"):
        replace(video, depth=video.depth[:, 1:])
    smaller = replace(
        video,
        images=video.images[:, 1:],
        depth=video.depth[:, 1:],
        usable=video.usable[:, 1:],
        confidence=None,
    )
    with pytest.raises(DepthError, match="23x32 and the image is 24x32"):
        lift_video(smaller, fps=8.0)
