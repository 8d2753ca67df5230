"""Nearest-point rendering against the recorded projection of the reference."""

import pytest
import torch
from safetensors.torch import load_file

from more4d_backend.geometry import invert_rigid
from more4d_backend.rendering import RenderSettings, hole_mask, render
from more4d_backend.scene import Cameras, PointTracks, Scene4D

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def recorded(parity_dir):
    return load_file(parity_dir / "projection.safetensors")


@pytest.fixture(scope="module")
def output(recorded):
    height, width = recorded["out.hole_mask"].shape
    size = torch.tensor([width, height, 1.0])
    cameras = Cameras(
        world_to_camera=invert_rigid(recorded["in.camera_to_world"])[None],
        intrinsics=(size[:, None] * recorded["in.intrinsics_normalised"])[None],
        height=height,
        width=width,
    )
    points = recorded["in.points"]
    tracks = PointTracks(
        positions=points[None],
        colors=recorded["in.colors"],
        visibility=torch.ones(1, len(points), dtype=torch.bool),
    )
    scene = Scene4D(points=tracks, cameras=cameras, fps=8.0)
    return render(scene, cameras, RenderSettings(mode="nearest"))


def test_colours_are_those_of_the_reference(recorded, output):
    assert torch.equal(output.rgb[0], recorded["out.zbuffer_rgb"])


def test_the_hole_mask_is_that_of_the_reference(recorded, output):
    assert torch.equal(hole_mask(output.alpha)[0].bool(), recorded["out.hole_mask"])


def test_depth_is_that_of_the_nearest_recorded_point(recorded, output):
    height, width = recorded["out.hole_mask"].shape
    pixel = (recorded["out.uv"] * torch.tensor([width, height])).floor().long()
    depth = recorded["out.depth"]
    inside = (pixel >= 0).all(1) & (pixel < torch.tensor([width, height])).all(1) & (depth > 0)
    expected = torch.full((height * width,), torch.inf)
    flat = pixel[:, 1] * width + pixel[:, 0]
    expected.scatter_reduce_(0, flat[inside], depth[inside], "amin")
    expected = expected.where(expected < torch.inf, 0.0).view(height, width)
    torch.testing.assert_close(output.depth[0], expected, atol=1e-5, rtol=1e-5)
