"""Profiles of weights: what the released training did, and what is right."""

import math

import pytest

from more4d_backend.strag.profile import OWN, RELEASED
from more4d_backend.wan.latents import LATENT_CHANNELS


def test_the_released_second_standardisation_has_one_number_per_latent_channel():
    mean, std = RELEASED.latents.latent_mean, RELEASED.latents.latent_std
    assert mean is not None
    assert std is not None
    assert len(mean) == len(std) == LATENT_CHANNELS
    # Checksums of the published lists.
    assert math.fsum(mean) == pytest.approx(-4.8802, abs=1e-4)
    assert math.fsum(std) == pytest.approx(5.6782, abs=1e-4)


def test_released_guidance_misses_the_last_frame_and_ours_the_reference_frame():
    assert (RELEASED.unguided_frame, OWN.unguided_frame) == (-1, 0)


def test_released_weights_expect_constant_focal_lengths_and_ours_the_camera():
    assert RELEASED.motion.focal_xy == pytest.approx((1.04348, 1.0), abs=1e-5)
    assert OWN.motion.focal_xy is None
