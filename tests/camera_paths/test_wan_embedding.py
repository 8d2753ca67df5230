import pytest
import torch

from more4d_backend.camera_paths import CameraPathError, make_path
from more4d_backend.camera_paths.wan_embedding import wan_camera_embedding
from more4d_backend.geometry import intrinsics_from_focal
from more4d_backend.scene import Cameras


@pytest.fixture
def start():
    return Cameras(
        world_to_camera=torch.eye(4)[None],
        intrinsics=intrinsics_from_focal(torch.tensor([20.0]), 16, 32),
        height=16,
        width=32,
    )


def test_channels_are_moment_and_direction_of_four_frames_each(start):
    path = make_path("truck-right", start, 9)
    embedding = wan_camera_embedding(path)
    assert embedding.shape == (1, 24, 3, 16, 32)
    values = embedding[0].unflatten(0, (6, 4))  # (moment and direction xyz, frame in four, ...)
    # Pixel (0, 0): its centre is 15.5 px left of and 7.5 px above the middle.
    ray = torch.tensor([-15.5 / 20, -7.5 / 20, 1.0])
    ray = ray / ray.norm()
    torch.testing.assert_close(values[3:, 0, 0, 0, 0], ray)
    # Frame 1 is the first of the second latent frame, frame 8 the last of the third.
    for (latent_frame, place), frame in {(1, 0): 1, (1, 3): 4, (2, 3): 8}.items():
        moment = torch.linalg.cross(path.camera_to_world[frame, :3, 3], ray)
        torch.testing.assert_close(values[:3, place, latent_frame, 0, 0], moment)


def test_the_first_frame_fills_the_first_latent_frame_and_has_no_moment(start):
    values = wan_camera_embedding(make_path("dolly-in", start, 5))[0].unflatten(0, (6, 4))
    assert values[:3, :, 0].abs().max() == 0
    assert torch.equal(values[:, 0, 0], values[:, 3, 0])


def test_only_what_is_relative_to_the_first_camera_counts(start):
    path = make_path("arc-left", start, 5)
    shift = torch.eye(4)
    shift[:3, 3] = torch.tensor([3.0, -1.0, 2.0])
    elsewhere = Cameras(
        world_to_camera=path.world_to_camera @ shift,
        intrinsics=path.intrinsics,
        height=16,
        width=32,
    )
    torch.testing.assert_close(
        wan_camera_embedding(elsewhere), wan_camera_embedding(path), atol=1e-5, rtol=0
    )


def test_the_scale_multiplies_moments_and_leaves_directions(start):
    path = make_path("arc-left", start, 5)
    one, three = wan_camera_embedding(path), wan_camera_embedding(path, translation_scale=3.0)
    torch.testing.assert_close(three[:, :12], 3 * one[:, :12])
    assert torch.equal(three[:, 12:], one[:, 12:])


def test_lengths_and_sizes_that_wan_does_not_take_are_refused(start):
    with pytest.raises(CameraPathError, match="6 frames; Wan takes 4k"):
        wan_camera_embedding(make_path("arc-left", start, 6))
    path = make_path("arc-left", start, 5)
    with pytest.raises(CameraPathError, match=r"24x32.*multiples of 16"):
        wan_camera_embedding(path.resized(24, 32))
    with pytest.raises(CameraPathError, match="translation_scale is 0"):
        wan_camera_embedding(path, translation_scale=0.0)
