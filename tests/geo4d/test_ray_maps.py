import pytest
import torch

from more4d_backend.geo4d.ray_maps import cameras_from_rays, focal_from_rays, rays_from_cameras
from more4d_backend.synthetic import make_world


@pytest.fixture(scope="module")
def cameras():
    world = make_world(4, moving_camera=True, duration_s=1.0)
    return world.cameras(6, 20, 28, dtype=torch.float64)


def test_cameras_come_back_from_their_rays(cameras):
    rays = rays_from_cameras(cameras)
    found = cameras_from_rays(rays.directions, rays.moments)
    # Computed in float32.
    assert torch.allclose(found.world_to_camera.double(), cameras.world_to_camera, atol=2e-5)


def test_windows_are_vectorised_and_do_not_see_each_other(cameras):
    rays = rays_from_cameras(cameras)
    other = rays_from_cameras(cameras.frames([0, 3, 5, 4, 2, 1]))
    directions = torch.stack([rays.directions, other.directions])
    moments = torch.stack([rays.moments, other.moments])
    both = cameras_from_rays(directions, moments)
    alone = cameras_from_rays(other.directions, other.moments)
    assert both.rotation.shape == (2, 6, 3, 3)
    assert torch.allclose(both.center[1], alone.center, atol=1e-6)
    assert torch.allclose(both.rotation[1], alone.rotation, atol=1e-6)


def test_a_twentieth_of_wrong_rays_hardly_moves_the_cameras(cameras):
    rays = rays_from_cameras(cameras)
    generator = torch.Generator().manual_seed(1)
    wrong = torch.rand(rays.directions.shape[:3], generator=generator) < 0.05
    noise = torch.randn(rays.directions.shape, generator=generator, dtype=torch.float64)
    directions = rays.directions.where(~wrong[..., None], noise)
    moments = rays.moments.where(~wrong[..., None], noise)
    found = cameras_from_rays(directions, moments)
    # Least squares is off by 0.02 here; measured 1e-4.
    assert (found.center.double() - cameras.camera_to_world[:, :3, 3]).norm(dim=1).max() < 1e-3


def test_a_mirrored_bundle_still_gives_a_rotation(cameras):
    rays = rays_from_cameras(cameras)
    directions = rays.directions.clone()
    directions[3, ..., 0] *= -1
    found = cameras_from_rays(directions, rays.moments)
    assert torch.allclose(torch.linalg.det(found.rotation), torch.ones(6), atol=1e-5)


def test_rays_without_weight_do_not_count(cameras):
    rays = rays_from_cameras(cameras)
    directions, moments = rays.directions.clone(), rays.moments.clone()
    directions[:, :10] = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    moments[:, :10] = 5
    weights = torch.ones(6, 20, 28)
    weights[:, :10] = 0
    found = cameras_from_rays(directions, moments, weights)
    assert torch.allclose(found.world_to_camera.double(), cameras.world_to_camera, atol=2e-4)


def test_a_camera_that_stands_still_stays(cameras):
    rays = rays_from_cameras(cameras.frames([0] * 4))
    found = cameras_from_rays(rays.directions, rays.moments)
    assert found.center.abs().max() < 1e-5
    assert torch.allclose(found.rotation, torch.eye(3).expand(4, 3, 3), atol=1e-5)


def test_the_focal_length_comes_in_image_widths(cameras):
    rays = rays_from_cameras(cameras)
    expected = float(cameras.intrinsics[0, 0, 0]) / cameras.width
    assert float(focal_from_rays(rays.directions[0])) == pytest.approx(expected, rel=1e-6)
