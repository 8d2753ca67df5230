"""Points as PLY files: coloured points and 3D Gaussians, one file per frame, in world axes.

PLY names no axes. These files keep OpenCV's (+x right, +y down, +z forward), as COLMAP and 3D
Gaussian splatting do; a comment in each header says so.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..files import replacing, replacing_folder
from ..files.images import to_bytes
from ..geometry import quaternion_wxyz_from_matrix
from ..rendering.gaussians import gaussians_of
from ..rendering.surface import first_spacing, surface_of
from ..rendering.view import PointFrames, point_frames
from ..scene import Scene4D

POINT_DTYPE = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
)
"""Properties of a point file, in order."""

GAUSSIAN_DTYPE = np.dtype(
    [
        (name, "<f4")
        for name in (
            *("x", "y", "z", "nx", "ny", "nz"),
            *(f"f_dc_{i}" for i in range(3)),
            *(f"f_rest_{i}" for i in range(45)),
            "opacity",
            *(f"scale_{i}" for i in range(3)),
            *(f"rot_{i}" for i in range(4)),
        )
    ]
)
"""Properties of a Gaussian file in the order of 3D Gaussian splatting (Kerbl et al. 2023)."""

SH_DEGREE_0 = 0.28209479177387814
"""Value of the constant spherical harmonic, 1 / (2 sqrt(pi)): rgb = 0.5 + SH_DEGREE_0 * f_dc."""

GAUSSIAN_OPACITY = 0.99
THINNEST = 0.01
"""Thickness of a sheet over its length."""

SIGMA_PER_SPACING = 0.6
"""Standard deviation of a Gaussian over the distance to its neighbour. Midway between four
neighbours, they cover 1 - (1 - 0.99 exp(-0.5 / (2 * 0.6^2)))^4 = 93 % of what lies behind."""

_CPU = torch.device("cpu")
_COMMENT = "More4D world: OpenCV axes, +x right, +y down, +z forward"


@dataclass(frozen=True, slots=True, kw_only=True)
class FramePoints:
    """The visible (tracks) or valid (point maps) points of one frame."""

    positions: Float[Tensor, "point 3"]
    """World coordinates, finite."""

    colors: Float[Tensor, "point 3"]
    """sRGB in [0, 1]."""

    shown: Bool[Tensor, " any_point"]
    """Which of all points of the scene these are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameGaussians:
    """The visible points of one frame as Gaussians of opacity `GAUSSIAN_OPACITY`."""

    positions: Float[Tensor, "point 3"]
    """World coordinates of the centres."""

    colors: Float[Tensor, "point 3"]
    """sRGB in [0, 1]."""

    sigma: Float[Tensor, "point 3"]
    """Standard deviation along each axis, in world units; above 0."""

    quaternion_wxyz: Float[Tensor, "point 4"]
    """Axes of the Gaussian to world axes."""

    @property
    def harmonics(self) -> Float[Tensor, "point 3"]:
        """Colours as coefficients of the constant spherical harmonic."""
        return (self.colors - 0.5) / SH_DEGREE_0


def frame_points(scene: Scene4D, frame: int) -> FramePoints:
    """Return the points of one frame that are there to be drawn, on the CPU."""
    points = _point_frames(scene, frame)
    shown = points.usable[0] & points.positions[0].isfinite().all(-1)
    return FramePoints(
        positions=points.positions[0][shown], colors=points.colors[0][shown], shown=shown
    )


def point_spacing(scene: Scene4D, frame: int) -> Float[Tensor, " point"]:
    """Distance of every point to the next one on its surface, as the renderer measures it.

    0 for points that are not shown, or that the source camera cannot have seen.
    """
    points = _point_frames(scene, frame)
    surface = surface_of(points, first_spacing(scene, _CPU))
    measured = surface.spacing[0].isfinite() & (surface.spacing[0] > 0)
    return surface.spacing[0].where(points.usable[0] & measured, 0.0)


def _point_frames(scene: Scene4D, frame: int) -> PointFrames:
    return point_frames(scene, slice(frame, frame + 1), _CPU, draw_unseen=False)


def save_ply(path: str | os.PathLike[str], scene: Scene4D, *, frame: int = 0) -> None:
    """Write the visible points of one frame as binary little-endian PLY: x y z red green blue."""
    with replacing(path) as temporary:
        _write(temporary, _point_rows(scene, frame))


