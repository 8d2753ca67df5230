"""Camera paths by name. A path is a `Cameras`, one per frame, that starts at the input view.

`scene_path(name, scene)` is what nodes, commands and the editor call; `make_path` needs no scene.
The movements are in `camera_paths/presets.py`, the reference's five formulas in
`camera_paths/reference_paths.py`, edits of finished paths in `camera_paths/edits.py`.
"""

import difflib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry import invert_rigid, transform_points
from ..scene import Cameras, PointTracks, Scene4D
from .edits import EASES, CameraPathError, check_ease, check_num_frames, starting_at
from .presets import CAMERA_PRESETS, CameraPreset, Move
from .reference_paths import (
    REFERENCE_ALTERNATIVES,
    REFERENCE_DESCRIPTIONS,
    REFERENCE_PATHS,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSettings:
    """How far, around what and how evenly a named path moves."""

    amplitude: float = 1.0
    """Multiplies the preset's distances and angles; negative values mirror it."""

    angle_deg: float | None = None
    """Whole turn of an orbit, arc, crane or spiral, before `amplitude`. None: the preset's own."""

    pivot_distance: float | None = None
    """Depth of the pivot and unit of all distances, in world units. None: `scene_path` takes
    `scene_scale(scene)`; `make_path`, which knows no scene, takes 1."""

    pivot: tuple[float, float, float] | None = None
    """Point to turn around and to look at, in the axes of the input view. None: the point on the
    optical axis at `pivot_distance` (for the reference's paths, `mean_point(scene)`)."""

    ease: str | None = None
    """`linear`, `in` (starts slowly), `out` (ends slowly) or `in-out`. None: linear; of our
    movements in `sources.path_from`, in-out."""

    loop: bool = False
    """Ends one frame before it would be back at the start, so that the video repeats seamlessly.
    A path that closes by itself (a full turn) goes on turning; others go out and come back."""

    seed: int = 0
    """Chooses the movement of `handheld`."""

    def __post_init__(self) -> None:
        if self.ease is not None:
            check_ease(self.ease)
        for name, value in (("amplitude", self.amplitude), ("angle_deg", self.angle_deg)):
            if value is not None and not math.isfinite(value):
                raise CameraPathError(f"{name} is {value}; expected a finite number.")
        if self.pivot_distance is not None and not 0 < self.pivot_distance < math.inf:
            raise CameraPathError(
                f"pivot_distance is {self.pivot_distance}; expected a positive number of world "
                "units, such as scene_scale(scene)."
            )
        if self.pivot is not None and not all(map(math.isfinite, self.pivot)):
            raise CameraPathError(f"pivot is {self.pivot}; expected three finite numbers.")


def warn_without_effect(settings: PathSettings, names: Sequence[str], path: str) -> None:
    """Log which of the named settings were set, though `path` ("camera path x") ignores them."""
    is_set = {
        "amplitude": settings.amplitude != 1,
        "angle_deg": settings.angle_deg is not None,
        "ease": settings.ease not in (None, "linear"),
        "loop": settings.loop,
    }
    for name in names:
        if is_set[name]:
            _log.warning("%s has no effect on the %s.", name, path)


def path_descriptions() -> dict[str, str]:
    """Every name that `make_path` knows, with one line about it; the reference's names last."""
    ours = {name: preset.description for name, preset in CAMERA_PRESETS.items()}
    return ours | REFERENCE_DESCRIPTIONS


def check_path_name(name: str) -> None:
    """Refuse a name that is no path.

    Raises:
        CameraPathError: suggests the nearest names.
    """
    if name in CAMERA_PRESETS or name in REFERENCE_PATHS:
        return
    if name in REFERENCE_ALTERNATIVES:
        raise CameraPathError(
            f"The camera path {name!r} exists in the reference only as a name, without code. "
            f"The nearest of ours is {REFERENCE_ALTERNATIVES[name]!r}."
        )
    known = path_descriptions()
    near = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise CameraPathError(f"There is no camera path {name!r}. {hint}Known: {', '.join(known)}.")


def make_path(
    name: str, start: Cameras, num_frames: int, *, settings: PathSettings | None = None
) -> Cameras:
    """Make a named path that starts at one camera, the input view.

    Frame 0 of our paths is `start`, bit for bit (the reference's `circle_rotating` and
    `surrounding` start elsewhere). Without `loop` the last frame is the far end of the path.
    Computed in float64; the result has the type and the device of `start`.

    Raises:
        CameraPathError: unknown name, not exactly one start camera, no frames, or settings
            that the path cannot follow.
    """
    check_path_name(name)
    check_num_frames(num_frames)
    settings = settings or PathSettings()
    if start.num_frames != 1:
        raise CameraPathError(
            f"start has {start.num_frames} cameras; expected one, the input view. "
            "Use cameras.frames(slice(0, 1))."
        )
    if name in REFERENCE_PATHS:
        return _reference_path(name, start, num_frames, settings)
    preset = CAMERA_PRESETS[name]
    if preset.angle_deg is None:
        warn_without_effect(settings, ("angle_deg",), f"camera path {name}, which has no angle")
    shape = preset.shape(_move(preset, _progress(preset, num_frames, settings), settings))
    world_to_camera = invert_rigid(shape.camera_to_start) @ start.world_to_camera.cpu().double()
    intrinsics = start.intrinsics.cpu().double().repeat(num_frames, 1, 1)
    if shape.zoom is not None:
        intrinsics[:, :2, :2] *= shape.zoom[:, None, None]
    return starting_at(start, world_to_camera, intrinsics)


def scene_path(
    name: str,
    scene: Scene4D,
    num_frames: int | None = None,
    *,
    settings: PathSettings | None = None,
) -> Cameras:
    """Make a named path from a scene's input view, scaled to the scene.

    `num_frames` is the scene's unless given. Settings that are None are measured in the scene.

    Raises:
        CameraPathError: as `make_path`; or nothing of the scene is visible to measure.
    """
    check_path_name(name)
    settings = settings or PathSettings()
    if settings.pivot_distance is None:
        settings = replace(settings, pivot_distance=scene_scale(scene))
    if settings.pivot is None and name in REFERENCE_PATHS:
        settings = replace(settings, pivot=mean_point(scene))
    if num_frames is None:
        num_frames = scene.num_frames
    return make_path(name, scene.cameras.frames(slice(0, 1)), num_frames, settings=settings)


def scene_scale(scene: Scene4D) -> float:
    """Median depth, from the input view, of what it sees in frame 0; in world units.

    The median, because a single far point (sky, a depth error) moves a mean without bound.

    Raises:
        CameraPathError: nothing is visible in front of the camera.
    """
    return float(_input_view_points(scene)[:, 2].median())


def mean_point(scene: Scene4D) -> tuple[float, float, float]:
    """Mean of what the input view sees in frame 0, in its axes: the reference's centre.

    Raises:
        CameraPathError: nothing is visible in front of the camera.
    """
    x, y, z = _input_view_points(scene).mean(0).tolist()
    return x, y, z


def _input_view_points(scene: Scene4D) -> Float[Tensor, "point 3"]:
    points = scene.points
    seen = points.visibility[0] if isinstance(points, PointTracks) else points.valid[0]
    positions = transform_points(points.positions[0][seen], scene.cameras.world_to_camera[0])
    positions = positions[positions[:, 2] > 0]
    if len(positions) == 0:
        raise CameraPathError(
            "The scene has no visible point in front of the input view in frame 0, so its scale "
            "cannot be measured. Look at the scene and at the depth that it was made from; a named "
            "movement can do without, with pivot_distance in world units."
        )
    return positions


def _progress(
    preset: CameraPreset, num_frames: int, settings: PathSettings
) -> Float[Tensor, "frame"]:
    frame = torch.arange(num_frames, dtype=torch.float64)
    time = frame / max(num_frames - 1, 1)
    if settings.loop:
        time = frame / num_frames
        if not _closes(preset, settings):
            time = 1 - (1 - 2 * time).abs()
    return EASES[settings.ease or "linear"](time)


def _closes(preset: CameraPreset, settings: PathSettings) -> bool:
    """Whether the far end of the path is its start."""
    ends = preset.shape(_move(preset, torch.tensor([0.0, 1.0], dtype=torch.float64), settings))
    start, end = ends.camera_to_start
    if settings.pivot_distance is not None:
        end = end.clone()
        end[:3, 3] /= settings.pivot_distance  # so that the tolerance is one of angles
    return torch.allclose(start, end, atol=1e-9) and ends.zoom is None


def _move(preset: CameraPreset, progress: Float[Tensor, "frame"], settings: PathSettings) -> Move:
    distance, pivot = _distance_and_pivot(settings)
    angle_deg = preset.angle_deg if settings.angle_deg is None else settings.angle_deg
    return Move(
        progress=progress,
        amplitude=settings.amplitude,
        distance=distance,
        pivot=pivot,
        angle_rad=progress * math.radians(settings.amplitude * (angle_deg or 0.0)),
        seed=settings.seed,
    )


def _distance_and_pivot(settings: PathSettings) -> tuple[float, Float[Tensor, "3"]]:
    distance = 1.0 if settings.pivot_distance is None else settings.pivot_distance
    pivot = (0.0, 0.0, distance) if settings.pivot is None else settings.pivot
    return distance, torch.tensor(pivot, dtype=torch.float64)


def _reference_path(name: str, start: Cameras, num_frames: int, settings: PathSettings) -> Cameras:
    """A formula of the reference, which knows neither amplitude nor ease."""
    fixed = ("amplitude", "angle_deg", "ease", "loop")
    warn_without_effect(settings, fixed, f"camera path {name}, a fixed formula")
    camera_to_start = REFERENCE_PATHS[name](_distance_and_pivot(settings)[1], num_frames)
    world_to_camera = invert_rigid(camera_to_start) @ start.world_to_camera.cpu().double()
    dtype, device = start.world_to_camera.dtype, start.world_to_camera.device
    return replace(start.repeated(num_frames), world_to_camera=world_to_camera.to(dtype).to(device))
