import dataclasses

import numpy as np
import pytest
import torch

from more4d_backend import (
    Cameras,
    PointMaps,
    PointTracks,
    Scene4D,
    ShapeError,
    TensorKindError,
)
from more4d_backend.geometry import GeometryError, intrinsics_from_focal, project


def cameras(num_frames=2, height=4, width=6):
    return Cameras(
        world_to_camera=torch.eye(4).repeat(num_frames, 1, 1),
        intrinsics=intrinsics_from_focal(torch.full((num_frames,), 5.0), height, width),
        height=height,
        width=width,
    )


def tracks(num_frames=2, num_points=24, **changes):
    values = {
        "positions": torch.rand(num_frames, num_points, 3),
        "colors": torch.rand(num_points, 3),
        "visibility": torch.ones(num_frames, num_points, dtype=torch.bool),
    }
    return PointTracks(**(values | changes))


def maps(num_frames=2, height=4, width=6):
    return PointMaps(
        positions=torch.rand(num_frames, height, width, 3),
        colors=torch.rand(num_frames, height, width, 3),
        valid=torch.ones(num_frames, height, width, dtype=torch.bool),
        confidence=torch.rand(num_frames, height, width),
    )


@pytest.mark.usefixtures("as_users_run_it")
def test_the_field_that_disagrees_is_named():
    with pytest.raises(ShapeError, match=r"colors has shape \(5, 3\); expected \(point=24, 3\)"):
        tracks(colors=torch.zeros(5, 3))
    with pytest.raises(ShapeError, match=r"visibility has shape \(3, 24\); expected \(frame=2"):
        tracks(visibility=torch.ones(3, 24, dtype=torch.bool))


@pytest.mark.usefixtures("as_users_run_it")
def test_what_is_no_tensor_of_the_right_kind_is_named():
    with pytest.raises(TensorKindError, match=r"positions is a ndarray; expected a torch\.Tensor"):
        tracks(positions=np.zeros((2, 24, 3), np.float32))
    with pytest.raises(TensorKindError, match=r"colors has dtype torch\.uint8; expected floating"):
        tracks(colors=torch.zeros(24, 3, dtype=torch.uint8))
    with pytest.raises(TensorKindError, match=r"visibility has dtype torch\.float32; expected"):
        tracks(visibility=torch.ones(2, 24))
    with pytest.raises(TensorKindError, match="valid has dtype"):
        dataclasses.replace(maps(), valid=torch.ones(2, 4, 6))
    with pytest.raises(TensorKindError, match=r"world_to_camera has dtype torch\.int64"):
        dataclasses.replace(cameras(), world_to_camera=torch.eye(4).long().repeat(2, 1, 1))


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_a_frame_rate_is_positive_and_finite(fps):
    with pytest.raises(ValueError, match="expected a positive, finite number"):
        Scene4D(points=tracks(), cameras=cameras(), fps=fps)


def test_a_grid_of_another_size_than_the_points_is_refused():
    assert tracks(grid_hw=(4, 6)).grid_hw == (4, 6)
    with pytest.raises(ShapeError, match="20 points; positions has 24"):
        tracks(grid_hw=(4, 5))


def test_cameras_refuse_a_stretched_rotation_and_normalised_intrinsics():
    with pytest.raises(GeometryError, match="not rigid"):
        dataclasses.replace(cameras(), world_to_camera=2 * torch.eye(4).repeat(2, 1, 1))
    with pytest.raises(GeometryError, match="normalised"):
        Cameras(
            world_to_camera=torch.eye(4)[None],
            intrinsics=torch.tensor([[[0.8, 0, 0.5], [0, 0.8, 0.5], [0, 0, 1]]]),
            height=480,
            width=640,
        )


@pytest.mark.parametrize("points", [tracks(), maps()])
def test_a_scene_needs_one_source_camera_per_frame(points):
    assert Scene4D(points=points, cameras=cameras(), fps=8.0).num_frames == 2
    with pytest.raises(ShapeError, match="2 frames and cameras has 3"):
        Scene4D(points=points, cameras=cameras(3), fps=8.0)


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan")])
def test_a_frame_rate_must_be_positive(fps):
    with pytest.raises(ValueError, match="fps"):
        Scene4D(points=tracks(), cameras=cameras(), fps=fps)


@pytest.mark.parametrize("points", [tracks(), maps()])
def test_frames_can_be_chosen_and_time_frozen(points):
    scene = Scene4D(points=points, cameras=cameras(), fps=8.0)
    frozen = scene.frames([1] * 5)
    assert frozen.num_frames == 5
    for frame in range(5):
        assert torch.equal(frozen.points.positions[frame], points.positions[1])


def test_values_cannot_be_written():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tracks().colors = torch.zeros(24, 3)


def test_resizing_keeps_where_a_point_is_in_the_image():
    point = torch.tensor([0.3, -0.2, 2.0])
    small, large = cameras(1), cameras(1).resized(8, 18)
    xy_small, _ = project(point, small.intrinsics[0])
    xy_large, _ = project(point, large.intrinsics[0])
    torch.testing.assert_close(
        xy_large / torch.tensor([18.0, 8.0]), xy_small / torch.tensor([6, 4])
    )


def test_motion_is_zero_in_frame_0():
    assert tracks().motion[0].abs().max() == 0


def test_moving_between_devices_and_dtypes_keeps_what_is_not_a_tensor():
    moved = tracks(grid_hw=(4, 6)).to("cpu")
    assert moved.grid_hw == (4, 6)
