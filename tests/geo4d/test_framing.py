"""Pictures at the network's size, and geometry back at their own pixels."""

import pytest
import torch

from more4d_backend.geo4d.framing import (
    RELEASED_SIZES_HW,
    Framing,
    FramingError,
    plan_framing,
    trained_sizes_hw,
)
from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.geometry import intrinsics_from_focal, pixel_centers, project, unproject
from more4d_backend.scene import Cameras

FULL, TOY = GEO4D_SIZES["full"], GEO4D_SIZES["toy"]


def camera(height: int, width: int) -> Cameras:
    return Cameras(
        world_to_camera=torch.eye(4)[None],
        intrinsics=intrinsics_from_focal(torch.tensor([0.9 * width]), height, width),
        height=height,
        width=width,
    )


@pytest.mark.parametrize(
    ("source_hw", "expected"),
    [
        ((480, 640), (384, 512)),
        ((1080, 1920), (320, 512)),
        ((436, 1024), (256, 576)),
        ((375, 1242), (192, 640)),
        ((1920, 1080), (512, 320)),
        ((1024, 1024), (384, 512)),
        ((10, 4000), (192, 640)),
    ],
)
def test_the_trained_size_nearest_in_shape_is_chosen(source_hw, expected):
    assert plan_framing(source_hw, FULL).network_hw == expected


def test_smaller_networks_have_the_same_shapes_with_fewer_pixels():
    assert trained_sizes_hw(FULL)[:4] == list(RELEASED_SIZES_HW)
    for size in (GEO4D_SIZES["tiny"], TOY):
        for (height, width), (h, w) in zip(trained_sizes_hw(size), trained_sizes_hw(FULL),
                                           strict=True):  # fmt: skip
            assert height * w == width * h
            assert height % size.pixel_step == width % size.pixel_step == 0


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("source_hw", [(60, 90), (90, 60), (33, 100), (200, 320), (5, 7)])
def test_a_point_seen_by_the_network_is_the_same_point_in_the_video(fit, source_hw):
    framing = plan_framing(source_hw, TOY, fit=fit)
    seen = camera(*framing.network_hw)
    source = framing.source_cameras(seen)
    assert (source.height, source.width) == source_hw
    points = torch.rand(50, 3, dtype=torch.float64) + torch.tensor([-0.5, -0.5, 2.0])
    in_network, _ = project(points, seen.intrinsics[0].double())
    in_source, _ = project(points, source.intrinsics[0].double())
    (scale_y, scale_x), (top, left) = framing.scale_yx, framing.offset_yx
    mapped = in_source * torch.tensor([scale_x, scale_y]) + torch.tensor([left, top])
    torch.testing.assert_close(in_network, mapped, atol=2e-4, rtol=0)  # intrinsics are float32
    content = framing.content_cameras(seen)
    in_content, _ = project(points, content.intrinsics[0].double())
    shift = torch.tensor([framing.columns.start, framing.rows.start])
    torch.testing.assert_close(in_content + shift, in_network, atol=2e-4, rtol=0)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_picture_keeps_its_proportions(fit):
    picture = torch.zeros(1, 120, 90, 3, dtype=torch.uint8)
    picture[:, 40:80, 30:60] = 255  # 40 x 30
    framing = plan_framing((120, 90), TOY, fit=fit, network_hw=(48, 64))
    framed = framing.frame(picture)
    assert framed.shape == (1, 48, 64, 3)
    scale = (64 / 90) if fit == "crop" else (48 / 120)
    area = float(framed[..., 0].sum())
    assert area == pytest.approx(40 * 30 * scale**2, rel=0.03)


def test_the_border_of_a_padded_picture_continues_it_and_is_no_content():
    framing = plan_framing((48, 32), TOY, fit="pad", network_hw=(48, 64))
    picture = torch.randint(256, (1, 48, 32, 3), dtype=torch.uint8)
    framed = framing.frame(picture)
    assert (framing.rows, framing.columns) == (slice(0, 48), slice(16, 48))
    torch.testing.assert_close(framed[:, :, 16:48], picture / 255)
    assert torch.equal(framed[:, :, 3], framed[:, :, 16])
    rows, columns = framing.shown_in(12, 16)
    assert (rows, columns) == (slice(0, 12), slice(4, 12))


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_the_depth_of_a_plane_comes_back_exactly_at_the_pixels_of_the_video(fit):
    source_hw = (70, 100)
    framing = plan_framing(source_hw, TOY, fit=fit, network_hw=(48, 48))
    seen = camera(48, 48)
    # 1 / depth of a plane is affine in the pixel; of a frontal one it is constant.
    depth = torch.full((48, 48), 3.0)
    valid = torch.ones(48, 48, dtype=torch.bool)
    sampled, inside = framing.source_depth(depth, valid)
    assert sampled.shape == inside.shape == source_hw
    torch.testing.assert_close(sampled[inside], torch.full((int(inside.sum()),), 3.0))
    if fit == "pad":
        assert inside.all()
    else:
        share = float(inside.float().mean())
        assert share == pytest.approx(0.7, abs=0.03)  # what was cut away is not valid
    points = unproject(
        pixel_centers(*source_hw), sampled, framing.source_cameras(seen).intrinsics[0]
    )
    pixels, _ = project(points[inside], seen.intrinsics[0])
    assert ((pixels > -0.01) & (pixels < 48.01)).all()


def test_no_point_hangs_between_two_surfaces():
    framing = plan_framing((96, 128), TOY, network_hw=(48, 64))
    depth = torch.ones(48, 64)
    depth[:, 30:] = 5.0
    sampled, valid = framing.source_depth(depth, torch.ones(48, 64, dtype=torch.bool))
    assert valid.all()
    assert ((sampled - 1).abs().minimum((sampled - 5).abs()) < 1e-5).all()


def test_what_is_not_valid_stays_so_and_touches_nothing_else():
    framing = plan_framing((96, 128), TOY, network_hw=(48, 64))
    depth, valid = torch.ones(48, 64), torch.ones(48, 64, dtype=torch.bool)
    depth[:10], valid[:10] = torch.nan, False
    sampled, inside = framing.source_depth(depth, valid)
    assert not inside[:20].any()
    assert inside[20:].all()
    torch.testing.assert_close(sampled[inside], torch.ones(int(inside.sum())))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "squash"}, "fit is 'squash'; expected crop or pad"),
        ({"network_hw": (50, 64)}, "network's size is 50 x 64; expected multiples of 8"),
        ({"network_hw": (0, 64)}, "0 x 64"),
    ],
)
def test_what_the_network_cannot_take_is_refused(options, message, as_users_run_it):
    with pytest.raises(FramingError, match=message):
        plan_framing((60, 90), TOY, **options)


def test_a_portrait_is_announced(caplog):
    with caplog.at_level("INFO"):
        plan_framing((1920, 1080), FULL)
    assert "512x320" in caplog.text
    assert "this video is a portrait" in caplog.text


def test_a_picture_of_the_network_s_own_size_is_not_touched():
    framing = plan_framing((48, 64), TOY)
    assert framing == Framing(source_hw=(48, 64), network_hw=(48, 64), scaled_hw=(48, 64))
    picture = torch.randint(256, (2, 48, 64, 3), dtype=torch.uint8)
    assert torch.equal((framing.frame(picture) * 255).round().to(torch.uint8), picture)
