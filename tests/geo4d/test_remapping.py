"""Aligned geometry back at the pixels of the video."""

import pytest
import torch

from more4d_backend.geo4d.framing import plan_framing
from more4d_backend.geo4d.remapping import NEAREST, scene_of_content, scene_of_source
from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.geo4d.video import PictureVideo
from more4d_backend.geometry import intrinsics_from_focal
from more4d_backend.scene import Cameras, PointMaps, Scene4D


@pytest.mark.parametrize("resolution", ["network", "source"])
def test_what_lies_nearly_in_the_camera_is_an_error_and_not_valid(resolution):
    framing = plan_framing((48, 64), GEO4D_SIZES["toy"])
    depth = torch.ones(1, 48, 64)
    depth[0, 20:30, 20:30] = NEAREST / 2
    cameras = Cameras(
        world_to_camera=torch.eye(4)[None],
        intrinsics=intrinsics_from_focal(torch.tensor(50.0), 48, 64)[None],
        height=48,
        width=64,
    )
    colors = torch.zeros(1, 48, 64, 3)
    points = PointMaps(
        positions=torch.ones(1, 48, 64, 3),
        colors=colors,
        valid=torch.ones(1, 48, 64, dtype=torch.bool),
    )
    scene = Scene4D(points=points, cameras=cameras, fps=8.0)
    if resolution == "network":
        found = scene_of_content(scene, depth, framing)
    else:
        found = scene_of_source(scene, depth, framing, PictureVideo(colors, fps=8.0))
    assert torch.equal(found.points.valid, depth >= NEAREST)
