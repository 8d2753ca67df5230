import dataclasses

import pytest
import torch

from more4d_backend.strag.motion_vae import (
    FRAMES_PER_CALL,
    DecoderAdapter,
    EncoderAdapter,
    MotionLatentSettings,
    MotionVAE,
)
from more4d_backend.wan.latents import VideoSizeError, encode_video

OWN = MotionLatentSettings(clamp_decoded=False)
RELEASED = MotionLatentSettings(
    clamp_decoded=True,
    latent_mean=tuple(float(i) for i in range(16)),
    latent_std=tuple(0.5 + i for i in range(16)),
)


def motion_vae(settings=OWN, width=8):
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=4).requires_grad_(False)
    return MotionVAE(vae, EncoderAdapter(width), DecoderAdapter(width), settings)


def motion(frames=5, batch=1):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, frames, 16, 32, generator=generator)


def test_encode_and_decode_give_the_latent_size_and_the_motion_size():
    model = motion_vae()
    with torch.no_grad():
        latent = model.encode(motion(batch=2))
        assert latent.shape == (2, 16, 2, 2, 4)
        assert model.decode(latent).shape == (2, 3, 5, 16, 32)


def test_the_new_encoder_adapter_is_close_to_the_bare_tanh_of_the_reference_at_its_start():
    values = motion()
    with torch.no_grad():
        torch.testing.assert_close(
            EncoderAdapter(32)(values), torch.tanh(values / 2), atol=0.05, rtol=0
        )


def test_gradient_reaches_every_parameter_of_both_adapters_at_step_0():
    model = motion_vae()
    values = motion()
    (model.decode(model.encode(values)) - values).square().sum().backward()
    adapters = {"encoder": model.encoder_prompt, "decoder": model.decoder_prompt}
    without = [
        f"{name}.{key}"
        for name, adapter in adapters.items()
        for key, parameter in adapter.named_parameters()
        if parameter.grad is None or parameter.grad.abs().max() == 0
    ]
    assert without == []


def test_the_second_standardisation_is_taken_out_after_wan_s_own_and_put_back():
    values = motion()
    plain, released = motion_vae(OWN), motion_vae(RELEASED)
    with torch.no_grad():
        wan_units = plain.encode(values)
        latent = released.encode(values)
        for channel in (0, 3, 15):
            torch.testing.assert_close(
                latent[:, channel] * (0.5 + channel) + channel, wan_units[:, channel]
            )
        unclamped = dataclasses.replace(RELEASED, clamp_decoded=False)
        # Latents lose digits beside a mean of 15; how many depends on the CPU.
        torch.testing.assert_close(
            motion_vae(unclamped).decode(latent), plain.decode(wan_units), atol=1e-4, rtol=1e-3
        )


def test_the_released_profile_shows_the_decoder_adapter_clamped_video_and_ours_does_not():
    seen = {}

    def largest_seen(settings):
        model = motion_vae(settings)
        model.decoder_prompt.register_forward_pre_hook(
            lambda _module, args: seen.update(largest=args[0].abs().max().item())
        )
        model.vae.decoder.conv_out.weight *= 10  # so that decoded values leave [-1, 1]
        latent = torch.randn(1, 16, 1, 2, 2, generator=torch.manual_seed(0))
        with torch.no_grad():
            model.decode(latent)
        return seen["largest"]

    assert largest_seen(OWN) > 1.5
    assert largest_seen(dataclasses.replace(OWN, clamp_decoded=True)) == 1


def test_the_mode_is_what_the_bare_vae_gives_for_the_adapted_motion():
    model = motion_vae()
    with torch.no_grad():
        adapted = model.encoder_prompt(motion())
        torch.testing.assert_close(model.encode(motion()), encode_video(model.vae, adapted))


def test_adapters_see_each_frame_alone():
    long = motion(frames=2 * FRAMES_PER_CALL + 1)
    adapter = DecoderAdapter(8)
    with torch.no_grad():
        together = adapter(long)
        for frame in (0, FRAMES_PER_CALL, 2 * FRAMES_PER_CALL):
            alone = adapter(long[:, :, frame : frame + 1])
            torch.testing.assert_close(together[:, :, frame : frame + 1], alone)


def test_frames_that_the_vae_would_cut_are_refused():
    with pytest.raises(VideoSizeError, match="Use 5 or 9"):
        motion_vae().encode(motion(frames=8))


def test_half_precision_weights_give_float32_motion_and_latents():
    model = motion_vae().to(torch.bfloat16)
    with torch.no_grad():
        latent = model.encode(motion())
        assert latent.dtype == torch.float32
        assert model.decode(latent).dtype == torch.float32
