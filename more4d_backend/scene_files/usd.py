"""Scenes as animated USD points, with the source camera.

USD here is Y up and looks along -z, so the world is turned by half a circle about x: (x, y, z)
becomes (x, -y, -z). One unit is one metre; frame i is time code i; colours are made linear.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..files import OutputError, replacing
from ..scene import Cameras, PointTracks, Scene4D
from .points import frame_points, point_spacing

_APERTURE_MM = 36.0


def save_usd(
    path: str | os.PathLike[str],
    scene: Scene4D,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write /scene/points (UsdGeom.Points) and /scene/camera as .usd, .usdc or .usda.

    Tracks keep their order and number, so that motion blur and retiming work; a point is 0 wide
    while it is not visible. Point maps hold the valid points of each frame.

    Raises:
        ModuleNotFoundError: usd-core is not installed; says how to.
        OutputError: another suffix, or the place cannot be written.
    """
    pxr = _pxr()
    if Path(path).suffix.lower() not in (".usd", ".usdc", ".usda"):
        raise OutputError(f"{path} ends in {Path(path).suffix!r}; expected .usd, .usdc or .usda.")
    with replacing(path) as temporary:
        stage = pxr.Usd.Stage.CreateNew(str(temporary))
        pxr.UsdGeom.SetStageUpAxis(stage, pxr.UsdGeom.Tokens.y)
        pxr.UsdGeom.SetStageMetersPerUnit(stage, 1.0)
        stage.SetTimeCodesPerSecond(scene.fps)
        stage.SetFramesPerSecond(scene.fps)
        stage.SetStartTimeCode(0)
        stage.SetEndTimeCode(scene.num_frames - 1)
        stage.SetDefaultPrim(pxr.UsdGeom.Xform.Define(stage, "/scene").GetPrim())
        _write_camera(pxr.UsdGeom.Camera.Define(stage, "/scene/camera"), scene.cameras)
        points = pxr.UsdGeom.Points.Define(stage, "/scene/points")
        color = points.CreateDisplayColorPrimvar(pxr.UsdGeom.Tokens.vertex)
        for frame in range(scene.num_frames):
            values = _frame_values(scene, frame)
            points.CreatePointsAttr().Set(_vectors(values.positions), frame)
            points.CreateWidthsAttr().Set(_floats(values.widths), frame)
            points.CreateExtentAttr().Set(_extent(values), frame)
            if values.colors is not None:
                color.Set(_vectors(values.colors), frame)
            if progress is not None:
                progress(frame + 1, scene.num_frames)
        stage.Save()


@dataclass(frozen=True, slots=True, kw_only=True)
class _FrameValues:
    """What USD gets for one frame, in its own axes."""

    positions: Float[Tensor, "point 3"]
    widths: Float[Tensor, " point"]
    colors: Float[Tensor, "point 3"] | None
    """Linear; None in later frames of tracks, whose colours do not change."""


def _frame_values(scene: Scene4D, frame: int) -> _FrameValues:
    points, shown = scene.points, frame_points(scene, frame)
    spacing = point_spacing(scene, frame)
    if not isinstance(points, PointTracks):
        return _FrameValues(
            positions=to_usd_axes(shown.positions),
            widths=spacing[shown.shown],
            colors=linear_from_srgb(shown.colors),
        )
    positions = points.positions[frame].cpu()
    finite = positions.isfinite().all(-1, keepdim=True)
    parked = points.positions[0].cpu().nan_to_num(0.0, 0.0, 0.0)  # unseen, but USD wants a number
    return _FrameValues(
        positions=to_usd_axes(torch.where(finite, positions, parked)),
        widths=torch.where(shown.shown, spacing, 0.0),
        colors=linear_from_srgb(points.colors.cpu()) if frame == 0 else None,
    )


def to_usd_axes(positions: Float[Tensor, "*axes 3"]) -> Float[Tensor, "*axes 3"]:
    """OpenCV (+y down, +z forward) to USD (+y up, +z backward). Its own inverse."""
    return positions * positions.new_tensor([1.0, -1.0, -1.0])


def linear_from_srgb(colors: Float[Tensor, "*axes 3"]) -> Float[Tensor, "*axes 3"]:
    """Undo the sRGB transfer curve (IEC 61966-2-1), as USD's displayColor expects."""
    colors = colors.clamp(0, 1)
    return torch.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def _write_camera(camera: Any, cameras: Cameras) -> None:
    """Write the source cameras; a film 36 mm wide stands for the width of the image."""
    pxr = _pxr()
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
    to_world = flip @ cameras.camera_to_world.cpu().double() @ flip
    transform = camera.AddTransformOp()
    for frame, K in enumerate(cameras.intrinsics.cpu().double().tolist()):
        mm_per_px = _APERTURE_MM / cameras.width
        height_mm = mm_per_px * cameras.height * K[0][0] / K[1][1]
        # USD has row vectors: points are multiplied from the left.
        transform.Set(pxr.Gf.Matrix4d(*to_world[frame].T.flatten().tolist()), frame)
        camera.CreateFocalLengthAttr().Set(K[0][0] * mm_per_px, frame)
        camera.CreateHorizontalApertureAttr().Set(_APERTURE_MM, frame)
        camera.CreateVerticalApertureAttr().Set(height_mm, frame)
        right, down = 0.5 - K[0][2] / cameras.width, 0.5 - K[1][2] / cameras.height
        camera.CreateHorizontalApertureOffsetAttr().Set(right * _APERTURE_MM, frame)
        camera.CreateVerticalApertureOffsetAttr().Set(-down * height_mm, frame)
    camera.CreateClippingRangeAttr().Set((1e-3, 1e6))


def _extent(values: _FrameValues) -> Any:
    """Bounds of what is visible, as USD viewers need to frame the view."""
    shown = values.positions[values.widths > 0]
    if not len(shown):
        shown = values.positions.new_zeros(1, 3)
    half = values.widths.max() / 2 if len(values.widths) else 0.0
    return _vectors(torch.stack([shown.amin(0) - half, shown.amax(0) + half]))


def _vectors(values: Tensor) -> Any:
    return _pxr().Vt.Vec3fArray.FromNumpy(_numpy(values))


def _floats(values: Tensor) -> Any:
    return _pxr().Vt.FloatArray.FromNumpy(_numpy(values))


def _numpy(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.detach().float().cpu().numpy())


def _pxr() -> Any:
    try:
        import pxr
        from pxr import Gf, Usd, UsdGeom, Vt  # noqa: F401 - submodules load when imported
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(
            "Writing USD needs the package usd-core. Install it with: pip install usd-core"
        ) from e
    return pxr
