"""What the Geo4D trainers make small."""

import math

import pytest
import torch

from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.geo4d.vae import DecodedPoints, Geo4DVAE
from training.geo4d.clips import batch_images, stack_clips
from training.geo4d.objectives import (
    DenoiserObjective,
    ModalityWeights,
    PointDecoderObjective,
    VaeObjective,
    bend_of,
    geometry_latents,
    laplace_nll,
    mixed_halves,
    mixing_shares,
)
from training.procedural.clips import ClipSettings, procedural_clip

SMALL = ClipSettings(size_hw=(16, 32), num_frames=16, samples=1)


@pytest.fixture(scope="module")
def batch():
    return stack_clips([procedural_clip(seed, SMALL) for seed in (5, 7)])


def test_the_likelihood_is_that_of_a_laplace_distribution_and_best_at_the_true_sigma():
    target = torch.zeros(1, 3, 2, 2)
    points = torch.full((1, 3, 2, 2), 0.2)

    def nll(sigma: float) -> float:
        logit = torch.full((1, 2, 2), math.log(math.expm1(sigma)))
        return float(laplace_nll(DecodedPoints(points=points, logit=logit), target))

    assert nll(0.5) == pytest.approx(math.sqrt(2) * 0.6 / 0.5 + math.log(math.sqrt(2) * 0.5))
    best = math.sqrt(2) * 0.6  # where the derivative in sigma is 0
    assert nll(best) < min(nll(0.9 * best), nll(1.1 * best))


def test_only_the_point_decoder_learns_from_points(batch):
    torch.manual_seed(0)
    vae = Geo4DVAE(GEO4D_SIZES["toy"].vae)
    objective = PointDecoderObjective(vae)
    loss = objective(batch_images(batch).points[:, :2])
    assert loss.shape == (2,)
    loss.sum().backward()
    for name, parameter in vae.named_parameters():
        learns = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert learns == name.startswith("point_decoder."), name


def test_every_second_picture_is_mixed_with_the_one_half_a_batch_further_on():
    shares = mixing_shares(6, torch.Generator().manual_seed(0))
    assert (shares[::2] == 0).all()
    assert ((shares[1::2] > 0) & (shares[1::2] < 1)).all()
    pictures = torch.randn(6, 3, 4, 4)
    mixed = mixed_halves(pictures, shares)
    assert torch.equal(mixed[0], pictures[0])
    expected = pictures[1] + shares[1] * (pictures[4] - pictures[1])
    torch.testing.assert_close(mixed[1], expected)


def test_a_linear_encoder_has_no_bend_at_any_scale_and_another_one_has():
    shares = mixing_shares(8, torch.Generator().manual_seed(0))
    pictures = torch.randn(8, 3, 4, 4, dtype=torch.float64)
    mixed = mixed_halves(pictures, shares)
    assert bend_of(0.01 * pictures + 5, 0.01 * mixed + 5, shares) < 1e-12
    bent = bend_of(pictures.square(), mixed.square(), shares)
    assert bent > 0.02  # measured: 0.039
    torch.testing.assert_close(
        bend_of(9 * pictures.square(), 9 * mixed.square(), shares), bent, atol=1e-6, rtol=0
    )
    same = pictures[:1].expand(8, -1, -1, -1)
    assert bend_of(same, same, shares) == 0


def test_all_of_the_vae_learns_from_all_kinds_of_pictures(batch):
    torch.manual_seed(0)
    vae = Geo4DVAE(GEO4D_SIZES["toy"].vae)
    images = batch_images(batch)
    kinds = ("points", "ray_directions", "ray_moments", "disparity")
    geometry = {name: getattr(images, name)[:, :2].flatten(0, 1) for name in kinds}
    video = batch.pictures()[:, :2].flatten(0, 1)
    parts = VaeObjective(vae)(video, geometry, torch.Generator().manual_seed(0))
    assert set(parts) == {"loss", "nll", "bend", "video", *kinds}
    parts["loss"].backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_modalities_that_do_not_count_change_neither_loss_nor_input():
    torch.manual_seed(0)
    networks = Geo4DNetworks(GEO4D_SIZES["toy"]).eval()
    objective = DenoiserObjective(networks)
    clean, video = torch.randn(2, 16, 4, 4, 4), torch.randn(2, 4, 4, 4, 4)
    noise, times = torch.randn_like(clean), torch.tensor([999, 400])
    points = ModalityWeights(ray_directions=0, ray_moments=0, disparity=0)
    other = clean.clone()
    other[:, 4:] = torch.randn(2, 12, 4, 4, 4)
    with torch.no_grad():
        first, second = (objective(c, video, noise, times, points) for c in (clean, other))
        everything = objective(other, video, noise, times, ModalityWeights())
    assert torch.equal(first, second)
    assert not torch.equal(first, everything)


def test_every_parameter_of_the_denoiser_learns_and_the_vae_does_not():
    torch.manual_seed(0)
    networks = Geo4DNetworks(GEO4D_SIZES["toy"])
    objective = DenoiserObjective(networks)
    clean, video = torch.randn(1, 16, 4, 4, 4), torch.randn(1, 4, 4, 4, 4)
    loss = objective(clean, video, torch.randn_like(clean), torch.tensor([700]), ModalityWeights())
    loss.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())
    assert all(p.grad is None for p in networks.vae.parameters())


def test_latents_have_the_channels_of_their_modalities(batch):
    torch.manual_seed(0)
    vae = Geo4DVAE(GEO4D_SIZES["toy"].vae).eval()
    images = batch_images(batch)
    latents = geometry_latents(vae, images)
    assert latents.shape[:3] == (2, 16, 16)
    torch.testing.assert_close(latents[1, 12:, 3], vae.encode(images.disparity[1, 3:4])[0])