def save_gaussian_ply(path: str | os.PathLike[str], scene: Scene4D, *, frame: int = 0) -> None:
    """Write the visible points of one frame as the renderer's Gaussians, for splat viewers.

    On a pixel grid they are sheets that reach to the neighbours, else balls.
    """
    with replacing(path) as temporary:
        _write(temporary, _gaussian_rows(scene, frame))


def save_ply_sequence(
    folder: str | os.PathLike[str],
    scene: Scene4D,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `frame_0000.ply`, ... as `save_ply` does. The folder appears when all are written."""
    _save_sequence(folder, scene, _point_rows, progress)


def save_gaussian_ply_sequence(
    folder: str | os.PathLike[str],
    scene: Scene4D,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `frame_0000.ply`, ... as `save_gaussian_ply` does, all or nothing."""
    _save_sequence(folder, scene, _gaussian_rows, progress)


def _save_sequence(
    folder: str | os.PathLike[str],
    scene: Scene4D,
    rows: Callable[[Scene4D, int], np.ndarray],
    progress: Callable[[int, int], None] | None,
) -> None:
    with replacing_folder(folder, "frame_*.ply") as temporary:
        for frame in range(scene.num_frames):
            _write(temporary / f"frame_{frame:04d}.ply", rows(scene, frame))
            if progress is not None:
                progress(frame + 1, scene.num_frames)


def _point_rows(scene: Scene4D, frame: int) -> np.ndarray:
    points = frame_points(scene, frame)
    rows = np.empty(len(points.positions), POINT_DTYPE)
    _fill(rows, ("x", "y", "z"), points.positions)
    _fill(rows, ("red", "green", "blue"), to_bytes(points.colors))
    return rows


def frame_gaussians(scene: Scene4D, frame: int) -> FrameGaussians:
    """Return the visible points of one frame as the renderer's Gaussians, on the CPU."""
    points = _point_frames(scene, frame)
    surface = surface_of(points, first_spacing(scene, _CPU))
    gaussians = gaussians_of(points, surface, SIGMA_PER_SPACING)
    shown = gaussians.opacities[0] > 0
    variances, axes = torch.linalg.eigh(gaussians.covariances[0][shown].double())
    # A sheet has no thickness, whose logarithm would be minus infinity.
    sigma = variances.clamp_min(0).sqrt()
    axes[..., 0] *= torch.linalg.det(axes)[:, None]  # a rotation, not a reflection
    return FrameGaussians(
        positions=gaussians.means[0][shown],
        colors=points.colors[0][shown],
        sigma=sigma.maximum(THINNEST * sigma[:, 2:]),
        quaternion_wxyz=quaternion_wxyz_from_matrix(axes),
    )


def _gaussian_rows(scene: Scene4D, frame: int) -> np.ndarray:
    gaussians = frame_gaussians(scene, frame)
    rows = np.zeros(len(gaussians.positions), GAUSSIAN_DTYPE)
    _fill(rows, ("x", "y", "z"), gaussians.positions)
    _fill(rows, ("f_dc_0", "f_dc_1", "f_dc_2"), gaussians.harmonics)
    rows["opacity"] = np.log(GAUSSIAN_OPACITY / (1 - GAUSSIAN_OPACITY))
    _fill(rows, ("scale_0", "scale_1", "scale_2"), gaussians.sigma.log())
    _fill(rows, ("rot_0", "rot_1", "rot_2", "rot_3"), gaussians.quaternion_wxyz)
    return rows


def _fill(rows: np.ndarray, names: tuple[str, ...], values: Tensor) -> None:
    columns = values.detach().cpu().numpy()
    for column, name in enumerate(names):
        rows[name] = columns[:, column]


def _write(path: Path, rows: np.ndarray) -> None:
    kinds = {"<f4": "float", "|u1": "uchar"}
    assert rows.dtype.fields is not None
    properties = [f"property {kinds[t[0].str]} {name}" for name, t in rows.dtype.fields.items()]
    header = ["ply", "format binary_little_endian 1.0", f"comment {_COMMENT}",
              f"element vertex {len(rows)}", *properties, "end_header", ""]  # fmt: skip
    with path.open("wb") as file:
        file.write("\n".join(header).encode("ascii"))
        file.write(rows.tobytes())
