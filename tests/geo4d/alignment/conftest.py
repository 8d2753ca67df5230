"""A small scene with objects in motion, and what networks would predict of its windows."""

import math
from dataclasses import dataclass

import pytest
import torch

from more4d_backend.geo4d.synthetic_windows import windows_of_view
from more4d_backend.geometry import align_similarity, invert_rigid, look_at
from more4d_backend.scene import Cameras
from more4d_backend.synthetic import SyntheticView, make_world

NUM_FRAMES, HEIGHT, WIDTH = 14, 30, 40
STARTS = (0, 3, 6, 8)
"""Of windows of 6 frames."""


def _view(moving: bool) -> SyntheticView:
    world = make_world(5, setting="landscape", sky_radius_m=None, duration_s=1.75)
    t = torch.linspace(0, 1, NUM_FRAMES, dtype=torch.float64) * moving
    angle = t * math.radians(20)
    position = torch.stack([1.5 * angle.sin() * 4, 0.1 * (9 * t).sin(), 0.8 * t], dim=-1)
    target = torch.tensor([0.3, -0.3, 6.0], dtype=torch.float64)
    up = torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)
    first = world.cameras(1, HEIGHT, WIDTH)
    cameras = Cameras(
        world_to_camera=look_at(position, target + 0.3 * position, up).float(),
        intrinsics=first.intrinsics.expand(NUM_FRAMES, 3, 3),
        height=HEIGHT,
        width=WIDTH,
    )
    return world.view(cameras)


@pytest.fixture(scope="session")
def moving_view():
    """Seen by a camera that moves and turns; about a tenth is sky."""
    return _view(moving=True)


@pytest.fixture(scope="session")
def still_view():
    """Seen by a camera that stands still, while objects move."""
    return _view(moving=False)


@pytest.fixture(scope="session")
def make_windows():
    """`make_windows(view, corruption, starts, seed)`: predictions of a view."""

    def make(view, corruption, starts=STARTS, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return windows_of_view(view, starts, generator, length=6, corruption=corruption)

    return make


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Of an alignment."""

    abs_rel: float
    """Mean relative error of depth after one scale: the median ratio."""

    ate_share: float
    """Of the cameras' places after a similarity, over the length of the path."""

    turn_deg: float
    """Largest error of a rotation against camera 0."""

    focal: float
    """Relative error of the focal length."""


@pytest.fixture(scope="session")
def errors_of():
    """`errors_of(result, view)`."""

    def measure(result, view):
        known = view.valid & (result.depth > 0)
        ratio = view.depth[known] / result.depth[known]
        true = view.cameras.camera_to_world.double()
        ours = invert_rigid(result.scene.cameras.world_to_camera.double())
        scale, rotation, shift = align_similarity(ours[:, :3, 3], true[:, :3, 3])
        away = (scale * ours[:, :3, 3] @ rotation.T + shift - true[:, :3, 3]).norm(dim=1)
        path = (true[1:, :3, 3] - true[:-1, :3, 3]).norm(dim=1).sum()
        relative = invert_rigid(true[:1]) @ true
        wrong = ours[:, :3, :3].transpose(1, 2) @ relative[:, :3, :3]
        sine = (wrong - wrong.transpose(1, 2)).flatten(1).norm(dim=1) / 8**0.5
        focal = float(result.scene.cameras.intrinsics[0, 0, 0] / view.cameras.intrinsics[0, 0, 0])
        return Errors(
            abs_rel=float((ratio.median() / ratio - 1).abs().mean()),
            ate_share=float(away.square().mean().sqrt() / path.clamp_min(1e-9)),
            turn_deg=math.degrees(float(sine.clamp_max(1).arcsin().max())),
            focal=abs(focal - 1),
        )

    return measure
