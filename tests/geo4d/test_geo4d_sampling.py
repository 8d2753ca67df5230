"""Schedule and DDIM steps of Geo4D."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.sampling import (
    SamplingError,
    SamplingSettings,
    alphas_cumprod,
    latent_scale,
    noised,
    sample_latents,
    trailing_timesteps,
)
from more4d_backend.geo4d.sizes import GEO4D_SIZES

SHAPE = 2, 16, 4, 4, 6


def draw(seed, channels=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((2, channels, *SHAPE[2:]), generator=generator)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return Geo4DNetworks(GEO4D_SIZES["toy"]).eval().requires_grad_(False)


def all_knowing(clean):
    """Networks that know the clean latent and so predict the velocity exactly."""

    def unet(latents, timestep, context, fps):
        alpha, scale = alphas_cumprod()[timestep[0]], latent_scale()[timestep[0]]
        scaled, noisy = clean.double() * scale, latents[:, :16].double()
        noise = (noisy - alpha.sqrt() * scaled) / (1 - alpha).sqrt()
        return (alpha.sqrt() * noise - (1 - alpha).sqrt() * scaled).float()

    known = {"context": None, "device": "cpu", "dtype": torch.float32, "num_steps": 5}
    return SimpleNamespace(unet=unet, **known)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 10, 25])
def test_a_perfect_network_is_believed(num_steps):
    clean, noise = draw(0), draw(1)
    settings = SamplingSettings(num_steps=num_steps)
    result = sample_latents(all_knowing(clean), draw(2, 4), noise, settings=settings)
    torch.testing.assert_close(result, clean, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("num_steps", "scale"), [(1, 0.70), (5, 0.850), (10, 0.926), (25, 0.971)])
def test_wart_the_released_steps_leave_their_last_scale_and_some_noise(num_steps, scale):
    clean, noise = draw(0), draw(1)
    settings = SamplingSettings(num_steps=num_steps, rescale="released")
    result = sample_latents(all_knowing(clean), draw(2, 4), noise, settings=settings)
    first = float(alphas_cumprod()[0])
    expected = first**0.5 * scale * clean + (1 - first) ** 0.5 * noise
    torch.testing.assert_close(result, expected, atol=2e-3, rtol=0)


def test_the_schedule_ends_in_pure_noise_and_starts_almost_clean():
    alpha = alphas_cumprod()
    assert alpha[-1] == 0
    assert alpha[0] == pytest.approx(0.99915, abs=1e-9)
    assert (alpha.diff() < 0).all()
    wanted = [0.73870, 0.39354, 0.12845, 0.01788]
    torch.testing.assert_close(alpha[[199, 399, 599, 799]].tolist(), wanted, atol=1e-5, rtol=0)
    assert latent_scale()[0] == 1
    assert latent_scale()[199] == pytest.approx(0.85, abs=1e-3)
    assert (latent_scale()[399:] - 0.7).abs().max() < 1e-12


@pytest.mark.parametrize("num_steps", [1, 3, 5, 7, 50, 999, 1000])
def test_timesteps_start_at_pure_noise_and_are_as_many_as_asked(num_steps):
    steps = trailing_timesteps(num_steps)
    assert len(steps) == num_steps
    assert steps[0] == 999
    assert (steps.diff() < 0).all()
    assert steps[-1] >= 0


def test_a_training_example_holds_the_clean_latent_and_the_noise():
    clean, noise = draw(0).double(), draw(1).double()
    timestep = torch.tensor([300, 999])
    made = noised(clean, noise, timestep)
    alpha = alphas_cumprod()[timestep].view(-1, 1, 1, 1, 1)
    scaled = clean * latent_scale()[timestep].view(-1, 1, 1, 1, 1)
    back = alpha.sqrt() * made.noisy - (1 - alpha).sqrt() * made.velocity
    torch.testing.assert_close(back, scaled, atol=1e-9, rtol=0)
    assert torch.equal(made.noisy[1], noise[1])


def test_windows_are_sampled_alike_alone_and_together(networks):
    video, noise = draw(2, 4), draw(1)
    together = sample_latents(networks, video, noise)
    alone = [sample_latents(networks, video[i : i + 1], noise[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    assert torch.equal(sample_latents(networks, video, noise), together)


def test_progress_is_told_and_may_interrupt(networks):
    told = []
    sample_latents(networks, draw(2, 4), draw(1), progress=lambda *args: told.append(args))
    assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_latents(networks, draw(2, 4), draw(1), progress=stop)


@pytest.mark.usefixtures("as_users_run_it")
def test_a_network_that_returns_nan_is_told_with_its_step():
    clean = draw(0)
    known = all_knowing(clean)

    def broken(latents, timestep, context, fps):
        velocity = known.unet(latents, timestep, context, fps)
        return torch.where(timestep.view(-1, 1, 1, 1, 1) == 599, torch.nan, velocity)

    networks = all_knowing(clean)
    networks.unet = broken
    with pytest.raises(SamplingError, match=r"NaN or infinity at step 3 of 5 \(timestep 599\)"):
        sample_latents(networks, draw(2, 4), draw(1))


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_settings_that_cannot_work_are_refused(num_steps):
    with pytest.raises(SamplingError, match=rf"num_steps is {num_steps}; expected 1 to 1000, or N"):
        SamplingSettings(num_steps=num_steps)


@pytest.mark.usefixtures("as_users_run_it")
def test_where_no_steps_are_named_the_networks_decide():
    networks, done = all_knowing(draw(0)), []
    for of_networks, asked in ((1, None), (2, None), (2, 4)):
        networks.num_steps = of_networks
        sample_latents(
            networks,
            draw(2, 4),
            draw(1),
            settings=SamplingSettings(num_steps=asked),
            progress=lambda *step: done.append(step),
        )
    assert done == [(1, 1), (1, 2), (2, 2), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_log_says_how_many_steps_and_why(networks, caplog):
    with caplog.at_level("INFO"):
        assert SamplingSettings().for_networks(networks) == SamplingSettings(num_steps=5)
        assert SamplingSettings(num_steps=1).for_networks(networks).num_steps == 1
    assert caplog.messages == [
        "Denoising in 5 steps: what these weights are made for.",
        "Denoising in 1 step: as asked for.",
    ]


@pytest.mark.usefixtures("as_users_run_it")
def test_an_unknown_rescale_is_refused_with_those_that_exist():
    with pytest.raises(SamplingError, match="rescale is 'best'; expected one of corrected, relea"):
        SamplingSettings(rescale="best")


COMPILED = """
import torch
from torch._dynamo.utils import counters
from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.sampling import sample_latents
from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.geo4d.speed import compile_networks

