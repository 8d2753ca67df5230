import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file

from more4d_backend.motion import RELEASED_MOTION, denormalize_motion, normalize_motion
from more4d_backend.scene import Cameras

pytestmark = pytest.mark.parity

CAMERA_0 = Cameras(
    world_to_camera=torch.eye(4)[None],
    intrinsics=torch.tensor([[[32.0, 0, 16], [0, 32, 12], [0, 0, 1]]]),
    height=24,
    width=32,
)


def test_the_recorded_normalisation_is_reproduced_and_undone(parity_dir):
    recorded = load_file(parity_dir / "motion_normalisation.safetensors")
    positions = rearrange(recorded["in.positions"], "1 c f h w -> f h w c")
    expected = rearrange(recorded["out.normalised"], "1 c f h w -> f h w c")
    assert (positions[0, ..., 2] == 0).any()  # one pixel without depth is part of the recording
    normalized = normalize_motion(positions, CAMERA_0, RELEASED_MOTION)
    torch.testing.assert_close(normalized, expected, atol=1e-5, rtol=0)
    back = denormalize_motion(expected, positions[0], CAMERA_0, RELEASED_MOTION)
    torch.testing.assert_close(back, positions, atol=1e-5, rtol=0)
