"""Latents of motion, looked at without decoding them."""

import pytest
import torch
from einops import reduce

from more4d_backend.strag.motion_preview import (
    LinearMotion,
    MotionPreview,
    fit_linear_motion,
    motion_picture,
)


def linear_latents(mixing):
    """An encoder that is linear in blocks of 4 frames of 8x8 pixels; frame 0 on its own."""

    def encode(motion):
        first = reduce(motion[:1], "t (h p) (w q) c -> t h w c", "mean", p=8, q=8)
        rest = reduce(motion[1:], "(t f) (h p) (w q) c -> t h w c", "mean", f=4, p=8, q=8)
        blocks = torch.cat([first, rest])
        return (blocks @ mixing + 0.3).permute(3, 0, 1, 2)[None]

    return encode


@pytest.fixture(scope="module")
def encoder():
    return linear_latents(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)))


def test_what_is_linear_is_found_exactly(encoder):
    linear = fit_linear_motion(encoder)
    motion = torch.zeros(9, 32, 48, 3)
    motion[1:5, 8:16, 16:24] = torch.tensor([0.1, -0.2, 0.05])
    motion[5:, 8:16, 16:24] = torch.tensor([0.2, -0.4, 0.10])
    found = linear(encoder(motion)[0])
    wanted = torch.zeros(3, 4, 6, 3)
    wanted[1, 1, 2] = torch.tensor([0.1, -0.2, 0.05])
    wanted[2, 1, 2] = torch.tensor([0.2, -0.4, 0.10])
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_the_fit_is_the_same_every_time(encoder):
    first, again = fit_linear_motion(encoder).weight, fit_linear_motion(encoder).weight
    torch.testing.assert_close(again, first, atol=1e-6, rtol=0)


def test_rest_shows_the_dimmed_image_and_nothing_else():
    image = torch.rand(64, 96, 3, generator=torch.Generator().manual_seed(0))
    picture = motion_picture(image, torch.zeros(3, 8, 12, 3))
    torch.testing.assert_close(picture, image * 0.45, atol=1 / 255, rtol=0)


def moved(x, y, z):
    """A picture of 64x96 in which the latent pixel at (row 3, column 2) moves."""
    motion = torch.zeros(3, 8, 12, 3)
    motion[1, 3, 2], motion[2, 3, 2] = torch.tensor([x, y, z]) / 2, torch.tensor([x, y, z])
    picture = motion_picture(torch.zeros(64, 96, 3), motion)
    return picture.amax(-1) > 0.3


def test_a_trail_begins_at_its_pixel_and_ends_where_it_goes():
    drawn = moved(0.5, 0.0, 0.0)  # half the width to the right
    rows, columns = drawn.nonzero().T
    assert int(rows.min()) >= 26
    assert int(rows.max()) <= 30  # row 3 of the latent has its centre at 28
    assert abs(int(columns.min()) - 20) <= 1
    assert abs(int(columns.max()) - 68) <= 2


def test_what_comes_nearer_moves_away_from_the_centre():
    columns = moved(0.0, 0.0, -0.5).nonzero()[:, 1]
    assert int(columns.min()) < 0.5 * 20  # 28 left of the centre at first, 56 in the end


def test_right_and_left_have_other_colours():
    def color(x):
        motion = torch.zeros(2, 8, 12, 3)
        motion[1, 4, 6, 0] = x
        picture = motion_picture(torch.zeros(64, 96, 3), motion)
        return picture.flatten(0, 1)[picture.amax(-1).flatten().argmax()]

    assert (color(0.3) - color(-0.3)).abs().max() > 0.5


@pytest.mark.parametrize(
    ("size_hw", "shown_hw"), [((128, 176), (372, 512)), ((368, 512), (368, 512))]
)
def test_a_preview_has_the_proportions_of_its_image(size_hw, shown_hw):
    weight = torch.randn(17, 3, generator=torch.Generator().manual_seed(0))
    preview = MotionPreview(image=torch.rand(*size_hw, 3), linear=LinearMotion(weight=weight))
    picture = preview.picture(torch.randn(16, 3, 16, 22))
    assert picture.shape == (*shown_hw, 3)
    assert picture.isfinite().all()
