"""The embedded Geo4D's VAE: how it starts, and how its latents are brought to 0 and 1."""

import pytest
import torch

from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.geo4d.vae import Geo4DVAE
from training.geo4d.clips import batch_images, stack_clips
from training.geo4d.tiny_vae import fold_latents, strengthen
from training.procedural.clips import ClipSettings, procedural_clip

SMALL = ClipSettings(size_hw=(16, 32), num_frames=16, samples=1)


@pytest.fixture(scope="module")
def batch():
    return stack_clips([procedural_clip(seed, SMALL) for seed in (5, 7)])


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


def test_a_strengthened_vae_says_more_of_a_picture_than_noise_hides(batch):
    pictures = batch.pictures().flatten(0, 1)

    def signal_to_noise(vae: Geo4DVAE) -> float:
        with torch.no_grad():
            seen = vae.distribution(pictures)
        return float(seen.mean.std(0).mean() / (seen.log_variance / 2).exp().mean())

    torch.manual_seed(0)
    vae = Geo4DVAE(GEO4D_SIZES["tiny"].vae).eval()
    assert signal_to_noise(vae) < 1  # measured: 0.13
    strengthen(vae)
    assert signal_to_noise(vae) > 5  # measured: 9
