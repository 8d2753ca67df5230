import pytest
import torch

from more4d_backend.wan.latents import (
    VideoSizeError,
    check_video_size,
    decode_video,
    encode_video,
    latent_size,
    valid_num_frames,
)


@pytest.fixture(scope="module")
def vae():
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=4).eval().requires_grad_(False)
    vae.decoder.conv_out.weight *= 10  # so that some decoded values lie outside [-1, 1]
    return vae


def video(frames=5, height=16, width=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, frames, height, width, generator=generator) * 2 - 1


@pytest.mark.parametrize(
    ("frames", "height", "width", "says"),
    [
        (48, 368, 512, "Use 45 or 49"),
        (0, 368, 512, "Use 1"),
        (49, 360, 512, "Use 352 or 368"),
        (49, 368, 500, "Use 496 or 512"),
        (49, 8, 512, "The height is 8.*Use 16"),
    ],
)
def test_a_wrong_size_is_refused_with_the_nearest_valid(frames, height, width, says):
    with pytest.raises(VideoSizeError, match=says):
        check_video_size(frames, height, width)


def test_the_default_size_has_the_released_latent_size():
    assert latent_size(49, 368, 512) == (13, 46, 64)
    assert valid_num_frames(49) == (49, 49)


def test_encode_refuses_frames_that_the_vae_would_cut(vae):
    with pytest.raises(VideoSizeError, match="num_frames is 7"):
        encode_video(vae, video(frames=7))


def test_latents_have_the_published_mean_and_std_taken_out(vae):
    own_units = vae.encode(video(), return_dict=False)[0].mode()
    latent = encode_video(vae, video())
    for channel in (0, 7, 15):
        mean = vae.config["latents_mean"][channel]
        std = vae.config["latents_std"][channel]
        torch.testing.assert_close(latent[:, channel] * std + mean, own_units[:, channel])


def test_a_sample_follows_its_generator_and_the_mode_does_not_vary(vae):
    def draw(seed):
        return encode_video(vae, video(), sample=True, generator=torch.manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(encode_video(vae, video()), encode_video(vae, video()))


@pytest.mark.parametrize("tiled", [False, True])
def test_without_the_clamp_values_outside_are_kept_and_those_inside_are_the_same(vae, tiled):
    if tiled:
        vae.enable_tiling(16, 16, 8, 8)
    latent = torch.randn(1, 16, 2, 4, 4, generator=torch.manual_seed(0))
    unclamped = decode_video(vae, latent, clamp=False)
    clamped = decode_video(vae, latent)
    vae.use_tiling = False
    assert unclamped.abs().max() > 1.5
    torch.testing.assert_close(clamped, unclamped.clamp(-1, 1), atol=0, rtol=0)
    assert not vae.decoder.conv_out._forward_hooks, "the scaling must not stay behind"


def test_gradient_comes_from_outside_the_range_only_without_the_clamp(vae):
    latent = torch.randn(1, 16, 1, 2, 2, generator=torch.manual_seed(0))

    def gradient(clamp):
        leaf = latent.clone().requires_grad_()
        video = decode_video(vae, leaf, clamp=clamp)
        outside = decode_video(vae, latent, clamp=False).abs() > 1
        assert outside.any()
        video[outside].sum().backward()
        return leaf.grad

    assert gradient(clamp=True).abs().max() == 0
    assert gradient(clamp=False).abs().max() > 0
