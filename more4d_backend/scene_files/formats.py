"""Every file format of scenes by name: what `convert` writes and reads."""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..files import FileFormatError, OutputError
from ..scene import Scene4D
from . import load_scene, save_scene
from .ply_reader import load_ply_scene
from .points import (
    save_gaussian_ply,
    save_gaussian_ply_sequence,
    save_ply,
    save_ply_sequence,
)
from .tapvid import load_tapvid3d, save_tapvid3d
from .usd import save_usd

_Progress = Callable[[int, int], None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneFormat:
    """One way to write a scene."""

    write: Callable[[Path, Scene4D, _Progress], None]
    """The last argument is told (frames done, all frames), where frames are written one by one."""

    suffixes: tuple[str, ...]
    """Endings of file names; empty for a folder of files."""

    description: str


def _write_scene(path: Path, scene: Scene4D, progress: _Progress) -> None:
    del progress  # one file, at once
    save_scene(path, scene)


def _write_tapvid3d(path: Path, scene: Scene4D, progress: _Progress) -> None:
    del progress  # one file, at once
    save_tapvid3d(path, scene)


def _write_ply(path: Path, scene: Scene4D, progress: _Progress) -> None:
    if _holds_one_frame(path, scene):
        save_ply(path, scene)
    else:
        save_ply_sequence(path, scene, progress=progress)


def _write_gaussians(path: Path, scene: Scene4D, progress: _Progress) -> None:
    if _holds_one_frame(path, scene):
        save_gaussian_ply(path, scene)
    else:
        save_gaussian_ply_sequence(path, scene, progress=progress)


def _write_usd(path: Path, scene: Scene4D, progress: _Progress) -> None:
    save_usd(path, scene, progress=progress)


SCENE_FORMATS: dict[str, SceneFormat] = {
    "more4d": SceneFormat(
        write=_write_scene,
        suffixes=(".safetensors",),
        description="a whole scene in one file, to be read back",
    ),
    "tapvid3d": SceneFormat(
        write=_write_tapvid3d,
        suffixes=(".npz",),
        description="tracks with the keys of TAPVid-3D",
    ),
    "ply": SceneFormat(
        write=_write_ply,
        suffixes=(".ply", ""),
        description="coloured points: a folder with one file per frame, or one .ply of one frame",
    ),
    "gaussians": SceneFormat(
        write=_write_gaussians,
        suffixes=(".ply", ""),
        description="3D Gaussians for splat viewers: a folder, or one .ply of one frame",
    ),
    "usd": SceneFormat(
        write=_write_usd,
        suffixes=(".usd", ".usdc", ".usda"),
        description="animated points and camera for Blender, Houdini, Omniverse (needs usd-core)",
    ),
}
"""Formats that `export_scene` writes, by name."""

_READERS: dict[str, Callable[[Path], Scene4D]] = {
    ".safetensors": load_scene,
    ".npz": load_tapvid3d,
    ".ply": load_ply_scene,
}

SCENE_SUFFIXES = tuple(_READERS)
"""Endings, in lower case, of the files that `import_scene` reads."""


def export_scene(
    path: str | os.PathLike[str],
    scene: Scene4D,
    scene_format: str | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a scene in one of `SCENE_FORMATS`; None takes the first that the ending fits.

    `progress` is called with (frames done, all frames) where a format is written frame by frame.

    Raises:
        ValueError: the format is unknown (the nearest is named), or cannot hold this scene.
        OutputError: the ending fits no format or another one, or the place cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if scene_format is None:
        fitting = [name for name, f in SCENE_FORMATS.items() if suffix and suffix in f.suffixes]
        if not fitting:
            raise OutputError(
                f"The ending of {path.name} fits no scene format. Name the format, one of "
                f"{', '.join(SCENE_FORMATS)}, or use an ending such as .safetensors."
            )
        scene_format = fitting[0]
    check_scene_format(scene_format)
    chosen = SCENE_FORMATS[scene_format]
    if suffix not in chosen.suffixes:
        endings = " or ".join(ending or "none (a folder)" for ending in chosen.suffixes)
        raise OutputError(
            f"{path.name} ends in {suffix!r}; the format {scene_format} needs {endings}."
        )
    chosen.write(path, scene, progress)


def check_scene_format(scene_format: str) -> None:
    """Refuse an unknown name.

    Raises:
        ValueError: names the nearest format, and all of them.
    """
    if scene_format in SCENE_FORMATS:
        return
    near = difflib.get_close_matches(scene_format.lower(), SCENE_FORMATS, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(
        f"Scene format {scene_format!r} is unknown.{hint} Known: {', '.join(SCENE_FORMATS)}."
    )


def import_scene(path: str | os.PathLike[str]) -> Scene4D:
    """Read a scene by the ending of its name: .safetensors, .npz (TAPVid-3D) or .ply.

    Raises:
        FileFormatError: another ending, or the file is not what its ending says.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise FileFormatError(
            f"{path} ends in {path.suffix!r}; scenes are read from {', '.join(_READERS)}."
        )
    return reader(path)


def _holds_one_frame(path: Path, scene: Scene4D) -> bool:
    if not path.suffix:
        return False
    if scene.num_frames != 1:
        raise OutputError(
            f"The scene has {scene.num_frames} frames, and {path.name} holds one. Name a folder "
            f"(such as {path.stem}) to get one file per frame."
        )
    return True
