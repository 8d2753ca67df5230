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
    geometry_latents,
    laplace_nll,
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
