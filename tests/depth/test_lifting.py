import pytest
import torch

from more4d_backend.depth import DepthError, camera_from_intrinsics, lift_depth, lift_points
from more4d_backend.geometry import GeometryError, intrinsics_from_focal
from more4d_backend.scene import PointMaps
from more4d_backend.shapes import ShapeError
from more4d_backend.synthetic import make_world

IMAGE = torch.rand(24, 32, 3, generator=torch.Generator().manual_seed(0))
DEPTH = torch.full((24, 32), 2.0)
INTRINSICS = torch.tensor([[30.0, 0, 16], [0, 30, 12], [0, 0, 1]])


@pytest.mark.parametrize("sky_radius_m", [40.0, None])
def test_the_true_depth_of_a_view_is_lifted_to_its_true_points(sky_radius_m):
    world = make_world(1, moving_camera=True, sky_radius_m=sky_radius_m)
    cameras = world.cameras(3, 24, 32, dtype=torch.float64)
    view = world.view(cameras)
    positions, valid = lift_points(view.depth, cameras)
    assert torch.equal(valid, view.valid)
    assert valid.all() == (sky_radius_m is not None)
    torch.testing.assert_close(positions[valid], view.positions[valid], atol=1e-9, rtol=1e-9)
    assert positions.isfinite().all()


def test_an_image_becomes_a_scene_of_one_frame_with_its_colors():
    scene = lift_depth(IMAGE, DEPTH, INTRINSICS)
    assert isinstance(scene.points, PointMaps)
    assert torch.equal(scene.points.colors[0], IMAGE)
    assert torch.equal(scene.cameras.world_to_camera, torch.eye(4)[None])
    # Pixel (0, 0) has its centre at (0.5, 0.5): 15.5 px left of and 11.5 px above the middle.
    expected = torch.tensor([-15.5 / 30 * 2, -11.5 / 30 * 2, 2.0])
    torch.testing.assert_close(scene.points.positions[0, 0, 0], expected)


def test_a_camera_elsewhere_puts_the_points_elsewhere():
    world = make_world(4, moving_camera=True)
    cameras = world.cameras(5, 24, 32).frames([4])
    view = world.view(cameras, torch.tensor([4 / world.fps]))
    scene = lift_depth(view.rgb[0], view.depth[0], cameras)
    torch.testing.assert_close(scene.points.positions, view.positions, atol=1e-4, rtol=1e-5)


def test_missing_negative_and_far_depth_is_left_out():
    depth = DEPTH.clone()
    depth[0, :6] = torch.tensor([0.0, -1.0, torch.nan, torch.inf, 9.0, 11.0])
    scene = lift_depth(IMAGE, depth, INTRINSICS, max_depth=10.0)
    assert scene.points.valid[0, 0, :7].tolist() == [False] * 4 + [True, False, True]
    assert scene.points.valid[0, 1:].all()
    assert scene.points.positions.isfinite().all()


def test_both_sides_of_a_depth_edge_can_be_left_out():
    depth = DEPTH.clone()
    depth[:, 20:] = 5.0
    scene = lift_depth(IMAGE, depth, INTRINSICS, drop_edges=True)
    left_out = (~scene.points.valid[0]).any(0).nonzero().flatten().tolist()
    assert left_out == [19, 20]
    assert lift_depth(IMAGE, depth, INTRINSICS).points.valid.all()


def test_depth_of_another_size_is_refused_with_both_sizes(as_users_run_it):
    with pytest.raises(DepthError, match=r"depth map is 12x16 and the image is 24x32"):
        lift_depth(IMAGE, torch.ones(12, 16), INTRINSICS)
    cameras = make_world(0).cameras(2, 24, 32)
    with pytest.raises(DepthError, match=r"depth map is 12x16 and the image is 24x32"):
        lift_points(torch.ones(2, 12, 16), cameras)


def test_depth_without_a_usable_pixel_is_refused_with_counts():
    depth = torch.zeros(24, 32)
    with pytest.raises(DepthError, match=r"None of the 768 pixels .*: 768 are zero\."):
        lift_depth(IMAGE, depth, INTRINSICS)
    depth[:2] = torch.nan
    depth[2, :8] = -1
    depth[3] = 20.0
    message = (
        r"64 are NaN or infinite, 664 are zero, 8 are negative, 32 are beyond max_depth=5\.0\. "
    )
    with pytest.raises(DepthError, match=message):
        lift_depth(IMAGE, depth, INTRINSICS, max_depth=5.0)


def test_a_depth_that_is_all_edge_says_so():
    checkered = torch.ones(24, 32)
    checkered[::2, ::2] = checkered[1::2, 1::2] = 5.0
    with pytest.raises(DepthError, match="all lie on depth edges"):
        lift_depth(IMAGE, checkered, INTRINSICS, drop_edges=True)


@pytest.mark.parametrize(
    ("intrinsics", "message"),
    [
        (torch.eye(4), r"shape \(4, 4\); expected a 3x3"),
        (torch.tensor([[0.9, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]]), "looks normalised"),
        (torch.tensor([[0.0, 0, 16], [0, 30, 12], [0, 0, 1]]), "singular"),
    ],
)
def test_wrong_intrinsics_are_refused(intrinsics, message, as_users_run_it):
    with pytest.raises(GeometryError, match=message):
        lift_depth(IMAGE, DEPTH, intrinsics)


def test_a_camera_for_another_image_is_refused():
    cameras = make_world(0).cameras(2, 24, 32)
    with pytest.raises(ShapeError, match="camera has 2 frames of 24x32"):
        lift_depth(IMAGE, DEPTH, cameras)


@pytest.mark.parametrize("max_depth", [0.0, -1.0, float("nan")])
def test_a_limit_that_excludes_everything_is_refused(max_depth):
    with pytest.raises(DepthError, match="max_depth is"):
        lift_depth(IMAGE, DEPTH, INTRINSICS, max_depth=max_depth)


def test_intrinsics_of_another_size_are_warned_of(caplog):
    camera_from_intrinsics(intrinsics_from_focal(torch.tensor(600.0), 480, 640), 480, 640)
    assert not caplog.messages
    camera_from_intrinsics(intrinsics_from_focal(torch.tensor(600.0), 480, 640), 48, 64)
    assert "(320, 240) lies outside of the 48x64" in caplog.text
