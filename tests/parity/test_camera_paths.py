import pytest
import torch
from safetensors.torch import load_file

from more4d_backend import Cameras
from more4d_backend.camera_paths import PathSettings, make_path
from more4d_backend.geometry import intrinsics_from_focal

pytestmark = pytest.mark.parity

NAMES = ("static", "forward_backward", "circle_rotating", "surrounding", "camera_rotate")


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_paths_are_those_that_the_reference_makes(parity_dir, name):
    recorded = load_file(parity_dir / "camera_paths.safetensors")
    wanted = recorded[name]
    start = Cameras(
        world_to_camera=torch.eye(4)[None],
        intrinsics=intrinsics_from_focal(torch.tensor([100.0]), 64, 96),
        height=64,
        width=96,
    )
    x, y, z = recorded["in.center"].tolist()
    path = make_path(name, start, len(wanted), settings=PathSettings(pivot=(x, y, z)))
    # Measured: 1.2e-7, the rounding of float32.
    torch.testing.assert_close(path.camera_to_world, wanted, rtol=0, atol=1e-6)
