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


@pytest.fixture(scope="session")
def scene():
    """Point maps of 5 frames of 24x32 whose camera turns and moves."""
    from more4d_backend.geometry import transform_points, unproject
    from more4d_backend.scene import PointMaps
    from more4d_backend.synthetic import make_world

    world = make_world(3)
    frames, time = 5, torch.arange(5.0)
    turn = 0.03 * time
    world_to_camera = torch.eye(4).repeat(frames, 1, 1)
    world_to_camera[:, 0, 0] = world_to_camera[:, 2, 2] = turn.cos()
    world_to_camera[:, 0, 2], world_to_camera[:, 2, 0] = turn.sin(), -turn.sin()
    world_to_camera[:, :3, 3] = 0.1 * torch.stack([time, (2 * time).sin(), time.cos()], -1)
    still = world.cameras(1, 24, 32)
    cameras = replace(
        still, world_to_camera=world_to_camera, intrinsics=still.intrinsics.expand(frames, 3, 3)
    )
    view = world.view(cameras)
    centers = torch.stack(
        torch.meshgrid(torch.arange(32) + 0.5, torch.arange(24) + 0.5, indexing="xy"), -1
    )
    in_camera = unproject(centers, view.depth.clamp(max=60), cameras.intrinsics[:, None, None])
    positions = transform_points(in_camera, cameras.camera_to_world[:, None, None])
    points = PointMaps(
        positions=positions,
        colors=(view.rgb * 255).round() / 255,
        valid=torch.ones(positions.shape[:3], dtype=torch.bool),
    )
    return Scene4D(points=points, cameras=cameras, fps=8.0)


@pytest.fixture
def sintel(tmp_path, scene):
    """A folder of Sintel with two sequences, both of the same scene."""
    import struct

    import numpy as np
    from PIL import Image

    from more4d_backend.geometry import transform_points

    world_to_camera = scene.cameras.world_to_camera
    depth = transform_points(scene.points.positions, world_to_camera[:, None, None])[..., 2]
    for name in ("alley_1", "alley_2"):
        for kind in ("final", "depth", "camdata_left"):
            (tmp_path / "sintel" / "training" / kind / name).mkdir(parents=True)
        for frame in range(scene.num_frames):
            root, stem = tmp_path / "sintel" / "training", f"{name}/frame_{frame + 1:04d}"
            colors = (scene.points.colors[frame] * 255).round().numpy().astype(np.uint8)
            Image.fromarray(colors).save(root / "final" / f"{stem}.png")
            rows = depth[frame].numpy().astype("<f4")
            header = struct.pack("<fii", 202021.25, rows.shape[1], rows.shape[0])
            (root / "depth" / f"{stem}.dpt").write_bytes(header + rows.tobytes())
            numbers = [*scene.cameras.intrinsics[frame].flatten().tolist(),
                       *world_to_camera[frame, :3].flatten().tolist()]  # fmt: skip
            data = struct.pack("<f21d", 202021.25, *numbers)
            (root / "camdata_left" / f"{stem}.cam").write_bytes(data)
    return tmp_path / "sintel"


@pytest.fixture
def procedural(tmp_path, scene):
    """A folder of one procedural video and its scene."""
    from more4d_backend.files.videos import save_video
    from more4d_backend.scene_files import save_scene

    folder = tmp_path / "procedural"
    save_video(folder / "one.mkv", scene.points.colors, 8.0, lossless=True)
    save_scene(folder / "one.safetensors", scene)
    return folder
