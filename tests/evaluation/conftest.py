"""Small true scenes whose motion is known by heart."""

from dataclasses import replace

import pytest
import torch

from more4d_backend.geometry import intrinsics_from_focal
from more4d_backend.scene import Cameras, PointTracks, Scene4D


@pytest.fixture
def moving_square():
    """`moving_square(speed=0.1)`: of 8x8 points 4 m away the middle 4x4 move right each frame."""

    def make(speed: float = 0.1, frames: int = 5) -> Scene4D:
        y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        start = torch.stack([(x - 3.5) / 8, (y - 3.5) / 8, torch.full_like(x, 4.0)], dim=-1)
        positions = start.expand(frames, 8, 8, 3).clone()
        positions[:, 2:6, 2:6, 0] += speed * torch.arange(frames)[:, None, None]
        cameras = Cameras(
            world_to_camera=torch.eye(4)[None],
            intrinsics=intrinsics_from_focal(torch.tensor([80.0]), 64, 64),
            height=64,
            width=64,
        )
        return Scene4D(
            points=PointTracks(
                positions=positions.flatten(1, 2),
                colors=torch.rand(64, 3, generator=torch.Generator().manual_seed(0)),
                visibility=torch.ones(frames, 64, dtype=torch.bool),
                grid_hw=(8, 8),
            ),
            cameras=cameras.repeated(frames),
            fps=8.0,
        )

    return make


@pytest.fixture
def with_positions():
    """`with_positions(scene, positions)`: the scene with other positions."""

    def change(scene: Scene4D, positions: torch.Tensor) -> Scene4D:
        return replace(scene, points=replace(scene.points, positions=positions))

    return change


@pytest.fixture
def square_index():
    """Which of the 64 points belong to object 0; -1 for the others."""
    index = torch.full((8, 8), -1)
    index[2:6, 2:6] = 0
    return index.flatten()
