"""Camera keyframes: a few poses, and the smooth path through them. JSON as the editor writes it.

Poses are camera-to-world in the axes of the input view and focal lengths are ratios to the input
view's, so the same keyframes render at any image size and start wherever the input view is. The
schema is in docs/camera-keyframes.md.
"""

import itertools
import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..files import FileFormatError, replacing
from ..files.strict_json import (
    as_choice,
    as_list,
    as_number,
    as_numbers,
    as_object,
    parse_json,
    read_text,
)
from ..geometry import (
    invert_rigid,
    matrix_from_quaternion_wxyz,
    quaternion_wxyz_from_matrix,
    rigid,
)
from ..scene import Cameras
from .edits import (
    EASES,
    CameraPathError,
    check_ease,
    check_num_frames,
    slerp,
)

_log = logging.getLogger(__name__)

FORMAT = "more4d-camera-keyframes"
VERSION = 1
MAX_KEYFRAMES = 10_000
_LIMIT_BYTES = 16 * 2**20
_MAX_COORDINATE = 1e9
_MAX_ZOOM = 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyframe:
    """One pose on a path."""

    time: float
    """0 at the first frame of the path, 1 at the last."""

    position: tuple[float, float, float]
    """World units, in the axes of the input view (+x right, +y down, +z forward)."""

    quaternion_wxyz: tuple[float, float, float, float]
    """Unit; camera axes to input-view axes. (1, 0, 0, 0) looks as the input view does."""

    zoom: float = 1.0
    """Focal length divided by the input view's."""

    ease: str = "linear"
    """How the way to the next keyframe is gone: `linear`, `in`, `out` or `in-out`."""

    extra: Mapping[str, object] = field(default_factory=dict)
    """JSON fields that are not ours, kept for whoever wrote them."""

    def __post_init__(self) -> None:
        check_ease(self.ease)
        if not 0 <= self.time <= 1:
            raise CameraPathError(f"time is {self.time}; expected 0 (first frame) to 1 (last).")
        if not all(abs(x) <= _MAX_COORDINATE for x in self.position):
            raise CameraPathError(f"position is {self.position}; expected three finite numbers.")
        length = math.hypot(*self.quaternion_wxyz)
        if not abs(length - 1) <= 1e-3:
            raise CameraPathError(
                f"quaternion_wxyz is {self.quaternion_wxyz}, of length {length:.4g}; "
                "expected length 1 (order w, x, y, z)."
            )
        if not 1 / _MAX_ZOOM <= self.zoom <= _MAX_ZOOM:
            raise CameraPathError(
                f"zoom is {self.zoom}; expected {1 / _MAX_ZOOM:g} to {_MAX_ZOOM:g} "
                "(1 keeps the input view's focal length)."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraKeyframes:
    """Keyframes in order of time."""

    keyframes: tuple[Keyframe, ...]
    """At least one, with strictly increasing times."""

    scene_scale: float | None = None
    """`scene_scale` of the scene for which the positions were set. None: unknown."""

    extra: Mapping[str, object] = field(default_factory=dict)
    """JSON fields that are not ours, kept for whoever wrote them."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.keyframes) <= MAX_KEYFRAMES:
            raise CameraPathError(
                f"There are {len(self.keyframes)} keyframes; expected 1 to {MAX_KEYFRAMES}."
            )
        times = [keyframe.time for keyframe in self.keyframes]
        for i, (time, following) in enumerate(itertools.pairwise(times), start=1):
            if not following > time:
                raise CameraPathError(
                    f"keyframes[{i}].time is {following} after {time}; expected increasing times."
                )
        if self.scene_scale is not None and not 0 < self.scene_scale < math.inf:
            raise CameraPathError(
                f"scene_scale is {self.scene_scale}; expected a positive number of world units."
            )


def cameras_from_keyframes(
    keyframes: CameraKeyframes,
    start: Cameras,
    num_frames: int,
    *,
    scene_scale: float | None = None,
) -> Cameras:
    """Make the path through keyframes, as seen from an input view (`start`, one camera).

    Positions follow a Catmull-Rom curve with the times as knots (Barry and Goldman 1988), which
    passes exactly through every keyframe at its time; where two neighbours have the same
    position, the camera rests between them. Rotations take the shortest way (slerp), the focal
    length changes by equal factors. Before the first and after the last keyframe nothing moves.
    Principal point and pixel aspect are the input view's.

    `scene_scale` fits keyframes that were set in another scene: where they state their own scale,
    positions are multiplied by the ratio.

    Raises:
        CameraPathError: `start` is not one camera, or there are no frames.
    """
    check_num_frames(num_frames)
    if start.num_frames != 1:
        raise CameraPathError(f"start has {start.num_frames} cameras; expected one.")
    frame = torch.arange(num_frames, dtype=torch.float64)
    time = frame / max(num_frames - 1, 1)
    position, quaternion_wxyz, zoom = _interpolated(keyframes.keyframes, time)
    if scene_scale is not None and keyframes.scene_scale is not None:
        position = position * (scene_scale / keyframes.scene_scale)
    elif scene_scale is not None:
        _log.info("The keyframes state no scene_scale; their positions are taken as they are.")
    camera_to_start = rigid(matrix_from_quaternion_wxyz(quaternion_wxyz), position)
    world_to_camera = invert_rigid(camera_to_start) @ start.world_to_camera.cpu().double()
    intrinsics = start.intrinsics.cpu().double().repeat(num_frames, 1, 1)
    intrinsics[:, :2, :2] *= zoom[:, None, None]
    dtype, device = start.world_to_camera.dtype, start.world_to_camera.device
    return Cameras(
        world_to_camera=world_to_camera.to(dtype).to(device),
        intrinsics=intrinsics.to(dtype).to(device),
        height=start.height,
        width=start.width,
    )


def keyframes_from_cameras(
    path: Cameras, start: Cameras | None = None, *, tolerance: float = 0.01
) -> CameraKeyframes:
    """Find few keyframes whose path follows another, so that a preset can be edited.

    Starting from the first and the last frame, the frame that is missed most becomes a keyframe,
    until no position is off by more than `tolerance` of the path's extent, no rotation by more
    than `tolerance` radians and no focal length by more than that ratio. `start` is the input
    view; without it, the path's first camera.
    """
    if path.num_frames > MAX_KEYFRAMES:
        raise CameraPathError(f"The path has {path.num_frames} frames; expected {MAX_KEYFRAMES}.")
    start = path.frames([0]) if start is None else start
    frames = _keyframes_at_all_frames(path, start)
    time = torch.tensor([frame.time for frame in frames], dtype=torch.float64)
    wanted = _tensors(frames)
    extent = (wanted[0] - wanted[0].mean(0)).norm(dim=-1).max().clamp_min(1e-9)
    chosen = sorted({0, path.num_frames - 1})
    while len(chosen) < path.num_frames:
        got = _interpolated(tuple(frames[i] for i in chosen), time)
        off = torch.stack(
            [
                (got[0] - wanted[0]).norm(dim=-1) / extent,
                2 * (got[1] * wanted[1]).sum(-1).abs().clamp_max(1).acos(),
                (got[2] / wanted[2]).log().abs(),
            ]
        ).amax(0)
        off[chosen] = 0
        if off.max() <= tolerance:
            break
        chosen = sorted([*chosen, int(off.argmax())])
    return CameraKeyframes(keyframes=tuple(frames[i] for i in chosen))


def keyframes_from_json(text: str, source: str = "The keyframes") -> CameraKeyframes:
    """Read keyframes from JSON text. Fields that are not ours are kept in `extra`.

    Raises:
        FileFormatError: names the field that is missing, of a wrong type or out of range.
    """
    document = as_object(parse_json(text, source), source)
    if document.get("format") != FORMAT:
        raise FileFormatError(
            f'{source} has no "format": "{FORMAT}", so it is not a camera keyframe file. '
            "Other camera files are read by load_cameras."
        )
    version = as_number(document.get("version"), f"{source}: version")
    if version != VERSION:
        raise FileFormatError(
            f"{source} has version {version:g}; this release reads version {VERSION}. "
            "Update it, or save the keyframes again."
        )
    items = as_list(document.get("keyframes"), f"{source}: keyframes", max_items=MAX_KEYFRAMES)
    scale = document.get("scene_scale")
    try:
        return CameraKeyframes(
            keyframes=tuple(
                _keyframe_from_json(item, f"{source}: keyframes[{i}]")
                for i, item in enumerate(items)
            ),
            scene_scale=None if scale is None else as_number(scale, f"{source}: scene_scale"),
            extra=_extra(document, {"format", "version", *_names(CameraKeyframes)}),
        )
    except CameraPathError as e:
        raise FileFormatError(f"{source}: {e}") from e


def keyframes_to_json(keyframes: CameraKeyframes) -> str:
    """Write keyframes as JSON text. Inverse of `keyframes_from_json`."""
    ours: dict[str, object] = {"format": FORMAT, "version": VERSION}
    if keyframes.scene_scale is not None:
        ours["scene_scale"] = keyframes.scene_scale
    ours["keyframes"] = [_keyframe_to_json(frame) for frame in keyframes.keyframes]
    return json.dumps({**ours, **keyframes.extra, **ours}, indent=2, allow_nan=False) + "\n"


def load_keyframes(path: str | os.PathLike[str]) -> CameraKeyframes:
    """Read a keyframe file.

    Raises:
        FileFormatError: damaged, foreign, or a field that is wrong; the field is named.
    """
    return keyframes_from_json(
        read_text(path, _LIMIT_BYTES, "a camera keyframe file"), source=Path(path).name
    )


def save_keyframes(path: str | os.PathLike[str], keyframes: CameraKeyframes) -> None:
    """Write a keyframe file.

    Raises:
        OutputError: the folder cannot be written.
    """
    text = keyframes_to_json(keyframes)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _keyframe_from_json(value: object, where: str) -> Keyframe:
    item = as_object(value, where)
    x, y, z = as_numbers(item.get("position"), 3, f"{where}.position")
    w, i, j, k = as_numbers(item.get("quaternion_wxyz"), 4, f"{where}.quaternion_wxyz")
    try:
        return Keyframe(
            time=as_number(item.get("time"), f"{where}.time"),
            position=(x, y, z),
            quaternion_wxyz=(w, i, j, k),
            zoom=as_number(item.get("zoom", 1.0), f"{where}.zoom"),
            ease=as_choice(item.get("ease", "linear"), EASES, f"{where}.ease"),
            extra=_extra(item, set(_names(Keyframe))),
        )
    except CameraPathError as e:
        raise FileFormatError(f"{where}.{e}") from e


def _keyframe_to_json(frame: Keyframe) -> dict[str, object]:
    ours = {name: getattr(frame, name) for name in _names(Keyframe)}
    return {**ours, **frame.extra, **ours}  # ours first, for readers; and never overwritten


def _names(kind: type[Keyframe] | type[CameraKeyframes]) -> list[str]:
    return [f.name for f in fields(kind) if f.name != "extra"]


def _extra(item: dict[str, object], ours: set[str]) -> dict[str, object]:
    return {name: value for name, value in item.items() if name not in ours}


def _keyframes_at_all_frames(path: Cameras, start: Cameras) -> list[Keyframe]:
    start_to_world = invert_rigid(start.world_to_camera.cpu().double())
    start_to_camera = path.world_to_camera.cpu().double() @ start_to_world
    camera_to_start = invert_rigid(start_to_camera)
    position = camera_to_start[:, :3, 3].tolist()
    quaternion_wxyz = quaternion_wxyz_from_matrix(camera_to_start[:, :3, :3]).tolist()
    zoom = (path.intrinsics[:, 0, 0] / start.intrinsics[0, 0, 0]).tolist()
    last = max(path.num_frames - 1, 1)
    return [
        Keyframe(time=i / last, position=tuple(p), quaternion_wxyz=tuple(q), zoom=z)
        for i, (p, q, z) in enumerate(zip(position, quaternion_wxyz, zoom, strict=True))
    ]


_Poses = tuple[
    Float[Tensor, "frame 3"],
    Float[Tensor, "frame 4"],
    Float[Tensor, "frame"],
]
"""Position, quaternion_wxyz, zoom."""


def _tensors(keyframes: list[Keyframe] | tuple[Keyframe, ...]) -> _Poses:
    position = torch.tensor([k.position for k in keyframes], dtype=torch.float64)
    quaternion = torch.tensor([k.quaternion_wxyz for k in keyframes], dtype=torch.float64)
    zoom = torch.tensor([k.zoom for k in keyframes], dtype=torch.float64)
    return position, torch.nn.functional.normalize(quaternion, dim=-1), zoom


def _interpolated(keyframes: tuple[Keyframe, ...], time: Float[Tensor, "frame"]) -> _Poses:
    position, quaternion_wxyz, zoom = _tensors(keyframes)
    if len(keyframes) == 1:
        n = len(time)
        return position.expand(n, 3), quaternion_wxyz.expand(n, 4), zoom.expand(n)
    knots = torch.tensor([k.time for k in keyframes], dtype=torch.float64)
    time = time.clamp(knots[0], knots[-1])
    before = (torch.searchsorted(knots, time, right=True) - 1).clamp(0, len(knots) - 2)
    after = before + 1
    part = (time - knots[before]) / (knots[after] - knots[before])
    for ease, function in EASES.items():
        has_ease = torch.tensor([k.ease == ease for k in keyframes])[before]
        part = torch.where(has_ease, function(part), part)
    rotation = slerp(quaternion_wxyz[before], quaternion_wxyz[after], part[:, None])
    log_zoom = zoom.log()
    return (
        _catmull_rom(position, knots, before, part),
        rotation,
        torch.lerp(log_zoom[before], log_zoom[after], part).exp(),
    )


def _catmull_rom(
    position: Float[Tensor, "keyframe 3"],
    knots: Float[Tensor, "keyframe"],
    before: Tensor,
    part: Float[Tensor, "frame"],
) -> Float[Tensor, "frame 3"]:
    """Cubic Hermite curve whose velocity at a knot is that of the parabola through it.

    v_i = (h_i s_(i-1) + h_(i-1) s_i) / (h_(i-1) + h_i), with h the lengths of the two segments
    in time and s their mean velocities. At the two ends the curve starts and stops straight.
    """
    h = knots.diff()[:, None]
    mean_velocity = position.diff(dim=0) / h
    inner = (h[1:] * mean_velocity[:-1] + h[:-1] * mean_velocity[1:]) / (h[1:] + h[:-1])
    resting = (mean_velocity == 0).all(-1, keepdim=True)
    inner = torch.where(resting[1:] | resting[:-1], 0.0, inner)  # no swing around a rest
    velocity = torch.cat([mean_velocity[:1], inner, mean_velocity[-1:]])
    u, h, start, end = part[:, None], h[before], position[before], position[before + 1]
    return (
        (1 + 2 * u) * (1 - u) ** 2 * start
        + u * (1 - u) ** 2 * h * velocity[before]
        + u * u * (3 - 2 * u) * end
        - u * u * (1 - u) * h * velocity[before + 1]
    )
