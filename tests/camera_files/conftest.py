"""Known and random cameras, and what each file format carries of them."""

import pytest
import torch

from more4d_backend import Cameras
from more4d_backend.camera_files import CAMERA_FORMATS
from more4d_backend.geometry import (
    intrinsics_from_focal,
    matrix_from_quaternion_wxyz,
    rigid,
)

HEIGHT, WIDTH = 48, 64
SQUARE = torch.tensor([[100.0, 0, 32], [0, 100, 24], [0, 0, 1]])
# One known camera: at (1, 2, 3), looking along +x of our world with its own down pointing down.
# Its right is our -z. So camera x = 3 - z, camera y = y - 2, camera z = x - 1.
ALONG_X = torch.tensor(
    [[0.0, 0, -1, 3], [0, 1, 0, -2], [1, 0, 0, -1], [0, 0, 0, 1]], dtype=torch.float64
)


@pytest.fixture(scope="session")
def along_x():
    """`along_x(intrinsics)`: the known camera."""

    def make(intrinsics=SQUARE):
        return Cameras(
            world_to_camera=ALONG_X.float()[None],
            intrinsics=intrinsics[None],
            height=HEIGHT,
            width=WIDTH,
        )

    return make


@pytest.fixture(scope="session")
def assert_is_along_x():
    """Compare with the known camera."""

    def check(cameras):
        torch.testing.assert_close(cameras.world_to_camera[0], ALONG_X.float(), rtol=0, atol=1e-6)
        torch.testing.assert_close(cameras.intrinsics[0], SQUARE, rtol=0, atol=1e-4)
        assert (cameras.num_frames, cameras.height, cameras.width) == (1, HEIGHT, WIDTH)

    return check


@pytest.fixture(scope="session")
def transforms_along_x():
    """The document of a transforms.json that holds the known camera."""
    return {
        "fl_x": 100, "fl_y": 100, "cx": 32, "cy": 24, "w": 64, "h": 48,
        # Columns: right (0, 0, -1), up (0, -1, 0), back (-1, 0, 0), position.
        "frames": [{"file_path": "a.png", "transform_matrix":
                    [[0, 0, -1, 1], [0, -1, 0, 2], [-1, 0, 0, 3], [0, 0, 0, 1]]}],
    }  # fmt: skip


@pytest.fixture(scope="session")
def random_cameras():
    """`random_cameras(seed, num_frames, square, one_lens)`."""

    def make(seed, num_frames=3, *, square=False, one_lens=False):
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.randn(num_frames, 7, generator=generator)
        lens = torch.rand(1 if one_lens else num_frames, 4, generator=generator)
        lens = lens.expand(num_frames, 4)
        K = intrinsics_from_focal(40 + 60 * lens[:, 0], HEIGHT, WIDTH)
        if not square:
            K[:, 1, 1] += 10 * lens[:, 1]
            K[:, 0, 2] += 8 * lens[:, 2] - 4
            K[:, 1, 2] += 8 * lens[:, 3] - 4
        return Cameras(
            world_to_camera=rigid(matrix_from_quaternion_wxyz(numbers[:, :4]), 5 * numbers[:, 4:]),
            intrinsics=K,
            height=HEIGHT,
            width=WIDTH,
        )

    return make


@pytest.fixture(scope="session")
def carried(random_cameras):
    """`carried(format, seed)`: random cameras of the kind that this format carries whole."""

    def make(name, seed, num_frames=3):
        return random_cameras(seed, num_frames, square=name == "load3d", one_lens=name == "tum")

    return make


@pytest.fixture(scope="session")
def hints_for():
    """`hints_for(format, cameras)`: what this format does not carry."""

    def make(name, cameras):
        lacks = CAMERA_FORMATS[name].lacks
        size = {"size_hw": (cameras.height, cameras.width)} if "size_hw" in lacks else {}
        return size | ({"intrinsics": cameras.intrinsics[0]} if "intrinsics" in lacks else {})

    return make


@pytest.fixture(scope="session")
def write_text():
    """`write_text(path, text)`: write, make the folder, and return the path."""

    def write(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write
