import pytest
import torch

from more4d_backend.wan.sampling import (
    PromptPair,
    SamplingError,
    SamplingSettings,
    denoise,
    initial_noise,
    make_scheduler,
)

SHAPE = (1, 16, 2, 2, 4)


def texts(batch=1):
    return PromptPair(prompt=torch.ones(batch, 4, 8), negative=-torch.ones(batch, 4, 8))


def noise(seed=0, shape=SHAPE):
    return initial_noise(shape, torch.Generator().manual_seed(seed), "cpu")


def straight_to(target, seen=None):
    """Make the exact velocity of a network that knows the answer: a straight line to `target`."""

    def velocity(latent, timestep, text, branch):
        if seen is not None:
            seen.append((latent.shape[0], branch, float(text.mean())))
        sigma = (timestep / 1000).view(-1, 1, 1, 1, 1)
        return (latent - target) / sigma

    return velocity


@pytest.mark.parametrize("sampler", ["euler", "unipc", "dpm++"])
def test_every_sampler_reaches_the_answer_of_a_network_that_knows_it(sampler):
    target = noise(seed=5)
    settings = SamplingSettings(num_steps=6, guidance_scale=1, sampler=sampler)
    found = denoise(straight_to(target), noise(), texts(), settings)
    # Measured: 2e-9 euler, 2.1e-3 unipc, 2.9e-3 dpm++ (their timesteps are whole numbers).
    tolerance = 1e-5 if sampler == "euler" else 1e-2
    torch.testing.assert_close(found, target, atol=tolerance, rtol=0)


@pytest.mark.parametrize("sampler", ["euler", "unipc", "dpm++"])
def test_schedules_start_at_noise_fall_and_end_at_zero(sampler):
    scheduler = make_scheduler(SamplingSettings(num_steps=12, sampler=sampler))
    sigmas = scheduler.sigmas
    assert len(scheduler.timesteps) == 12
    assert sigmas[0] == pytest.approx(1, abs=1e-3)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_guidance_moves_from_the_negative_through_the_prompt_prediction():
    latent = noise()

    def velocity(latent, timestep, text, branch):
        return text.mean((1, 2)).view(-1, 1, 1, 1, 1).expand_as(latent)

    settings = SamplingSettings(num_steps=1, guidance_scale=3.0)
    moved = denoise(velocity, latent, texts(), settings) - latent
    # The step is sigma 1 -> 0; guided velocity is -1 + 3 * (1 - -1) = 5.
    torch.testing.assert_close(moved, torch.full(SHAPE, -5.0))


def test_batched_and_sequential_guidance_are_the_same_and_only_batch_differently():
    target = noise(seed=5)
    calls = {}
    results = []
    for sequential in (False, True):
        seen = calls.setdefault(sequential, [])
        settings = SamplingSettings(num_steps=3, sequential_guidance=sequential)
        results.append(denoise(straight_to(target, seen), noise(), texts(), settings))
    torch.testing.assert_close(*results, atol=0, rtol=0)
    assert calls[False] == [(2, "both", 0.0)] * 3
    assert calls[True] == [(1, "negative", -1.0), (1, "prompt", 1.0)] * 3


def test_guidance_scale_1_and_the_steps_after_the_guided_fraction_use_the_prompt_alone():
    for settings, branches in (
        (SamplingSettings(num_steps=4, guidance_scale=1.0), ["prompt"] * 4),
        (SamplingSettings(num_steps=4, guided_fraction=0.5), ["both"] * 2 + ["prompt"] * 2),
    ):
        seen = []
        denoise(straight_to(noise(1), seen), noise(), texts(), settings)
        assert [branch for _, branch, _ in seen] == branches


def test_nan_from_the_network_stops_and_names_the_step():
    calls = []

    def velocity(latent, timestep, text, branch):
        calls.append(branch)
        return latent * (float("nan") if len(calls) == 3 else 0.1)

    with pytest.raises(SamplingError, match=r"step 3 of 5 \(timestep"):
        denoise(velocity, noise(), texts(), SamplingSettings(num_steps=5))
    assert len(calls) == 3


def test_progress_counts_steps_and_raising_from_it_interrupts():
    seen = []

    def progress(done, total):
        seen.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        denoise(
            straight_to(noise(1)),
            noise(),
            texts(),
            SamplingSettings(num_steps=4),
            progress=progress,
        )
    assert seen == [(1, 4), (2, 4)]


def test_the_same_seed_gives_the_same_noise_and_latents_stay_float32():
    assert torch.equal(noise(3), noise(3))
    assert not torch.equal(noise(3), noise(4))

    def half(latent, timestep, text, branch):
        return latent.bfloat16()

    assert denoise(half, noise(), texts(), SamplingSettings(num_steps=2)).dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_steps": 0}, "num_steps is 0"),
        ({"sampler": "ddim"}, "sampler is 'ddim'.*euler, unipc"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"shift": 0.0}, "shift is 0"),
        ({"guided_fraction": 1.5}, "guided_fraction is 1.5"),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_settings_that_cannot_work_are_refused_by_name(changes, says):
    with pytest.raises(SamplingError, match=says):
        SamplingSettings(**changes)
