"""Which modalities of the windows are decoded, and at which size."""

from dataclasses import replace

from more4d_backend.geo4d.alignment import AlignmentSettings
from more4d_backend.geo4d.decoding import DecodingSettings
from more4d_backend.geo4d.pipeline import reconstruct


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
    assert decoded == [(8, 2), (4, 2)]  # rays and moments together; then disparity


def test_less_is_decoded_of_small_latents_only_where_something_is_left():
    chosen = DecodingSettings().for_latents((40, 64))
    assert (chosen.ray_reduction, chosen.disparity_reduction) == (4, 2)
    chosen = DecodingSettings().for_latents((24, 80))
    assert (chosen.ray_reduction, chosen.disparity_reduction) == (2, 2)
    chosen = DecodingSettings().for_latents((10, 16))
    assert (chosen.ray_reduction, chosen.disparity_reduction) == (1, 1)
    chosen = DecodingSettings(ray_reduction=2).for_latents((10, 16))
    assert (chosen.ray_reduction, chosen.disparity_reduction) == (2, 1)
