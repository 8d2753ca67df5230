"""The per-frame VAE with its two decoders."""

import pytest
import torch
from torch.nn import functional as F

from more4d_backend.geo4d.sizes import GEO4D_SIZES, VAESize
from more4d_backend.geo4d.vae import LATENT_SCALE, Geo4DVAE, PictureSizeError


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return Geo4DVAE(GEO4D_SIZES["toy"].vae).eval().requires_grad_(False)


@pytest.fixture
def pictures():
    return torch.rand(5, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_it_computes_what_the_autoencoder_of_diffusers_does(pictures):
    diffusers = pytest.importorskip("diffusers")
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    torch.manual_seed(0)
    ours = Geo4DVAE(VAESize(channels=32, channel_mult=(1, 2, 2))).requires_grad_(False)
    theirs = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        latent_channels=4,
    ).requires_grad_(False)
    original = {
        f"first_stage_model.{name.removeprefix('image_decoder.')}": tensor
        for name, tensor in ours.state_dict().items()
        if not name.startswith("point_decoder.")
    }
    theirs.load_state_dict(convert_ldm_vae_checkpoint(original, theirs.config))
    posterior = theirs.encode(pictures).latent_dist
    mean = ours.encode(pictures) / LATENT_SCALE
    torch.testing.assert_close(mean, posterior.mode(), atol=1e-5, rtol=0)
    decoded = ours.decode(posterior.mode() * LATENT_SCALE)
    torch.testing.assert_close(decoded, theirs.decode(posterior.mode()).sample, atol=1e-5, rtol=0)


def test_sizes_are_those_of_the_pictures_and_of_the_latents(vae, pictures):
    latents = vae.encode(pictures)
    assert latents.shape == (5, 4, 4, 6)
    assert vae.decode(latents).shape == (5, 3, 16, 24)
    points = vae.decode_points(latents)
    assert points.points.shape == (5, 3, 16, 24)
    assert points.logit.shape == (5, 16, 24)
    torch.testing.assert_close(points.sigma, F.softplus(points.logit))


def test_encoding_is_the_mean_and_draws_spread_around_it(vae, pictures):
    posterior = vae.distribution(pictures)
    assert torch.equal(vae.encode(pictures), posterior.mean)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([posterior.sample(generator) for _ in range(400)])
    # 400 draws: the mean is known to 5 % of a standard deviation, times 5 for safety.
    spread = posterior.log_variance.exp().sqrt()
    assert ((draws.mean(0) - posterior.mean).abs() < 0.25 * spread).all()
    torch.testing.assert_close(draws.std(0) / spread, torch.ones_like(spread), atol=0.2, rtol=0)
    again = posterior.sample(torch.Generator().manual_seed(0))
    assert torch.equal(draws[0], again)


def test_how_many_pictures_go_at_once_changes_nothing(pictures):
    torch.manual_seed(0)
    one = Geo4DVAE(GEO4D_SIZES["toy"].vae, pictures_per_call=2).requires_grad_(False)
    latents = one.encode(pictures)
    decoded, points = one.decode(latents), one.decode_points(latents)
    one.pictures_per_call = 5
    torch.testing.assert_close(one.encode(pictures), latents, atol=1e-6, rtol=0)
    torch.testing.assert_close(one.decode(latents), decoded, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.decode_points(latents).logit, points.logit, atol=1e-5, rtol=0)


def test_pictures_do_not_see_each_other(vae, pictures):
    changed = pictures.clone()
    changed[0] = -changed[0]
    difference = (vae.encode(changed) - vae.encode(pictures)).abs().amax((1, 2, 3))
    assert difference[0] > 1e-4
    assert difference[1:].max() < 1e-6


def test_a_reduced_picture_is_that_of_averaged_latents(vae, pictures):
    latents = vae.encode(pictures)
    reduced = vae.decode(latents, reduction=2)
    assert reduced.shape == (5, 3, 8, 12)
    torch.testing.assert_close(reduced, vae.decode(F.avg_pool2d(latents, 2)))


@pytest.mark.usefixtures("as_users_run_it")
def test_sizes_that_do_not_divide_are_refused(vae, pictures):
    with pytest.raises(PictureSizeError, match="16 x 22; the VAE needs multiples of 4"):
        vae.encode(pictures[..., :22])
    with pytest.raises(PictureSizeError, match="Latents of 4 x 6 cannot be reduced by 4"):
        vae.decode(vae.encode(pictures), reduction=4)


def test_results_are_float32_whatever_the_weights_are(pictures):
    torch.manual_seed(0)
    half = Geo4DVAE(GEO4D_SIZES["toy"].vae).requires_grad_(False)
    latents = half.encode(pictures)
    half.bfloat16()
    assert half.encode(pictures).dtype == half.decode(latents).dtype == torch.float32
    # bfloat16 has 8 bits; 2 % measured.
    assert (half.encode(pictures) - latents).norm() < 0.05 * latents.norm()
