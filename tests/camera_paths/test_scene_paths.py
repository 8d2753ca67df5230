"""Paths at the scale of a scene."""

import dataclasses

import pytest
import torch

from more4d_backend import PointMaps, PointTracks, Scene4D
from more4d_backend.camera_paths import (
    CameraPathError,
    PathSettings,
    mean_point,
    scene_path,
    scene_scale,
)
from more4d_backend.geometry import invert_rigid, transform_points


@pytest.fixture
def scene_of(one_camera):
    """`scene_of(positions, visibility, camera, num_frames)`: points that stand still."""

    def make(positions, visibility=None, camera=None, num_frames=2):
        positions = torch.as_tensor(positions, dtype=torch.float32)
        if visibility is None:
            visibility = torch.ones(len(positions), dtype=torch.bool)
        return Scene4D(
            points=PointTracks(
                positions=positions.repeat(num_frames, 1, 1),
                colors=torch.rand(len(positions), 3),
                visibility=torch.as_tensor(visibility).repeat(num_frames, 1),
            ),
            cameras=(camera or one_camera(dtype=torch.float32)).repeated(num_frames),
            fps=8.0,
        )

    return make


def test_the_scale_of_a_scene_is_its_median_visible_depth(scene_of):
    positions = [[0, 0, 1], [5, 0, 2], [0, 7, 3], [0, 0, 1e7], [0, 0, 1e7], [0, 0, -4], [0, 0, 2]]
    visibility = [True, True, True, True, False, True, True]
    assert scene_scale(scene_of(positions, visibility)) == 2.0


def test_the_scale_is_measured_from_the_input_view_in_frame_0(scene_of, one_camera, random_pose):
    camera = one_camera(random_pose(3), torch.float32)
    inside = torch.tensor([[0.2, 0.1, 4.0], [0, 0, 6.0], [1, 1, 5.0]])
    world = transform_points(inside, invert_rigid(camera.world_to_camera)[0])
    scene = scene_of(world, camera=camera)
    moved = scene.points.positions.clone()
    moved[1] += 100
    scene = dataclasses.replace(scene, points=dataclasses.replace(scene.points, positions=moved))
    assert scene_scale(scene) == pytest.approx(5.0, abs=1e-5)
    assert mean_point(scene) == pytest.approx((0.4, 1.1 / 3, 5.0), abs=1e-5)


def test_point_maps_are_measured_where_they_are_valid(one_camera):
    positions = torch.tensor([[[0, 0, 2.0], [0, 0, 9.0], [0, 0, 4.0], [0, 0, 3.0]]])
    scene = Scene4D(
        points=PointMaps(
            positions=positions[None],
            colors=torch.rand(1, 1, 4, 3),
            valid=torch.tensor([[[True, False, True, True]]]),
        ),
        cameras=one_camera(dtype=torch.float32),
        fps=8.0,
    )
    assert scene_scale(scene) == 3.0


def test_a_scene_with_nothing_to_measure_is_refused_with_a_way_out(scene_of):
    scene = scene_of([[0, 0, -1.0], [0, 0, 5.0]], [True, False])
    with pytest.raises(CameraPathError, match=r"no visible point .*pivot_distance in world units"):
        scene_path("orbit-left", scene)
    cameras = scene_path("orbit-left", scene, settings=PathSettings(pivot_distance=2.0))
    assert cameras.num_frames == 2


def test_a_scene_path_starts_at_the_input_view_at_the_scale_of_the_scene(
    scene_of, one_camera, random_pose
):
    camera = one_camera(random_pose(1), torch.float32)
    inside = torch.tensor([[0.2, 0.1, 4.0], [0, 0, 6.0], [1, 1, 5.0]])
    scene = scene_of(
        transform_points(inside, invert_rigid(camera.world_to_camera)[0]), camera=camera
    )
    cameras = scene_path("dolly-in", scene, 7)
    assert torch.equal(cameras.world_to_camera[0], scene.cameras.world_to_camera[0])
    position = transform_points(
        cameras.camera_to_world[-1, :3, 3], scene.cameras.world_to_camera[0]
    )
    assert position.tolist() == pytest.approx([0, 0, 0.4 * 5.0], abs=1e-5)
    assert scene_path("dolly-in", scene).num_frames == scene.num_frames


def test_the_reference_paths_turn_around_the_mean_of_the_points(scene_of):
    scene = scene_of([[0, 0, 2.0], [1, 0, 4.0], [2, 3, 12.0]])
    cameras = scene_path("forward_backward", scene, 16)
    assert cameras.camera_to_world[:, 2, 3].max() == pytest.approx(0.4 * 6.0 * 0.25)


def test_a_wrong_name_is_refused_before_the_scene_is_measured(scene_of):
    scene = scene_of([[0, 0, -1.0]])
    with pytest.raises(CameraPathError, match="Did you mean"):
        scene_path("orbit-lef", scene)
