"""The trainer of the embedded Geo4D: its losses, its variants of a clip, and a whole small run."""

import math
from dataclasses import replace

import pytest
import torch

from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.geo4d.vae import DecodedPoints, Geo4DVAE
from more4d_backend.weights.geo4d import load_geo4d
from training.geo4d_objectives import (
    DenoiserObjective,
    ModalityWeights,
    PointDecoderObjective,
    geometry_latents,
    laplace_nll,
)
from training.geometry_clips import batch_images, stack_clips
from training.procedural_clips import ClipSettings, procedural_clip
from training.train_tiny_geo4d import (
    FILE_NAME,
    TinyGeo4DTraining,
    drawn_timesteps,
    fold_latents,
    train,
    varied,
)

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


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_variant_is_a_true_clip_of_another_world(batch, mirrored):
    images = batch_images(batch)
    for seed in range(4):  # backwards or not
        with torch.autocast("cpu", torch.bfloat16):
            other = varied(batch, torch.Generator().manual_seed(seed), mirrored=mirrored)
        again = batch_images(other)
        backwards = not torch.equal(other.intrinsics, batch.intrinsics) or not torch.equal(
            other.depth, batch.depth.flip(3) if mirrored else batch.depth
        )
        if backwards:
            continue
        expected = images.points.flip(-1) if mirrored else images.points
        sign = torch.tensor([-1.0, 1.0, 1.0]) if mirrored else torch.ones(3)
        valid = other.valid[:, :, None].expand_as(expected)
        expected = expected * sign[:, None, None]
        torch.testing.assert_close(again.points[valid], expected[valid], atol=1e-4, rtol=0)
        rays = images.ray_directions.flip(-1) if mirrored else images.ray_directions
        rays = rays * sign[:, None, None]
        torch.testing.assert_close(again.ray_directions, rays, atol=1e-5, rtol=0)
        return
    pytest.fail("four seeds never gave a clip that runs forwards")


def test_folding_brings_latents_to_0_and_1_and_keeps_what_is_decoded(batch):
    torch.manual_seed(0)
    vae = Geo4DVAE(GEO4D_SIZES["toy"].vae).double().eval()
    images = batch_images(batch).points[0].double()
    with torch.no_grad():
        before = vae.encode(images)
        spread = vae.distribution(images).log_variance
        decoded = vae.decode(before), vae.decode_points(before).points
        flat = before.transpose(0, 1).flatten(1)
        mean, std = flat.mean(1), flat.std(1)
        fold_latents(vae, mean, std)
        after = vae.encode(images)
        again = vae.decode(after), vae.decode_points(after).points
    flat = after.transpose(0, 1).flatten(1)
    # Encoded and decoded pictures are float32 whatever computes them.
    torch.testing.assert_close(flat.mean(1), torch.zeros_like(mean), atol=1e-4, rtol=0)
    torch.testing.assert_close(flat.std(1), torch.ones_like(std), atol=1e-4, rtol=0)
    for ours, theirs in zip(again, decoded, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    now = vae.distribution(images).log_variance
    torch.testing.assert_close(now, spread - 2 * std.log()[:, None, None], atol=1e-4, rtol=0)


def test_timesteps_are_mostly_those_that_sampling_goes_through():
    times = drawn_timesteps(1000, 0.5, torch.Generator().manual_seed(0))
    assert (times == 999).float().mean() == pytest.approx(0.5, abs=0.01)
    on_the_way = torch.isin(times, torch.tensor([199, 399, 599, 799])).float().mean()
    assert on_the_way == pytest.approx(0.25, abs=0.02)
    assert times.min() >= 0


def test_a_small_run_writes_a_file_that_loads_and_says_what_it_measured(tmp_path, caplog):
    training = TinyGeo4DTraining(
        output=tmp_path, clips=SMALL, pool_size=2, vae_steps=2, vae_clips=1, unet_steps=2,
        unet_windows=2, device="cpu", precision="fp32", workers=0, evaluated_clips=1,
    )  # fmt: skip
    with caplog.at_level("INFO"):
        path = train(training)
    assert path == tmp_path / FILE_NAME
    assert path.stat().st_size < 6_000_000
    networks = load_geo4d(path)
    assert networks.size == GEO4D_SIZES["tiny"]
    assert "5 steps: rotation RPE" in caplog.text
    assert "true latents: rotation RPE" in caplog.text


def test_another_seed_draws_other_clips():
    first = TinyGeo4DTraining(clips=SMALL, pool_size=1, device="cpu", workers=0)
    from training.train_tiny_geo4d import _drawn

    one, two = (next(_drawn(t)) for t in (first, replace(first, seed=2)))
    assert not torch.equal(one.video, two.video)


def test_latents_have_the_channels_of_their_modalities(batch):
    torch.manual_seed(0)
    vae = Geo4DVAE(GEO4D_SIZES["toy"].vae).eval()
    images = batch_images(batch)
    latents = geometry_latents(vae, images)
    assert latents.shape[:3] == (2, 16, 16)
    torch.testing.assert_close(latents[1, 12:, 3], vae.encode(images.disparity[1, 3:4])[0])
