import pytest
import torch

from more4d_backend import Cameras
from more4d_backend.geometry import intrinsics_from_focal, pixel_centers, unproject
from more4d_backend.shapes import ShapeError
from more4d_backend.wan.fitting import fit_to_size


def camera(height, width, focal):
    return Cameras(
        world_to_camera=torch.eye(4)[None],
        intrinsics=intrinsics_from_focal(torch.tensor([focal]), height, width),
        height=height,
        width=width,
    )


def plane(height, width, focal):
    """A picture whose colours are the world position of what each pixel sees."""
    view = camera(height, width, focal)
    depth = torch.full((height, width), 2.0)
    world = unproject(pixel_centers(height, width), depth, view.intrinsics[0])
    return (world + 2) / 4, depth, view


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("source", [(60, 160), (160, 60), (33, 47), (1, 1)])
def test_points_keep_their_place_in_the_world(fit, source):
    image, depth, view = plane(*source, focal=150.0)
    fitted = fit_to_size(image, depth, view, (48, 64), fit)
    assert fitted.image.shape == (48, 64, 3)
    content = fitted.content_camera
    inside = (fitted.rows, fitted.columns)
    seen = unproject(
        pixel_centers(content.height, content.width), fitted.depth[inside], content.intrinsics[0]
    )
    colors = (seen + 2) / 4
    # Bicubic resampling is exact for a linear ramp, but for two pixels at the picture's border.
    error = (fitted.image[inside] - colors.clamp(0, 1)).abs()[2:-2, 2:-2]
    assert error.numel() == 0 or error.max() < 2e-3


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_pixels_stay_square(fit):
    fitted = fit_to_size(*plane(60, 160, focal=150.0), (48, 64), fit)
    K = fitted.camera.intrinsics[0]
    # 60 rows scaled to a whole number of rows: half a row in 24 (padded) at most.
    assert abs(K[0, 0] / K[1, 1] - 1) < 0.03


def test_crop_fills_the_frame_and_pad_shows_the_whole_picture():
    image, depth, view = plane(60, 160, focal=150.0)
    crop = fit_to_size(image, depth, view, (48, 64), "crop")
    assert (crop.rows, crop.columns) == (slice(0, 48), slice(0, 64))
    pad = fit_to_size(image, depth, view, (48, 64), "pad")
    assert (pad.rows, pad.columns) == (slice(12, 36), slice(0, 64))
    assert torch.equal(pad.image[0], pad.image[12])


def test_a_picture_of_the_right_size_stays_bit_for_bit():
    image, depth, view = plane(48, 64, focal=50.0)
    fitted = fit_to_size(image, depth, view, (48, 64))
    assert torch.equal(fitted.image, image)
    assert torch.equal(fitted.depth, depth)
    assert torch.equal(fitted.content_camera.intrinsics, view.intrinsics)


def test_depth_is_never_mixed_across_edges():
    image, depth, view = plane(60, 80, focal=50.0)
    depth[:, 40:] = 10.0
    fitted = fit_to_size(image, depth, view, (32, 48))
    assert set(fitted.depth.unique().tolist()) == {2.0, 10.0}


@pytest.mark.usefixtures("as_users_run_it")
def test_depth_of_another_size_is_refused_with_both_sizes():
    image, _, view = plane(60, 80, focal=50.0)
    with pytest.raises(ShapeError, match="60x80, its depth 30x40"):
        fit_to_size(image, torch.ones(30, 40), view, (32, 48))
    with pytest.raises(ShapeError, match="squash"):
        fit_to_size(image, torch.ones(60, 80), view, (32, 48), "squash")
