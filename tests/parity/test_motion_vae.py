"""The motion VAE against the recorded reference."""

import pytest
import torch
from safetensors.torch import load_file

from more4d_backend.strag.motion_vae import DecoderAdapter, EncoderAdapter
from more4d_backend.wan.latents import decode_video, encode_distribution

pytestmark = pytest.mark.parity


def with_prefix(tensors, prefix):
    return {
        name.removeprefix(prefix): tensor.float()
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


@pytest.fixture(scope="module")
def adapters(parity_dir):
    return load_file(parity_dir / "motion_vae_adapters.safetensors")


@torch.no_grad()
def test_the_encoder_adapter_computes_what_the_reference_does(adapters):
    adapter = EncoderAdapter(width=32)
    adapter.load_state_dict(with_prefix(adapters, "encoder."))
    encoded_01 = adapter(adapters["in.motion"]) / 2 + 0.5
    torch.testing.assert_close(encoded_01, adapters["out.encoded_01"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_decoder_adapter_computes_what_the_reference_does(adapters):
    adapter = DecoderAdapter(width=32)
    adapter.load_state_dict(with_prefix(adapters, "decoder."))
    decoded = adapter(adapters["in.motion"])
    torch.testing.assert_close(decoded, adapters["out.decoded"], atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def small_vae(parity_dir):
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    recorded = load_file(parity_dir / "wan_vae_small.safetensors")
    # Recorded without latent statistics: mean 0, std 1.
    vae = AutoencoderKLWan(base_dim=16, latents_mean=[0.0] * 16, latents_std=[1.0] * 16)
    original = with_prefix(recorded, "weights.model.")
    vae.load_state_dict(convert_wan_vae_to_diffusers(original))
    return vae.eval().requires_grad_(False), recorded


def test_the_wan_vae_encodes_as_the_reference_does(small_vae):
    vae, recorded = small_vae
    posterior = encode_distribution(vae, recorded["in.video"])
    torch.testing.assert_close(
        posterior.parameters, recorded["out.moments_or_mean"], atol=1e-4, rtol=0
    )


def test_the_wan_vae_decodes_as_the_reference_does_with_and_without_the_clamp(small_vae):
    vae, recorded = small_vae
    wanted = recorded["out.decoded_unclamped"]
    latent = recorded["out.moments_or_mean"][:, :16]
    unclamped = decode_video(vae, latent, clamp=False)
    torch.testing.assert_close(unclamped, wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(decode_video(vae, latent), wanted.clamp(-1, 1), atol=1e-4, rtol=0)
