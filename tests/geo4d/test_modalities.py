import pytest
import torch

from more4d_backend.geo4d import modalities
from more4d_backend.geo4d.modalities import (
    ModalityError,
    ModalitySettings,
    denormalize_disparity,
    denormalize_points,
    modality_images,
    normalize_disparity,
    normalize_points,
    valid_points,
    window_from_images,
)
from more4d_backend.geo4d.predictions import WindowError
from more4d_backend.geo4d.ray_maps import cameras_from_rays
from more4d_backend.geo4d.sizes import GEOMETRY_CHANNELS, LATENT_CHANNELS
from more4d_backend.geometry import align_similarity, transform_points
from more4d_backend.synthetic import make_world


@pytest.fixture(scope="module")
def view():
    world = make_world(
        2, setting="landscape", moving_camera=True, sky_radius_m=None, duration_s=0.6
    )
    return world.view(world.cameras(5, 24, 32))


def in_first_camera(view):
    return transform_points(view.positions, view.cameras.world_to_camera[0])


def test_the_modalities_share_the_latent_channels_out():
    slices = (
        modalities.POINTS, modalities.RAY_DIRECTIONS, modalities.RAY_MOMENTS, modalities.DISPARITY,
    )  # fmt: skip
    channels = [channel for part in slices for channel in range(16)[part]]
    assert channels == list(range(GEOMETRY_CHANNELS))
    assert all(part.stop - part.start == LATENT_CHANNELS for part in slices)


def test_points_come_back_from_their_image(view):
    points = in_first_camera(view)
    normalized = normalize_points(points, view.valid)
    back = denormalize_points(normalized.image, normalized.box)
    inside = view.valid & (normalized.image.abs() < 1.999).all(1)
    assert inside.float().mean() > 0.5
    assert torch.allclose(back[inside], points[inside], atol=1e-4)


def test_without_the_box_points_come_back_up_to_a_similarity_without_rotation(view):
    points = in_first_camera(view)
    normalized = normalize_points(points, view.valid)
    inside = view.valid & (normalized.image.abs() < 1.999).all(1)
    back = denormalize_points(normalized.image)[inside]
    scale, rotation, shift = align_similarity(back, points[inside])
    assert torch.allclose(rotation, torch.eye(3), atol=1e-4)
    assert float(scale) == pytest.approx(normalized.box.size, rel=1e-4)
    expected = torch.tensor([0.0, 0.0, normalized.box.near])
    assert torch.allclose(shift, expected, atol=1e-3)


def test_most_depths_lie_between_minus_1_and_1(view):
    image = normalize_points(in_first_camera(view), view.valid).image
    within = (image[:, 2].abs() <= 1)[view.valid].float().mean()
    assert 0.95 < within < 1


def test_disparity_comes_back_from_its_image(view):
    depth = view.depth.where(view.valid, 1.0)
    normalized = normalize_disparity(depth, view.valid)
    inside = view.valid & (normalized.image[:, 0].abs() < 1.0999)
    back = denormalize_disparity(normalized.image.expand(-1, 3, -1, -1), normalized.range)
    assert torch.allclose(back[inside], 1 / depth[inside], atol=1e-5)


def test_sky_is_known_by_its_code_and_only_within_the_tolerance(view):
    image = normalize_points(in_first_camera(view), view.valid).image
    inside = (image.abs() <= 1.99).all(1)
    assert not valid_points(image)[~view.valid].any()
    assert valid_points(image)[view.valid & inside].float().mean() > 0.99
    off = image.where(view.valid[:, None], modalities.SKY_CODE + 0.2)
    assert valid_points(off)[~view.valid].all()
    demo = ModalitySettings(sky_tolerance=0.35)
    assert not valid_points(off, demo)[~view.valid].any()


def test_all_images_of_a_clip_are_read_back_as_its_geometry(view):
    images = modality_images(view.positions, view.valid, view.cameras)
    window = window_from_images(
        7,
        point_image=images.points,
        sigma_logit=torch.zeros(view.depth.shape),
        direction_image=images.ray_directions,
        moment_image=images.ray_moments,
        disparity_image=images.disparity,
    )
    assert window.first_frame == 7
    assert window.last_frame == 11
    assert window.sigma is not None
    assert torch.allclose(window.sigma, torch.tensor(2.0).log())
    assert window.disparity is not None
    assert -0.0501 < float(window.disparity[view.valid].min()) < 0.01  # clamped at -1.1
    # Cameras of the rays lie in the unit of the points: moved by them, points agree over frames.
    assert window.rays is not None
    cameras = cameras_from_rays(window.rays.directions, window.rays.moments)
    box = normalize_points(in_first_camera(view), view.valid).box
    true = view.cameras.camera_to_world[:, :3, 3] / box.size
    assert torch.allclose(cameras.center, true, atol=1e-4)
    assert torch.allclose(cameras.rotation, view.cameras.camera_to_world[:, :3, :3], atol=1e-4)


def test_a_clip_of_sky_alone_is_refused(view, as_users_run_it):
    with pytest.raises(ModalityError, match="no valid point"):
        normalize_points(view.positions, torch.zeros_like(view.valid))


def test_half_a_ray_map_is_refused(view, as_users_run_it):
    images = modality_images(view.positions, view.valid, view.cameras)
    with pytest.raises(ModalityError, match="needs both"):
        window_from_images(0, point_image=images.points, moment_image=images.ray_moments)


def test_nan_in_the_decoded_points_is_not_taken_for_sky(view, as_users_run_it):
    images = modality_images(view.positions, view.valid, view.cameras)
    broken = images.points.clone()
    broken[3, 1, 4, 4] = torch.nan
    window = window_from_images(2, point_image=broken)
    with pytest.raises(WindowError, match=r"Window 9 has NaN.*points.*frame 3 \(frame 5"):
        window.check_finite("Window 9")
