import math

import numpy as np
import pytest
import torch

from more4d_backend import Cameras, PointMaps, PointTracks, Scene4D
from more4d_backend.camera_paths import PathSettings, make_path
from more4d_backend.camera_paths.preview import draw_path, path_preview
from more4d_backend.geometry import (
    intrinsics_from_focal,
    invert_rigid,
    matrix_from_quaternion_wxyz,
    project,
    rigid,
    transform_points,
)

START_COLOR, END_COLOR = (0, 140, 90), (214, 72, 20)


def input_view(pose=None):
    return Cameras(
        world_to_camera=(torch.eye(4) if pose is None else pose)[None],
        intrinsics=intrinsics_from_focal(torch.tensor([50.0]), 48, 64),
        height=48,
        width=64,
    )


def somewhere():
    return rigid(
        matrix_from_quaternion_wxyz(torch.tensor([0.3, 0.5, -0.2, 0.7])), torch.tensor([1.0, 2, 3])
    )


def scene_of(points, visibility, start):
    positions = torch.as_tensor(points, dtype=torch.float32)
    world = transform_points(positions, invert_rigid(start.world_to_camera)[0])
    return Scene4D(
        points=PointTracks(
            positions=world[None],
            colors=torch.rand(len(positions), 3),
            visibility=torch.as_tensor(visibility)[None],
        ),
        cameras=start,
        fps=8.0,
    )


def pixels_near(image, color):
    """Positions (x, y) of the pixels of a colour."""
    difference = np.abs(np.asarray(image, dtype=int) - np.array(color)).max(-1)
    rows, columns = (difference < 12).nonzero()
    return columns, rows


def test_a_preview_is_in_the_axes_of_the_first_camera():
    start = input_view(somewhere())
    path = make_path("orbit-left", start, 33, settings=PathSettings(pivot_distance=2.0))
    preview = path_preview(path)
    assert preview.positions[0].tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert preview.positions[-1].tolist() == pytest.approx([-2, 0, 2], abs=1e-5)
    assert preview.turn_deg == pytest.approx(90, abs=1e-3)
    assert preview.length == pytest.approx(math.pi, rel=1e-3)
    assert preview.focal_px == (50, 50)
    assert preview.shown_frames[0] == 0
    assert preview.shown_frames[-1] == 32


def test_the_outlined_views_end_in_the_corners_of_the_image():
    path = make_path("dolly-zoom", input_view(), 9, settings=PathSettings(pivot_distance=2.0))
    preview = path_preview(path, num_shown=3)
    assert preview.shown_frames == (0, 4, 8)
    for frame, corners in zip(preview.shown_frames, preview.frusta, strict=True):
        camera = transform_points(corners, path.world_to_camera[frame].double())
        assert camera[0].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
        pixels, _ = project(camera[1:], path.intrinsics[frame].double())
        wanted = torch.tensor([[0, 0], [64, 0], [64, 48], [0, 48]]).double()
        torch.testing.assert_close(pixels, wanted, rtol=0, atol=1e-4)


def test_only_what_the_input_view_sees_is_shown_and_a_far_sky_does_not_shrink_the_rest():
    start = input_view(somewhere())
    near = torch.rand(50, 3) + torch.tensor([-0.5, -0.5, 2.0])
    sky, hidden = torch.tensor([[0.0, 0, 1e5]] * 20), torch.tensor([[7.0, 7, 7]] * 5)
    scene = scene_of(torch.cat([near, sky, hidden]), [True] * 70 + [False] * 5, start)
    path = make_path("left", start, 5, settings=PathSettings(pivot_distance=2.5))
    preview = path_preview(path, scene)
    assert len(preview.points) == len(preview.colors) == 70
    torch.testing.assert_close(preview.points[:50].float(), near, rtol=0, atol=1e-5)
    assert (preview.high - preview.low).max() < 12
    assert (preview.low <= preview.positions.amin(0)).all()
    assert (preview.high >= preview.positions.amax(0)).all()


def test_point_maps_are_shown_where_they_are_valid():
    start = input_view()
    positions = torch.rand(1, 4, 5, 3) + torch.tensor([0.0, 0, 2])
    valid = torch.ones(1, 4, 5, dtype=torch.bool)
    valid[0, 0] = False
    colors = torch.rand(1, 4, 5, 3)
    scene = Scene4D(
        points=PointMaps(positions=positions, colors=colors, valid=valid), cameras=start, fps=8.0
    )
    preview = path_preview(make_path("up", start, 3), scene)
    torch.testing.assert_close(preview.points.float(), positions[0, 1:].flatten(0, 1))
    torch.testing.assert_close(preview.colors, colors[0, 1:].flatten(0, 1))


def test_a_large_scene_is_thinned_out():
    start = input_view()
    scene = scene_of(torch.rand(200_000, 3) + 1, [True] * 200_000, start)
    assert 20_000 <= len(path_preview(start, scene).points) <= 60_000


@pytest.mark.parametrize(("name", "panel", "axis", "sign"), [
    ("truck-left", 0, 0, -1), ("truck-right", 0, 0, 1), ("dolly-in", 0, 1, -1),
    ("dolly-in", 1, 0, 1), ("up", 1, 1, -1), ("down", 1, 1, 1),
])  # fmt: skip
def test_a_path_is_drawn_in_its_direction(name, panel, axis, sign):
    image = draw_path(make_path(name, input_view(), 9))

    def place(color):
        found = pixels_near(image, color)
        here = (found[0] > 640) == bool(panel)
        return found[axis][here & (found[1] > 150)].mean()

    assert sign * (place(END_COLOR) - place(START_COLOR)) > 40


def test_points_are_drawn_in_their_color_where_they_are():
    start = input_view()
    points = torch.tensor([[1.0, 0, 3], [1.1, 0, 3], [-1, 0, 3], [-1.1, 0, 3]])
    scene = scene_of(points, [True] * 4, start)
    blue, red = torch.tensor([0, 0, 1.0]), torch.tensor([1.0, 0, 0])
    colored = PointTracks(
        positions=scene.points.positions,
        colors=torch.where(points[:, :1] < 0, blue, red),
        visibility=scene.points.visibility,
    )
    image = draw_path(start, Scene4D(points=colored, cameras=start, fps=8.0))
    excess = np.asarray(image, dtype=int)[:, :640, 0] - np.asarray(image, dtype=int)[:, :640, 2]
    right, left = (excess > 60).nonzero()[1], (excess < -60).nonzero()[1]
    assert len(right) > 4
    assert right.min() > left.max()


@pytest.mark.parametrize("num_frames", [1, 2, 49])
def test_a_picture_has_the_size_asked_for_whatever_the_path(num_frames):
    start = input_view()
    for path in (start.repeated(num_frames), make_path("spiral", start, num_frames)):
        image = draw_path(path, title="Still", width=640)
        assert image.mode == "RGB"
        assert image.size == (640, 358)


def test_a_scene_without_visible_points_is_drawn_as_the_path_alone():
    start = input_view()
    scene = scene_of([[0.0, 0, 2]], [False], start)
    path = make_path("arc-left", start, 9)
    assert np.array_equal(np.asarray(draw_path(path, scene)), np.asarray(draw_path(path)))
