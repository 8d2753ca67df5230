"""A camera path from whatever a user names: a preset, a keyframe file, another program's file."""

import logging
from dataclasses import replace
from pathlib import Path

from ..camera_files import load_cameras
from ..camera_files.json_formats import is_keyframe_file
from ..scene import Cameras, Scene4D
from . import (
    PathSettings,
    check_path_name,
    path_descriptions,
    scene_path,
    scene_scale,
    warn_without_effect,
)
from .edits import CameraPathError, ease_path, rebase_path, retime_path
from .keyframes import cameras_from_keyframes, load_keyframes
from .presets import CAMERA_PRESETS

_log = logging.getLogger(__name__)


def path_from(
    source: str,
    scene: Scene4D,
    num_frames: int | None = None,
    *,
    settings: PathSettings | None = None,
    in_scene_world: bool = False,
) -> Cameras:
    """Make the camera path that `source` names, starting at the scene's input view.

    `source` is a name that `camera_paths.path_descriptions` lists, or else the path of a keyframe
    JSON or of any file that `camera_files` reads. A file's path is moved to start at the input
    view, brought to the input view's image size and retimed to `num_frames` (default: the
    scene's number, or the file's own where the scene is a single frame). `in_scene_world` says
    that a camera file's world is the scene's, so that its path is not moved. Where no ease is
    set, our movements start and end slowly, and files keep their timing.

    Raises:
        CameraPathError: unknown name; settings that the path cannot follow.
        FileFormatError: a file that is no camera file.
    """
    check_source(source)
    settings = settings or PathSettings()
    if not is_camera_file(source):
        if settings.ease is None and source in CAMERA_PRESETS:
            settings = replace(settings, ease="in-out")
        return scene_path(source, scene, num_frames, settings=settings)
    start = scene.cameras.frames(slice(0, 1))
    if num_frames is None and scene.num_frames > 1:
        num_frames = scene.num_frames
    if is_keyframe_file(Path(source)):
        own = ("amplitude", "angle_deg", "ease", "loop")
        warn_without_effect(settings, own, f"keyframes in {source}, which say it themselves")
        keyframes = load_keyframes(source)
        return cameras_from_keyframes(
            keyframes, start, num_frames or 49, scene_scale=scene_scale(scene)
        )
    fixed = ("amplitude", "angle_deg", "loop") if in_scene_world else ("angle_deg", "loop")
    warn_without_effect(settings, fixed, f"cameras in {source}")
    path = load_cameras(source, like=start)
    path = path.resized(start.height, start.width)
    if not in_scene_world:
        path = rebase_path(path, start, scale=settings.amplitude)
    if num_frames is not None and num_frames != path.num_frames:
        _log.info("%s has %d cameras; retimed to %d.", source, path.num_frames, num_frames)
        path = retime_path(path, num_frames)
    return path if settings.ease in (None, "linear") else ease_path(path, settings.ease)


def check_source(source: str) -> None:
    """Refuse, before any work, a name that is neither a path we know nor a file.

    Raises:
        CameraPathError: suggests the nearest name, or says that the file is not there.
    """
    if is_camera_file(source):
        return
    if Path(source).suffix:
        raise CameraPathError(f"There is no camera file at {source}.")
    check_path_name(source)


def source_label(source: str) -> str:
    """Short name of a source, for files and pictures made with it."""
    return Path(source).stem if is_camera_file(source) else source


def is_camera_file(source: str) -> bool:
    """Tell a file or folder from a name; a folder that happens to be called `static` is no file."""
    return bool(source) and source not in path_descriptions() and Path(source).exists()


def camera_source_files(source: str) -> list[Path]:
    """Every file that decides the path; none for a name."""
    if not is_camera_file(source):
        return []
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    colmap = [file for name in ("cameras.txt", "images.txt") if (file := folder / name).is_file()]
    return colmap if path.is_dir() or path in colmap else [path]
