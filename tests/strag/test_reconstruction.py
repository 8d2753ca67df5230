import dataclasses

import numpy as np
import pytest
import torch

from more4d_backend.geometry import intrinsics_from_focal, pixel_centers, unproject
from more4d_backend.scene import Cameras, PointMaps, PointTracks, Scene4D
from more4d_backend.strag.motion_vae import (
    DecoderAdapter,
    EncoderAdapter,
    MotionLatentSettings,
    MotionVAE,
)
from more4d_backend.strag.profile import OWN, RELEASED
from more4d_backend.strag.reconstruction import reconstruct_motion, reconstruction_picture


class Remembering(MotionVAE):
    """A motion VAE that loses nothing but a factor."""

    def __init__(self, keeps=1.0):
        settings = MotionLatentSettings(clamp_decoded=False)
        super().__init__(torch.nn.Identity(), EncoderAdapter(8), DecoderAdapter(8), settings)
        self.keeps = keeps
        self.seen = None

    def encode(self, motion, *, sample=False, generator=None):
        self.seen = motion
        return motion[:, :1].repeat(1, 16, 1, 1, 1)

    def decode(self, latent):
        return self.keeps * self.seen


def scene(frames=6, height=20, width=36, speed=0.1):
    """Make a plane at depth 2 whose right half moves right."""
    K = intrinsics_from_focal(torch.tensor(float(width)), height, width)
    depth = torch.full((height, width), 2.0)
    start = unproject(pixel_centers(height, width), depth, K).reshape(-1, 3)
    moving = (start[:, 0] > 0).float()
    steps = torch.arange(frames)[:, None] * moving * speed
    positions = start + torch.stack([steps, 0 * steps, 0 * steps], dim=-1)
    tracks = PointTracks(
        positions=positions,
        colors=torch.zeros(height * width, 3),
        visibility=torch.ones(frames, height * width, dtype=torch.bool),
        grid_hw=(height, width),
    )
    cameras = Cameras(
        world_to_camera=torch.eye(4)[None], intrinsics=K[None], height=height, width=width
    ).repeated(frames)
    return Scene4D(points=tracks, cameras=cameras, fps=8.0)


def real_vae():
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=4).requires_grad_(False)
    return MotionVAE(vae, EncoderAdapter(8), DecoderAdapter(8), OWN.latents)


@pytest.mark.parametrize("profile", [OWN, RELEASED])
def test_what_is_kept_whole_has_no_error_and_what_is_halved_has_half(profile):
    whole = reconstruct_motion(scene(), Remembering(), profile)
    assert whole.relative_error == pytest.approx(0, abs=1e-6)
    assert whole.largest_error == pytest.approx(0, abs=1e-5)
    half = reconstruct_motion(scene(), Remembering(keeps=0.5), profile)
    assert half.relative_error == pytest.approx(0.5)
    assert half.frame_relative_errors[0] is None
    assert half.frame_relative_errors[1:] == pytest.approx([0.5] * 5)
    # Half of the points move 0.1 a frame for 5 frames: 0.15 on average over frames 1 to 5.
    assert half.mean_motion == pytest.approx(0.15, rel=1e-4)
    assert half.mean_error == pytest.approx(0.075, rel=1e-4)
    assert half.largest_error == pytest.approx(0.25, rel=1e-4)


def test_the_network_sees_valid_sizes_and_the_report_has_the_scene_s(caplog):
    caplog.set_level("INFO")
    vae = Remembering()
    result = reconstruct_motion(scene(), vae, OWN)
    assert vae.seen.shape == (1, 3, 9, 32, 48)
    assert result.original.shape == result.reconstructed.shape == (6, 20, 36, 3)
    assert "extended from 6x20x36 by 3 frames, 12 rows and 12 columns" in caplog.text


def test_unseen_and_lost_points_do_not_count():
    whole = scene()
    positions = whole.points.positions.clone()
    visibility = whole.points.visibility.clone()
    positions[2, 5] = float("nan")
    positions[0, 7] = float("nan")
    positions[3, 6] = 1e6
    visibility[3, 6] = False
    tracks = dataclasses.replace(whole.points, positions=positions, visibility=visibility)
    result = reconstruct_motion(dataclasses.replace(whole, points=tracks), Remembering(0.5), OWN)
    assert result.relative_error == pytest.approx(0.5)
    assert result.largest_error == pytest.approx(0.25, rel=1e-4)
    assert not result.counts[2, 0, 5]
    assert not result.counts[3, 0, 6]
    assert not result.counts[:, 0, 7].any()


def test_a_still_scene_has_no_relative_error_and_says_so():
    result = reconstruct_motion(scene(speed=0.0), Remembering(), OWN)
    assert result.relative_error is None
    assert "nothing moves" in result.describe()
    assert reconstruction_picture(result).width > 100


def test_a_real_motion_vae_at_toy_size_reports_finite_numbers():
    result = reconstruct_motion(scene(frames=5), real_vae(), OWN)
    assert result.reconstructed.isfinite().all()
    assert result.relative_error > 0
    assert result.mean_error > 0
    assert "Relative error" in result.describe()


def test_the_picture_shows_rest_grey_motion_coloured_and_loss_bright():
    lost = reconstruct_motion(scene(), Remembering(keeps=0.0), OWN)
    sheet = np.asarray(reconstruction_picture(lost, num_columns=2)).astype(int)
    # Two thumbnails of 36x20 a row, each under a label of 18 pixels, with margins of 6.
    last = 6 + 36 + 6
    original, reconstructed, error = (
        sheet[top + 18 : top + 38, last : last + 36] for top in (6, 50, 94)
    )
    assert (abs(original[10, 4] - 128) <= 1).all(), "rest is grey"
    assert original[10, 30, 0] > 240, "motion along +x is red"
    assert (abs(reconstructed[10, 30] - 128) <= 1).all()
    assert error[10, 30].min() > 240
    assert error[10, 4].max() < 10


def test_scenes_without_a_pixel_grid_are_refused():
    whole = scene()
    loose = dataclasses.replace(whole.points, grid_hw=None)
    maps = PointMaps(
        positions=whole.points.positions.reshape(6, 20, 36, 3),
        colors=torch.zeros(6, 20, 36, 3),
        valid=torch.ones(6, 20, 36, dtype=torch.bool),
    )
    for points, name in ((loose, "PointTracks"), (maps, "PointMaps")):
        with pytest.raises(ValueError, match=f"are {name} without a pixel grid"):
            reconstruct_motion(dataclasses.replace(whole, points=points), Remembering(), OWN)
