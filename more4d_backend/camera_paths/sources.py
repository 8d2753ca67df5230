"""A camera path from whatever a user names: a preset, a keyframe file, another program's file."""

import logging
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
)
from .edits import CameraPathError, ease_path, rebase_path, retime_path
from .keyframes import cameras_from_keyframes, load_keyframes

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
    that a camera file's world is the scene's, so that its path is not moved.

    Raises:
        CameraPathError: unknown name; settings that the path cannot follow.
        FileFormatError: a file that is no camera file.
    """
    check_source(source)
    settings = settings or PathSettings()
    if not is_camera_file(source):
        return scene_path(source, scene, num_frames, settings=settings)
    start = scene.cameras.frames(slice(0, 1))
    if num_frames is None and scene.num_frames > 1:
        num_frames = scene.num_frames
    if is_keyframe_file(Path(source)):
        keyframes = load_keyframes(source)
        return cameras_from_keyframes(
            keyframes, start, num_frames or 49, scene_scale=scene_scale(scene)
        )
    path = load_cameras(source, like=start)
    path = path.resized(start.height, start.width)
    if not in_scene_world:
        path = rebase_path(path, start, scale=settings.amplitude)
    if num_frames is not None and num_frames != path.num_frames:
        _log.info("%s has %d cameras; retimed to %d.", source, path.num_frames, num_frames)
        path = retime_path(path, num_frames)
    return path if settings.ease == "linear" else ease_path(path, settings.ease)


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
    return source not in path_descriptions() and Path(source).exists()
