"""The three networks of Geo4D and its sampling against the recorded reference."""

import math

import pytest
import torch
from safetensors.torch import load_file

from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.network import Geo4DUNet
from more4d_backend.geo4d.resampler import Resampler
from more4d_backend.geo4d.sampling import (
    SamplingSettings,
    alphas_cumprod,
    latent_scale,
    sample_latents,
    trailing_timesteps,
)
from more4d_backend.geo4d.sizes import Geo4DSize, UNetSize, VAESize
from more4d_backend.geo4d.vae import LATENT_SCALE, Geo4DVAE

pytestmark = pytest.mark.parity

RECORDED_SIZE = Geo4DSize(
    unet=UNetSize(
        model_channels=32,
        channel_mult=(1, 2, 2),
        num_res_blocks=1,
        head_dim=16,
        context_dim=48,
    ),
    vae=VAESize(channels=32, channel_mult=(1, 2, 2), num_res_blocks=1),
    num_frames=4,
)


def weights(recorded):
    prefix = "weights."
    return {
        name.removeprefix(prefix): tensor.float()
        for name, tensor in recorded.items()
        if name.startswith(prefix)
    }


@pytest.fixture(scope="module")
def unet(parity_dir):
    recorded = load_file(parity_dir / "geo4d_unet.safetensors")
    network = Geo4DUNet(RECORDED_SIZE)
    network.load_state_dict(weights(recorded))
    return network.eval().requires_grad_(False), recorded


def test_the_unet_computes_what_the_reference_does(unet):
    network, recorded = unet
    velocity = network(
        recorded["in.x"], recorded["in.timestep"], recorded["in.context"], recorded["in.fps"]
    )
    # 1.1e-5 measured; the recording itself is 5e-6 from a computation in float64.
    torch.testing.assert_close(velocity, recorded["out.v"], atol=3e-5, rtol=0)


@pytest.fixture(scope="module")
def vae(parity_dir):
    recorded = load_file(parity_dir / "geo4d_vae.safetensors")
    network = Geo4DVAE(RECORDED_SIZE.vae, pictures_per_call=1)
    held = weights(recorded)
    encoder = {n: t for n, t in held.items() if n.startswith(("encoder.", "quant_conv."))}
    both = {n: t for n, t in held.items() if n.startswith(("decoder.", "post_quant_conv."))}
    branch = {n: t for n, t in held.items() if n.startswith("decoder_adaptor.")}
    unused = {n for n in held if n.startswith("encoder_adaptor.")}
    assert encoder.keys() | both.keys() | branch.keys() | unused == held.keys()
    network.load_state_dict(
        encoder
        | {f"image_decoder.{n}": t for n, t in both.items()}
        | {f"point_decoder.{n}": t for n, t in (both | branch).items()}
    )
    return network.eval().requires_grad_(False), recorded


def test_the_vae_encodes_as_the_reference_does(vae):
    network, recorded = vae
    mean, log_variance = recorded["out.moments"].chunk(2, dim=1)
    latents = network.distribution(recorded["in.image"])
    # 1e-6 measured.
    torch.testing.assert_close(latents.mean / LATENT_SCALE, mean, atol=1e-5, rtol=0)
    unscaled = latents.log_variance - 2 * math.log(LATENT_SCALE)
    torch.testing.assert_close(unscaled, log_variance.clamp(-30, 20), atol=1e-5, rtol=0)


def test_both_decoders_compute_what_the_reference_does(vae):
    network, recorded = vae
    latents = recorded["in.latent"] * LATENT_SCALE
    decoded = network.decode(latents)
    # 2e-5 measured, of values up to 3.2.
    torch.testing.assert_close(decoded, recorded["out.decoded"], atol=5e-5, rtol=0)
    points = network.decode_points(latents)
    with_confidence = torch.cat([points.points, points.logit[:, None]], dim=1)
    wanted = recorded["out.decoded_with_confidence"]
    torch.testing.assert_close(with_confidence, wanted, atol=5e-5, rtol=0)


@torch.no_grad()
def test_the_resampler_computes_what_the_reference_does(parity_dir):
    recorded = load_file(parity_dir / "geo4d_resampler.safetensors")
    network = Resampler(
        dim=64, depth=2, heads=4, head_dim=16, num_queries=64, embedding_dim=80, output_dim=48
    )
    network.load_state_dict(weights(recorded))
    tokens = network(recorded["in.image_tokens"])
    torch.testing.assert_close(tokens, recorded["out.tokens"], atol=1e-5, rtol=0)


def test_the_schedule_is_the_released_one(parity_dir):
    recorded = load_file(parity_dir / "geo4d_ddim.safetensors")
    alphas, scale = alphas_cumprod().float(), latent_scale().float()
    # The recorded schedule was computed in float32; 4e-7 measured.
    torch.testing.assert_close(alphas, recorded["alphas_cumprod"], atol=1e-6, rtol=0)
    torch.testing.assert_close(scale, recorded["scale_arr"][:1000], atol=1e-6, rtol=0)
    assert trailing_timesteps(5).flip(0).tolist() == recorded["ddim_timesteps"].tolist()


def test_five_steps_give_what_the_reference_samples(unet, parity_dir):
    network, of_the_network = unet
    recorded = load_file(parity_dir / "geo4d_ddim.safetensors")
    networks = Geo4DNetworks(RECORDED_SIZE).requires_grad_(False)
    networks.unet = network
    networks.context.copy_(of_the_network["in.context"])
    latents = sample_latents(
        networks,
        recorded["in.video_latent"],
        recorded["in.noise"],
        fps=int(of_the_network["in.fps"]),
        settings=SamplingSettings(rescale="released"),
    )
    # 1e-5 measured.
    torch.testing.assert_close(latents, recorded["out.latents"], atol=5e-5, rtol=0)
