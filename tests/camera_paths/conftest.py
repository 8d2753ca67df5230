"""A camera, and paths that start there."""

import pytest
import torch

from more4d_backend import Cameras
from more4d_backend.camera_paths import PathSettings, make_path
from more4d_backend.geometry import (
    intrinsics_from_focal,
    matrix_from_quaternion_wxyz,
    project,
    rigid,
    transform_points,
)


@pytest.fixture(scope="session")
def one_camera():
    """`one_camera(world_to_camera, dtype, focal_px)`: of 48 x 64 pixels."""

    def make(world_to_camera=None, dtype=torch.float64, focal_px=50.0):
        pose = torch.eye(4) if world_to_camera is None else world_to_camera
        return Cameras(
            world_to_camera=pose[None].to(dtype),
            intrinsics=intrinsics_from_focal(torch.tensor([focal_px]), 48, 64).to(dtype),
            height=48,
            width=64,
        )

    return make


@pytest.fixture(scope="session")
def random_pose():
    """`random_pose(seed)`: a transform from world to camera."""

    def make(seed):
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.randn(7, generator=generator, dtype=torch.float64)
        return rigid(matrix_from_quaternion_wxyz(numbers[:4]), 3 * numbers[4:])

    return make


@pytest.fixture(scope="session")
def path(one_camera):
    """`path(name, num_frames, start, **settings)`: the cameras of a preset."""

    def make(name, num_frames=9, start=None, **how):
        return make_path(name, start or one_camera(), num_frames, settings=PathSettings(**how))

    return make


@pytest.fixture(scope="session")
def pixels_of():
    """`pixels_of(point, cameras)`: pixel and depth of one world point in every camera."""

    def compute(point, cameras):
        point = torch.as_tensor(point, dtype=torch.float64)
        return project(transform_points(point, cameras.world_to_camera), cameras.intrinsics)

    return compute
