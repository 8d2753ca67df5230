import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from more4d_backend.rendering import RenderError, RenderOutput, fill_pinholes, hole_mask
from more4d_backend.rendering.holes import component_area

cv2 = pytest.importorskip("cv2", reason="opencv is the independent check of connected areas")


def covered(*size: int) -> torch.Tensor:
    return torch.ones(*size)


def test_without_options_a_hole_is_where_less_than_half_is_covered():
    alpha = torch.tensor([[[0.0, 0.49, 0.5, 1.0]]])
    assert hole_mask(alpha).tolist() == [[[1.0, 1.0, 0.0, 0.0]]]
    assert hole_mask(alpha, threshold=0.6).tolist() == [[[1.0, 1.0, 1.0, 0.0]]]
    assert hole_mask(alpha, threshold=0.0).tolist() == [[[0.0, 0.0, 0.0, 0.0]]]


@pytest.mark.parametrize("radius", [1, 2, 5, 8])
def test_growing_is_nearly_a_disc(radius):
    alpha = covered(1, 41, 41)
    alpha[0, 20, 20] = 0
    grown = hole_mask(alpha, grow_px=radius)[0]
    y, x = torch.meshgrid(torch.arange(41) - 20, torch.arange(41) - 20, indexing="ij")
    distance = (x**2 + y**2).float().sqrt()
    assert grown[distance <= 0.8 * radius].eq(1).all()
    assert grown[distance > 1.15 * radius].eq(0).all()
    assert grown[20, 20 - radius] == grown[20 + radius, 20] == 1  # exact along the axes


def test_growing_does_not_come_in_from_outside_the_picture():
    assert hole_mask(covered(2, 9, 9), grow_px=4).eq(0).all()


def test_the_feather_falls_evenly_outside_of_the_grown_hole():
    alpha = covered(1, 5, 16)
    alpha[:, :, :4] = 0
    mask = hole_mask(alpha, grow_px=2, feather_px=3)[0, 2]
    expected = [1.0] * 6 + [0.75, 0.5, 0.25] + [0.0] * 7
    torch.testing.assert_close(mask, torch.tensor(expected))


def test_small_holes_are_dropped_before_the_rest_grows():
    alpha = covered(1, 20, 20)
    alpha[0, 3, 3] = alpha[0, 4, 4] = 0  # two pixels that meet at a corner
    alpha[0, 12:14, 12:14] = 0
    kept = hole_mask(alpha, min_area_px=3)
    assert kept.sum() == 4
    assert kept[0, 12:14, 12:14].eq(1).all()
    assert hole_mask(alpha, min_area_px=2).sum() == 6
    assert hole_mask(alpha, min_area_px=3, grow_px=1).sum() == 12


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), density=st.floats(0.2, 0.8))
def test_connected_areas_agree_with_opencv(seed, density):
    mask = torch.rand(3, 23, 37, generator=torch.Generator().manual_seed(seed)) < density
    area = component_area(mask)
    for frame in range(3):
        image = mask[frame].numpy().astype(np.uint8)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(image, connectivity=8)
        expected = stats[:, cv2.CC_STAT_AREA][labels] * image
        assert np.array_equal(area[frame].numpy(), expected)


def test_a_long_winding_hole_is_one_hole():
    mask = torch.zeros(1, 61, 61, dtype=torch.bool)
    mask[:, ::4] = True
    mask[:, 2::8, -1], mask[:, 6::8, 0] = True, True
    mask[:, 1::8, -1], mask[:, 3::8, -1] = True, True
    mask[:, 5::8, 0], mask[:, 7::8, 0] = True, True
    assert component_area(mask)[mask].unique().tolist() == [int(mask.sum())]


@pytest.mark.parametrize("frames", [1, 7])
def test_frames_do_not_touch_each_other(frames):
    alpha = torch.rand(frames, 12, 15, generator=torch.Generator().manual_seed(0))
    options = {"grow_px": 1, "feather_px": 2, "min_area_px": 4}
    together = hole_mask(alpha, **options)
    apart = torch.cat([hole_mask(frame[None], **options) for frame in alpha])
    assert torch.equal(together, apart)


@pytest.mark.parametrize("name", ["grow_px", "feather_px", "min_area_px"])
def test_negative_sizes_are_refused(name):
    with pytest.raises(RenderError, match=f"{name} is -1"):
        hole_mask(covered(1, 4, 4), **{name: -1})


def test_a_threshold_in_grey_levels_is_refused():
    with pytest.raises(RenderError, match="from 0 to 1"):
        hole_mask(covered(1, 4, 4), threshold=128.0)


def pierced(*holes: tuple[slice, slice]) -> RenderOutput:
    """A picture that is one colour in its left half, another in its right, with holes."""
    rgb = torch.tensor([0.2, 0.4, 0.6]).repeat(1, 16, 20, 1)
    rgb[:, :, 10:] = torch.tensor([0.8, 0.1, 0.3])
    depth, alpha = torch.full((1, 16, 20), 2.0), torch.ones(1, 16, 20)
    for hole in holes:
        for values in (rgb, depth, alpha):
            values[0][hole] = 0
    return RenderOutput(rgb=rgb, depth=depth, alpha=alpha)


def test_pinholes_take_the_colour_and_depth_around_them():
    pinhole, large = (slice(5, 7), slice(3, 5)), (slice(5, 10), slice(13, 18))
    output = pierced(pinhole, large)
    filled = fill_pinholes(output, 5)
    torch.testing.assert_close(filled.rgb[0, 5:7, 3:5], pierced().rgb[0, 5:7, 3:5])
    torch.testing.assert_close(filled.depth[0, 5:7, 3:5], torch.full((2, 2), 2.0))
    assert filled.alpha[0, 5:7, 3:5].eq(1).all()
    assert filled.alpha[0, 5:10, 13:18].eq(0).all()
    assert filled.rgb[0, 5:10, 13:18].eq(0).all()
    known = output.alpha > 0
    assert torch.equal(filled.rgb[known], output.rgb[known])


def test_a_picture_with_nothing_in_it_stays_empty():
    nothing = torch.zeros(1, 6, 6)
    empty = RenderOutput(rgb=torch.zeros(1, 6, 6, 3), depth=nothing, alpha=nothing)
    assert fill_pinholes(empty, 100).alpha.eq(0).all()
