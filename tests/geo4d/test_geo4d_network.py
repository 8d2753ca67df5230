"""The 3D UNet."""

import pytest
import torch

from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.network import Geo4DUNet, LatentSizeError
from more4d_backend.geo4d.sizes import GEO4D_SIZES

TOY = GEO4D_SIZES["toy"]


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    made = Geo4DNetworks(TOY).eval().requires_grad_(False).double()
    # New networks are near the identity; with larger weights a mistake shows.
    for name, parameter in made.unet.named_parameters():
        if parameter.dim() > 1 and ("proj_out" in name or "out_layers" in name):
            parameter.mul_(20)
    return made


def inputs(windows=1, frames=4, height=4, width=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = windows, 20, frames, height, width
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def call(networks, latents, timestep=500, fps=24, context=None):
    count = len(latents)
    context = networks.context if context is None else context
    return networks.unet(
        latents, torch.full((count,), timestep), context, torch.full((count,), fps)
    )


def test_windows_of_a_batch_do_not_see_each_other(networks):
    latents = inputs(windows=3)
    together = call(networks, latents)
    alone = torch.cat([call(networks, window[None]) for window in latents])
    torch.testing.assert_close(together, alone, atol=1e-9, rtol=0)
    repeated = call(networks, latents, context=networks.context.expand(3, -1, -1))
    torch.testing.assert_close(repeated, together, atol=1e-9, rtol=0)


@pytest.mark.parametrize("contexts", [1, 2])
def test_a_window_gives_the_same_with_and_without_gradients(networks, contexts):
    latents, context = inputs(windows=2), networks.context.expand(contexts, -1, -1)
    with torch.enable_grad():
        learning = call(networks, latents, context=context)
    with torch.no_grad():
        torch.testing.assert_close(
            call(networks, latents, context=context), learning, atol=1e-9, rtol=0
        )


def test_frames_of_a_window_see_each_other_and_their_own_tokens(networks):
    latents = inputs()
    base = call(networks, latents)
    changed = latents.clone()
    changed[:, :, 3] += 1
    assert (call(networks, changed) - base)[:, :, 0].abs().max() > 1e-6
    tokens = networks.context.clone()
    tokens[:, -16:] += 1  # those of the last frame
    difference = (call(networks, latents, context=tokens) - base).abs().amax((0, 1, 3, 4))
    assert difference[3] > 1.2 * difference[0] > 0


def test_timestep_and_frame_rate_matter(networks):
    latents = inputs()
    base = call(networks, latents)
    assert (call(networks, latents, timestep=501) - base).abs().max() > 1e-6
    assert (call(networks, latents, fps=10) - base).abs().max() > 1e-6


@pytest.mark.usefixtures("as_users_run_it")
def test_windows_that_do_not_fit_are_refused_with_the_numbers(networks):
    with pytest.raises(LatentSizeError, match="has 3 frames; this network was made for 4"):
        call(networks, inputs(frames=3))
    with pytest.raises(LatentSizeError, match="4 x 5; expected multiples of 2, which are multip"):
        call(networks, inputs(width=5))
    with pytest.raises(LatentSizeError, match="77 tokens; 4 frames need 141"):
        call(networks, inputs(), context=networks.context[:, :77])


def gradients(networks, checkpointing):
    networks.zero_grad()
    networks.enable_gradient_checkpointing(checkpointing)
    generator = torch.Generator().manual_seed(3)
    pictures = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    velocity = call(networks, inputs().float())
    posterior = networks.vae.distribution(pictures)
    points = networks.vae.decode_points(posterior.mean)
    decoded = networks.vae.decode(posterior.sample(generator))
    laplace = (points.points.abs().sum(1) / points.sigma + points.sigma.log()).mean()
    (velocity.pow(2).mean() + laplace + decoded.pow(2).mean()).backward()
    return {name: p.grad for name, p in networks.named_parameters()}


def test_gradients_reach_every_parameter_and_checkpointing_changes_none():
    torch.manual_seed(0)
    networks = Geo4DNetworks(TOY).train()
    plain, again = (gradients(networks, checkpointing) for checkpointing in (False, True))
    for name, gradient in plain.items():
        assert gradient is not None, name
        # A bias right before a norm of its own channel alone has no effect.
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(again[name], gradient, atol=1e-5, rtol=1e-3)


def test_a_new_network_starts_near_silence():
    torch.manual_seed(0)
    networks = Geo4DNetworks(TOY).eval()
    with torch.no_grad():
        velocity = call(networks, inputs().float())
    assert velocity.std() < 0.1


def test_full_and_embedded_sizes_have_the_parameters_that_they_say():
    with torch.device("meta"):
        full = Geo4DUNet(GEO4D_SIZES["full"])
    assert sum(p.numel() for p in full.parameters()) == 1_438_924_112
    assert GEO4D_SIZES["full"].pixel_step == 64
