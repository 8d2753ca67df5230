"""What networks say of the border around a padded picture is not looked at."""

import pytest
import torch

from more4d_backend.geo4d.alignment import AlignmentSettings
from more4d_backend.geo4d.alignment.samples import take_samples
from more4d_backend.geo4d.decoding import DecodingSettings, decode_windows
from more4d_backend.geo4d.framing import Framing, plan_framing
from more4d_backend.geo4d.ray_maps import cameras_from_rays, rays_from_cameras
from more4d_backend.geo4d.windows import plan_windows
from more4d_backend.geometry import intrinsics_from_focal
from more4d_backend.scene import Cameras
from more4d_backend.synthetic import make_world

LATENTS = torch.randn(1, 16, 4, 12, 16, generator=torch.Generator().manual_seed(0))


def test_the_border_is_not_valid_and_its_rays_are_not_known(toy_networks):
    framing = plan_framing((48, 32), toy_networks.size, fit="pad", network_hw=(48, 64))
    (prediction,) = decode_windows(toy_networks, LATENTS, plan_windows(4, 1, 4), framing)
    assert not prediction.valid[:, :, :16].any()
    assert not prediction.valid[:, :, 48:].any()
    assert prediction.valid[:, :, 16:48].any()
    known = (prediction.rays.directions != 0).any(-1)
    _, height, width = known.shape
    assert width / height == 64 / 48
    assert not known[:, :, : width // 4].any()
    assert not known[:, :, -(width // 4) :].any()
    assert known[:, :, width // 4 : -(width // 4)].all()


def test_a_ray_map_of_which_the_video_fills_no_pixel_is_left_out(toy_networks):
    framing = Framing(source_hw=(48, 2), network_hw=(48, 64), scaled_hw=(48, 2))
    settings = DecodingSettings(ray_reduction=4)
    (prediction,) = decode_windows(toy_networks, LATENTS, plan_windows(4, 1, 4), framing, settings)
    assert prediction.valid[:, :, 31:33].any()
    assert prediction.rays is None


def test_the_rays_between_borders_tell_the_focal_length(toy_networks, monkeypatch):
    framing = plan_framing((96, 40), toy_networks.size, fit="pad", network_hw=(96, 128))
    intrinsics = intrinsics_from_focal(torch.tensor(100.0), 96, 128).expand(4, 3, 3)
    still = torch.eye(4).repeat(4, 1, 1)
    rays = rays_from_cameras(
        Cameras(world_to_camera=still, intrinsics=intrinsics, height=96, width=128)
    )
    images = torch.cat([rays.directions, rays.moments]).permute(0, 3, 1, 2)
    monkeypatch.setattr(toy_networks.vae, "decode", lambda _latents, reduction: images)
    latents = torch.zeros(1, 16, 4, 24, 32)
    settings = DecodingSettings(disparity=False)
    windows = decode_windows(toy_networks, latents, plan_windows(4, 1, 4), framing, settings)
    samples = take_samples(windows, AlignmentSettings(disparity=False), torch.device("cpu"))
    # Half precision; it was 320 where the border was cut off.
    assert float(samples.ray_focal_px) == pytest.approx(100, rel=1e-3)
    torch.testing.assert_close(samples.ray_cameras.center, torch.zeros(1, 4, 3).double())


def test_rays_that_are_not_known_do_not_count():
    cameras = make_world(4, moving_camera=True, duration_s=1.0).cameras(6, 20, 28)
    rays = rays_from_cameras(cameras)
    noise = 0.02 * torch.randn(
        2, *rays.directions.shape, generator=torch.Generator().manual_seed(0)
    )
    directions, moments = rays.directions + noise[0], rays.moments + noise[1]
    cut = cameras_from_rays(directions[:, :, 7:21], moments[:, :, 7:21])
    directions[:, :, :7], directions[:, :, 21:] = 0, 0
    whole = cameras_from_rays(directions, moments)
    torch.testing.assert_close(whole.center, cut.center, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.rotation, cut.rotation, atol=1e-5, rtol=0)
