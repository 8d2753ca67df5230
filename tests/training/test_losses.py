import pytest
import torch

from more4d_backend.wan.latents import VideoSizeError
from training.losses import (
    add_noise,
    at_latent_size,
    divergence_loss,
    flow_matching_loss,
    motion_loss,
    stratified_noise_levels,
    visibility_weight,
)


def _draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("num_samples", "num_ranks"), [(3, 4), (1, 16), (12, 1)])
def test_the_noise_levels_of_all_ranks_cover_the_range_evenly(num_samples, num_ranks):
    for seed in range(20):
        levels = torch.cat(
            [
                stratified_noise_levels(
                    num_samples, shift=1.0, generator=_draw(seed), rank=r, num_ranks=num_ranks
                )
                for r in range(num_ranks)
            ]
        )
        total = num_samples * num_ranks
        bins = torch.histc(levels, bins=total, min=0, max=1)
        assert (bins == 1).all()


def test_every_sample_of_every_rank_sees_all_noise_levels_in_time():
    first_of_rank_0 = torch.cat(
        [
            stratified_noise_levels(2, shift=1.0, generator=_draw(s), num_ranks=4)[:1]
            for s in range(2000)
        ]
    )
    assert first_of_rank_0.mean() == pytest.approx(0.5, abs=0.03)
    assert first_of_rank_0.std() == pytest.approx(12**-0.5, abs=0.02)


def test_the_shift_of_5_gives_the_released_mix_of_noise_levels():
    sigma = torch.cat(
        [stratified_noise_levels(16, shift=5.0, generator=_draw(s)) for s in range(500)]
    )
    # The released schedule: mean 0.748, 56 % above 0.8.
    assert sigma.mean() == pytest.approx(0.748, abs=0.003)
    assert (sigma > 0.8).float().mean() == pytest.approx(0.556, abs=0.01)
    assert 0 < sigma.min() < sigma.max() < 1


def test_noise_is_mixed_in_by_its_level():
    latent, noise = torch.zeros(3, 2, 4), torch.ones(3, 2, 4)
    mixed = add_noise(latent, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert torch.equal(mixed[:, 0, 0], torch.tensor([0.0, 0.25, 1.0]))


def test_the_true_velocity_has_no_loss_and_leads_back_to_the_latent():
    latent, noise = torch.randn(2, 16, 3, 4, 4), torch.randn(2, 16, 3, 4, 4)
    velocity = noise - latent
    assert (flow_matching_loss(velocity, latent, noise) == 0).all()
    sigma = torch.tensor([0.3, 0.9])
    noisy = add_noise(latent, noise, sigma)
    assert torch.allclose(noisy - sigma.view(2, 1, 1, 1, 1) * velocity, latent, atol=1e-5)


def test_the_loss_is_per_sample_and_the_mean_square_where_nothing_is_weighted():
    latent = noise = torch.zeros(2, 16, 3, 4, 4)
    velocity = torch.stack([torch.full((16, 3, 4, 4), 2.0), torch.full((16, 3, 4, 4), 3.0)])
    assert torch.equal(flow_matching_loss(velocity, latent, noise), torch.tensor([4.0, 9.0]))


def test_hidden_places_count_by_their_weight():
    latent = noise = torch.zeros(1, 16, 1, 1, 2)
    velocity = torch.zeros(1, 16, 1, 1, 2)
    velocity[..., 0], velocity[..., 1] = 1.0, 3.0
    weight = torch.tensor([1.0, 0.25]).view(1, 1, 1, 1, 2)
    loss = flow_matching_loss(velocity, latent, noise, weight)
    assert float(loss) == pytest.approx((1 * 1 + 0.25 * 9) / 1.25)


def test_errors_beyond_the_limit_count_as_right_but_nan_does_not():
    latent = noise = torch.zeros(2, 1, 1, 1, 2)
    velocity = torch.tensor([[51.0, 1.0], [float("nan"), 1.0]]).view(2, 1, 1, 1, 2)
    loss = flow_matching_loss(velocity, latent, noise, max_error=50.0)
    assert float(loss[0]) == 0.5
    unlimited = flow_matching_loss(velocity, latent, noise)
    assert unlimited[1].isnan()
    assert loss[1].isnan()


def test_motion_errors_are_absolute_or_squared():
    motion = torch.zeros(1, 3, 1, 2, 2)
    assert float(motion_loss(motion + 3, motion)) == 3
    assert float(motion_loss(motion - 3, motion, squared=True)) == 9


def test_the_divergence_is_that_of_torch_distributions():
    mean, log_variance = torch.randn(2, 5, 3).double(), torch.randn(2, 5, 3).double()
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(normal, standard).flatten(1).sum(1)
    assert torch.allclose(divergence_loss(mean, log_variance).double(), expected, rtol=1e-5)


def test_a_weight_at_latent_size_covers_one_and_then_four_frames():
    visibility = torch.ones(1, 9, 16, 32, dtype=torch.bool)
    visibility[:, 0, :8, :8] = False  # all of one element of the first latent frame
    visibility[:, 3, :8, 8:16] = False  # one frame of four
    visibility[:, 8, 8:12, :8] = False  # half of one frame of four
    weight = at_latent_size(visibility_weight(visibility, 0.2))
    assert weight.shape == (1, 1, 3, 2, 4)
    expected = torch.ones(3, 2, 4)
    expected[0, 0, 0] = 0.2
    expected[1, 0, 1] = 0.8
    expected[2, 1, 0] = 0.9
    assert torch.allclose(weight[0, 0], expected)


def test_frames_that_the_vae_would_cut_are_refused():
    with pytest.raises(VideoSizeError, match="Use 5 or 9"):
        at_latent_size(torch.ones(1, 1, 8, 16, 16))
