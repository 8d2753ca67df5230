"""What all camera file formats share: limits, what a caller must add, and the final checks."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..files import FileFormatError
from ..geometry import check_intrinsics, check_rigid, invert_rigid
from ..scene import Cameras
from ..shapes import check_shapes

_log = logging.getLogger(__name__)

MAX_FRAMES = 100_000
MAX_SIZE_PX = 65_536
LIMIT_BYTES = 256 * 2**20

OPENGL_TO_OPENCV = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
"""Half a turn about x: +y up and -z forward becomes +y down and +z forward. Its own inverse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraHints:
    """What the caller knows and the file may not say."""

    size_hw: tuple[int, int] | None = None
    """Height and width of the images, in pixels."""

    intrinsics: Float[Tensor, "3 3"] | None = None
    """Pixels of an image of that size."""

    like: Cameras | None = None
    """A camera that fills in what the file does not say and the fields above do not either."""

    def __post_init__(self) -> None:
        if self.size_hw is not None and not all(1 <= n <= MAX_SIZE_PX for n in self.size_hw):
            raise ValueError(
                f"size_hw is {self.size_hw}; expected height and width from 1 to {MAX_SIZE_PX}."
            )
        if self.intrinsics is None:
            return
        check_shapes(intrinsics=(self.intrinsics, "3 3"))
        if self.size_hw is not None:
            check_intrinsics(self.intrinsics, *self.size_hw)

    def needed_size(self, path: Path, stated: tuple[int, int] | None = None) -> tuple[int, int]:
        """Return the image size that the file states or, where it states none, the caller does."""
        if stated is not None and self.size_hw not in (None, stated):
            raise FileFormatError(
                f"{path.name} is for images of {stated[0]}x{stated[1]} and size_hw is "
                f"{self.size_hw}. Load it without size_hw, then use cameras.resized(height, width)."
            )
        known = stated or self.size_hw
        if known is None and self.like is not None:
            known = self.like.height, self.like.width
            _log.info("%s does not say the size of the images; taken as %dx%d.", path.name, *known)
        if known is None:
            raise FileFormatError(
                f"{path.name} does not say the size of the images. Pass size_hw=(height, width); "
                "on the command line, --size-hw HEIGHT WIDTH."
            )
        return known

    def known_intrinsics(self, size_hw: tuple[int, int]) -> Float[Tensor, "3 3"] | None:
        """Return what the caller knows of the intrinsics, for images of that size."""
        if self.intrinsics is None and self.like is not None:
            return self.like.frames([0]).resized(*size_hw).intrinsics[0].cpu().double()
        return None if self.intrinsics is None else self.intrinsics.cpu().double()

    def needed_intrinsics(self, path: Path, size_hw: tuple[int, int]) -> Float[Tensor, "3 3"]:
        """Return the intrinsics that the caller gives because the file has none."""
        intrinsics = self.known_intrinsics(size_hw)
        if intrinsics is None:
            raise FileFormatError(
                f"{path.name} has no intrinsics. Pass intrinsics=, a 3x3 matrix in pixels, such as "
                "those of the input view; on the command line, --size-hw and --fov-deg."
            )
        return intrinsics


def pinhole(focal_px: Sequence[float], center_px: Sequence[float]) -> Float[Tensor, "3 3"]:
    """Intrinsics from focal lengths (fx, fy) and a principal point (cx, cy)."""
    (fx, fy), (cx, cy) = focal_px, center_px
    return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)


def checked_cameras(
    path: Path,
    world_to_camera: Float[Tensor, "frame 4 4"],
    intrinsics: Float[Tensor, "frame 3 3"],
    size_hw: tuple[int, int],
) -> Cameras:
    """Make float32 cameras of what a file says.

    Raises:
        FileFormatError: no frames, a pose that is not rigid, or intrinsics that are not pinhole.
    """
    if len(world_to_camera) == 0:
        raise FileFormatError(f"{path.name} has no cameras.")
    try:
        return Cameras(
            world_to_camera=world_to_camera.float(),
            intrinsics=intrinsics.float(),
            height=size_hw[0],
            width=size_hw[1],
        )
    except ValueError as e:
        raise FileFormatError(f"{path.name}: {e}") from e


def checked_inverse(path: Path, poses: Float[Tensor, "frame 4 4"]) -> Float[Tensor, "frame 4 4"]:
    """World-to-camera of camera-to-world poses.

    Raises:
        FileFormatError: a pose is not rigid (its transpose would then not be its inverse).
    """
    try:
        check_rigid(poses, "The camera-to-world pose")
    except ValueError as e:
        raise FileFormatError(f"{path.name}: {e}") from e
    return invert_rigid(poses)


def exact_camera_to_world(cameras: Cameras) -> Float[Tensor, "frame 4 4"]:
    """Camera-to-world in float64, so that writing and reading back rounds only once."""
    return invert_rigid(cameras.world_to_camera.cpu().double())


def warn_if_lost(cameras: Cameras, format_name: str, *, square: bool = False) -> None:
    """Log what a format cannot carry: skew, and with `square` also fx != fy and off-centre."""
    K = cameras.intrinsics.cpu().double()
    center = K.new_tensor([cameras.width / 2, cameras.height / 2])
    lost = []
    if K[:, 0, 1].abs().max() > 1e-3:
        lost.append("skew")
    if square and not torch.allclose(K[:, 0, 0], K[:, 1, 1], rtol=1e-3):
        lost.append("fx different from fy (fy is kept)")
    if square and (K[:, :2, 2] - center).abs().max() > 0.5:
        lost.append("a principal point off the middle of the image")
    if lost:
        _log.warning("A %s file cannot carry %s; it is left out.", format_name, " or ".join(lost))


def number(token: str, where: str, *, limit: float = 1e9) -> float:
    """Parse one finite number of a text file, of at most `limit` in size."""
    try:
        value = float(token)
    except ValueError:
        value = math.nan
    if not abs(value) <= limit:
        raise FileFormatError(
            f"{where}: {token[:40]!r} is not a number from -{limit:g} to {limit:g}."
        )
    return value


def whole_size(value: float, where: str) -> int:
    """Check that a number is an image size in whole pixels."""
    if not (1 <= value <= MAX_SIZE_PX and value == int(value)):
        raise FileFormatError(
            f"{where} is {value:g}; expected whole pixels from 1 to {MAX_SIZE_PX}."
        )
    return int(value)
