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
from jaxtyping import Float
from torch import Tensor

from .files import replacing, replacing_folder
from .geometry import transform_points
from .image_files import to_bytes
from .scene import PointTracks, Scene4D

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
SIGMA_PER_SPACING = 0.6
"""Standard deviation of a Gaussian over the distance to its neighbour. Midway between four
neighbours, they cover 1 - (1 - 0.99 exp(-0.5 / (2 * 0.6^2)))^4 = 93 % of what lies behind."""

_COMMENT = "More4D world: OpenCV axes, +x right, +y down, +z forward"


@dataclass(frozen=True, slots=True, kw_only=True)
class FramePoints:
    """The points of one frame that are there to be drawn."""

    positions: Float[Tensor, "point 3"]
    """World coordinates, finite."""

    colors: Float[Tensor, "point 3"]
    """sRGB in [0, 1]."""

    spacing: Float[Tensor, " point"]
    """Distance to the neighbouring point on the surface, from the pixel size at its depth."""


def frame_points(scene: Scene4D, frame: int) -> FramePoints:
    """Return the visible (tracks) or valid (point maps) points of one frame."""
    points = scene.points
    if isinstance(points, PointTracks):
        positions, colors, shown = points.positions[frame], points.colors, points.visibility[frame]
    else:
        positions = points.positions[frame].flatten(0, 1)
        colors, shown = points.colors[frame].flatten(0, 1), points.valid[frame].flatten()
    shown = shown & positions.isfinite().all(-1)
    return FramePoints(
        positions=positions[shown],
        colors=colors[shown],
        spacing=point_spacing(scene, frame)[shown],
    )


def point_spacing(scene: Scene4D, frame: int) -> Float[Tensor, " point"]:
    """Distance of each point to its neighbour: its pixel, z / focal wide at depth z.

    Tracks keep the size that they had in frame 0 (or have in `frame`, when they were not finite
    then); sparse ones are as far apart as if they were spread evenly over the image. Positive,
    and 0 for points that are not finite.
    """
    points, cameras = scene.points, scene.cameras
    positions, sized_in = points.positions[frame].reshape(-1, 3), frame
    if isinstance(points, PointTracks) and frame > 0:
        first = points.positions[0]
        positions = torch.where(first.isfinite().all(-1, keepdim=True), first, positions)
        sized_in = 0
    depth = transform_points(positions, cameras.world_to_camera[sized_in].to(positions))[:, 2].abs()
    focal_px = cameras.intrinsics[sized_in, 0, 0].to(positions)
    pixels_per_point = cameras.height * cameras.width / max(len(positions), 1)
    spacing = depth / focal_px * pixels_per_point**0.5
    return torch.where(spacing.isfinite(), spacing.clamp_min(1e-12), 0.0)


def save_ply(path: str | os.PathLike[str], scene: Scene4D, *, frame: int = 0) -> None:
    """Write the visible points of one frame as binary little-endian PLY: x y z red green blue."""
    with replacing(path) as temporary:
        _write(temporary, _point_rows(frame_points(scene, frame)))


def save_gaussian_ply(path: str | os.PathLike[str], scene: Scene4D, *, frame: int = 0) -> None:
    """Write the visible points of one frame as round 3D Gaussians, for splat viewers."""
    with replacing(path) as temporary:
        _write(temporary, _gaussian_rows(frame_points(scene, frame)))


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
    rows: Callable[[FramePoints], np.ndarray],
    progress: Callable[[int, int], None] | None,
) -> None:
    with replacing_folder(folder, "frame_*.ply") as temporary:
        for frame in range(scene.num_frames):
            _write(temporary / f"frame_{frame:04d}.ply", rows(frame_points(scene, frame)))
            if progress is not None:
                progress(frame + 1, scene.num_frames)


def _point_rows(points: FramePoints) -> np.ndarray:
    rows = np.empty(len(points.positions), POINT_DTYPE)
    _fill(rows, ("x", "y", "z"), points.positions)
    _fill(rows, ("red", "green", "blue"), to_bytes(points.colors))
    return rows


def _gaussian_rows(points: FramePoints) -> np.ndarray:
    rows = np.zeros(len(points.positions), GAUSSIAN_DTYPE)
    _fill(rows, ("x", "y", "z"), points.positions)
    _fill(rows, ("f_dc_0", "f_dc_1", "f_dc_2"), (points.colors - 0.5) / SH_DEGREE_0)
    rows["opacity"] = np.log(GAUSSIAN_OPACITY / (1 - GAUSSIAN_OPACITY))
    log_scale = (points.spacing * SIGMA_PER_SPACING).log()
    _fill(rows, ("scale_0", "scale_1", "scale_2"), log_scale[:, None].expand(-1, 3))
    rows["rot_0"] = 1.0
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