torch.manual_seed(0)
networks = Geo4DNetworks(GEO4D_SIZES["toy"]).eval().requires_grad_(False).to_channels_last()
video, noise = torch.randn(2, 4, 4, 8, 8), torch.randn(2, 16, 4, 8, 8)
pictures = torch.rand(4, 3, 8, 8)

def run():
    latents = sample_latents(networks, video, noise)
    first = latents[0, :4].movedim(1, 0)
    vae = networks.vae
    return latents, vae.decode_points(first).points, vae.decode(first), vae.encode(pictures)

plain = run()
compile_networks(networks, backend="aot_eager")
for before, after in zip(plain, run()):
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
graphs = counters["stats"]["unique_graphs"]
run()
assert counters["stats"]["unique_graphs"] == graphs
compiled = sum(module._compiled_call_impl is not None for module in networks.modules())
print(graphs, compiled, sum(counters["graph_break"].values()))
"""


def test_blocks_compile_without_breaks_share_their_graphs_and_compute_the_same():
    # In a process of its own: the annotation checks of tests do not compile.
    told = subprocess.run(
        [sys.executable, "-c", COMPILED],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr[-3000:]
    graphs, compiled, breaks = map(int, told.stdout.split())
    assert breaks == 0
    assert 0 < graphs < compiled
