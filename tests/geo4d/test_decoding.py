"""Which modalities of the windows are decoded, and at which size."""

from dataclasses import replace

import torch

from more4d_backend.geo4d.alignment import AlignmentSettings
from more4d_backend.geo4d.decoding import DecodingSettings, decode_windows
from more4d_backend.geo4d.framing import plan_framing
from more4d_backend.geo4d.pipeline import reconstruct
from more4d_backend.geo4d.sizes import GEO4D_SIZES, VAESize
from more4d_backend.geo4d.windows import plan_windows


def test_only_what_the_alignment_uses_is_decoded(toy_networks, one_step, clip, monkeypatch):
    decoded = []
    decode = toy_networks.vae.decode

    def spy(latents, *, reduction=1):
        decoded.append((len(latents), reduction))
        return decode(latents, reduction=reduction)

    monkeypatch.setattr(toy_networks.vae, "decode", spy)
    settings = replace(one_step, alignment=AlignmentSettings.points_only())
    reconstruct(clip(4), toy_networks, settings)
    assert decoded == []
    reconstruct(clip(4, 96, 128), toy_networks, replace(one_step, network_hw=(96, 128)))
    assert decoded == [(8, 1), (4, 1)]  # rays and moments together; then disparity
    decoded.clear()
    asked = replace(one_step.decoding, ray_reduction=2, disparity_reduction=2)
    settings = replace(one_step, network_hw=(96, 128), decoding=asked)
    reconstruct(clip(4, 96, 128), toy_networks, settings)
    assert decoded == [(8, 2), (4, 2)]


def test_a_mirrored_window_is_decoded_and_then_turned_back(toy_networks):
    latents = torch.randn(1, 16, 4, 12, 16, generator=torch.Generator().manual_seed(0))
    framing = plan_framing((48, 64), toy_networks.size)
    seen, mirrored = plan_windows(4, 1, 4, mirrored=True)
    (as_seen,) = decode_windows(toy_networks, latents, [seen], framing)
    (turned,) = decode_windows(toy_networks, latents, [mirrored], framing)
    expected = as_seen.mirrored()
    assert torch.equal(turned.points, expected.points)
    assert torch.equal(turned.rays.moments, expected.rays.moments)
    assert turned.first_frame == as_seen.first_frame


def test_less_is_decoded_where_latents_and_vae_are_large_enough():
    released, small = VAESize(), GEO4D_SIZES["tiny"].vae
    chosen = DecodingSettings().for_latents((40, 64), released)
    assert (chosen.ray_reduction, chosen.disparity_reduction) == (4, 2)
    chosen = DecodingSettings().for_latents((24, 80), released)
    assert (chosen.ray_reduction, chosen.disparity_reduction) == (2, 2)
    chosen = DecodingSettings().for_latents((10, 16), released)
    assert (chosen.ray_reduction, chosen.disparity_reduction) == (1, 1)
    chosen = DecodingSettings().for_latents((40, 64), small)
    assert (chosen.ray_reduction, chosen.disparity_reduction) == (1, 1)
    chosen = DecodingSettings(ray_reduction=2).for_latents((10, 16), small)
    assert (chosen.ray_reduction, chosen.disparity_reduction) == (2, 1)
