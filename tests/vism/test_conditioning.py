import pytest
import torch

from more4d_backend.shapes import ShapeError
from more4d_backend.vism.conditioning import (
    check_holes,
    condition_latent,
    mask_latent,
    masked_video,
    paste_back,
)
from more4d_backend.wan.latents import VideoSizeError, encode_video

FRAMES, HEIGHT, WIDTH = 9, 32, 48


@pytest.fixture(scope="module")
def vae():
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=4).eval().requires_grad_(False)


def rendered(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(FRAMES, HEIGHT, WIDTH, 3, generator=generator)


def no_holes():
    return torch.zeros(FRAMES, HEIGHT, WIDTH, dtype=torch.bool)


def with_holes():
    mask = no_holes()
    mask[:, 8:24, 16:32] = True
    return mask


def test_convention_holes_are_mid_grey_and_known_pixels_keep_their_colour():
    video = masked_video(rendered(), with_holes())
    assert video.shape == (1, 3, FRAMES, HEIGHT, WIDTH)
    assert (video[0, :, 4, 10, 20] == 0).all()
    torch.testing.assert_close(video[0, :, 4, 2, 3] / 2 + 0.5, rendered()[4, 2, 3])


def test_convention_the_mask_latent_is_1_where_all_is_known():
    assert (mask_latent(no_holes()) == 1).all()
    assert (mask_latent(~no_holes()) == 0).all()
    packed = mask_latent(with_holes())
    assert packed.shape == (1, 4, 3, 4, 6)
    assert packed[0, 0, 0].tolist() == [
        [1, 1, 1, 1, 1, 1],
        [1, 1, 0, 0, 1, 1],
        [1, 1, 0, 0, 1, 1],
        [1, 1, 1, 1, 1, 1],
    ]


def test_a_hole_in_one_frame_shows_in_one_channel_of_one_latent_frame():
    for frame, places in ((0, [(c, 0) for c in range(4)]), (3, [(2, 1)]), (8, [(3, 2)])):
        mask = no_holes()
        mask[frame] = True
        packed = mask_latent(mask)
        marked = (packed[0].flatten(2) == 0).all(-1).nonzero().tolist()
        assert marked == [list(place) for place in places]
        assert (packed == 0).sum() == len(places) * 4 * 6


def test_the_condition_is_the_mask_then_the_latent_of_the_masked_video(vae):
    condition = condition_latent(vae, rendered(), with_holes())
    assert condition.shape == (1, 20, 3, 4, 6)
    assert torch.equal(condition[:, :4], mask_latent(with_holes()))
    image = encode_video(vae, masked_video(rendered(), with_holes()))
    assert torch.equal(condition[:, 4:], image)


def test_what_is_under_a_hole_does_not_matter(vae):
    other = rendered()
    other[with_holes()] = 0.9
    assert torch.equal(
        condition_latent(vae, rendered(), with_holes()), condition_latent(vae, other, with_holes())
    )


def test_where_all_is_a_hole_the_condition_is_zero(vae):
    condition = condition_latent(vae, rendered(), ~no_holes())
    assert condition.shape == (1, 20, 3, 4, 6)
    assert condition.abs().max() == 0


def test_sizes_that_do_not_divide_are_refused(vae):
    with pytest.raises(VideoSizeError, match="num_frames is 8"):
        mask_latent(with_holes()[:8])
    with pytest.raises(VideoSizeError, match="The width is 40"):
        mask_latent(with_holes()[:, :, :40])


def background_in_the_holes():
    video = rendered()
    video[with_holes()] = 0
    return video


def test_a_good_mask_gives_no_warning(caplog):
    check_holes(background_in_the_holes(), with_holes())
    assert caplog.text == ""


def test_an_inverted_mask_is_warned_of(caplog):
    check_holes(background_in_the_holes(), ~with_holes())
    assert "looks inverted" in caplog.text


@pytest.mark.parametrize(
    ("mask", "says"), [(~no_holes(), "covers 100.0 %"), (no_holes(), "next to nothing to fill")]
)
def test_nearly_full_and_nearly_empty_masks_are_warned_of(mask, says, caplog):
    check_holes(rendered(), mask)
    assert says in caplog.text


@pytest.mark.usefixtures("as_users_run_it")
def test_videos_that_are_not_sRGB_from_0_to_1_or_do_not_fit_the_mask_are_refused():
    for wrong in (rendered() * 255, rendered() - 0.5, rendered() * float("nan")):
        with pytest.raises(ValueError, match="expected sRGB from 0 to 1"):
            check_holes(wrong, with_holes())
    with pytest.raises(ShapeError, match="hole_mask has shape"):
        check_holes(rendered(), with_holes()[1:])


@pytest.mark.parametrize("feather_px", [0, 1, 4, 7])
def test_pasting_keeps_the_fill_in_every_hole_and_the_known_pixels_beyond_the_seam(feather_px):
    known, filled = torch.zeros_like(rendered()), torch.ones_like(rendered())
    pasted = paste_back(known, filled, with_holes(), feather_px)
    assert (pasted[with_holes()] == 1).all()
    beyond = torch.ones_like(no_holes())
    top, left = max(0, 8 - feather_px), 16 - feather_px
    beyond[:, top : 24 + feather_px, left : 32 + feather_px] = False
    assert beyond.any()
    assert (pasted[beyond] == 0).all()


def test_the_seam_falls_from_the_fill_to_the_known_without_a_jump():
    known, filled = torch.zeros_like(rendered()), torch.ones_like(rendered())
    row = paste_back(known, filled, with_holes(), feather_px=8)[0, 16, :, 0]
    seam = row[31:41]
    assert (seam.diff() <= 0).all()
    assert seam.diff().abs().max() < 0.15
    assert row[31] == 1
    assert row[40] == 0


def test_a_negative_feather_is_refused():
    with pytest.raises(ValueError, match="feather_px is -1"):
        paste_back(rendered(), rendered(), with_holes(), feather_px=-1)
