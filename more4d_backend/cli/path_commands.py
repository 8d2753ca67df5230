"""`paths`: list the named camera paths, look at one, convert camera files."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tyro.conf import OmitSubcommandPrefixes, Positional, subcommand

from ..camera_files import CAMERA_FORMATS, load_cameras, save_cameras
from ..camera_paths import PathSettings, path_descriptions
from ..camera_paths.sources import path_from
from ..files import OutputError, replacing
from ..geometry import focal_from_fov, intrinsics_from_focal
from ..scene import Cameras, PointTracks, Scene4D
from .console import print_table

LOGGER = logging.getLogger(__name__)

_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True, kw_only=True)
class ListPaths:
    """List the camera paths that have a name, and the camera file formats."""

    def run(self) -> int:
        """Print two tables."""
        paths = [[name, text] for name, text in path_descriptions().items()]
        print_table("Camera paths", ["name", "what the camera does"], paths)
        formats = [[name, entry.description] for name, entry in CAMERA_FORMATS.items()]
        print_table("Camera files", ["format", "what it is"], formats)
        return 0


@dataclass(frozen=True, kw_only=True)
class PreviewPath:
    """Draw a camera path from above and from the side."""

    camera: Positional[str]
    """A camera path by name, a keyframe JSON or any camera file."""

    scene: Path | None = None
    """A scene to draw the path in; its size then sets the path's size. Default: a camera 55
    degrees wide, one unit away from what it looks at."""

    num_frames: int = 49
    """Frames of a named path."""

    amplitude: float = 1.0
    """Multiplies the distances and angles of a named path."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("path.png")
    """Picture to write."""

    def run(self) -> int:
        """Make the path and draw it."""
        from ..camera_paths.preview import draw_path
        from ..scene_files.formats import import_scene

        if self.output.suffix.lower() not in _PICTURE_SUFFIXES:
            raise OutputError(
                f"{self.output} ends in {self.output.suffix!r}; expected one of "
                f"{', '.join(_PICTURE_SUFFIXES)}."
            )
        scene = None if self.scene is None else import_scene(self.scene)
        settings = PathSettings(amplitude=self.amplitude)
        path = path_from(self.camera, scene or _unit_scene(), self.num_frames, settings=settings)
        with replacing(self.output) as temporary:
            draw_path(path, scene, title=self.camera).save(temporary)
        LOGGER.info("Wrote %s.", self.output)
        return 0


@dataclass(frozen=True, kw_only=True)
class ConvertPath:
    """Convert cameras from one program's file to another's."""

    source: Positional[Path]
    """Camera file, or COLMAP folder, to read."""

    output: Positional[Path]
    """File or folder to write."""

    to: str | None = None
    """Format to write (see `paths list`). Default: told by the ending of the output."""

    source_format: str | None = None
    """Format to read. Default: told by name and contents."""

    size_hw: tuple[int, int] | None = None
    """Height and width of the images, for files that do not say (TUM, RealEstate10K, load3d)."""

    fov_deg: float | None = None
    """Horizontal field of view in degrees, for files without intrinsics (TUM)."""

    fps: float | None = None
    """Frame rate, for formats with time stamps."""

    def run(self) -> int:
        """Read, convert, write."""
        intrinsics = None
        if self.fov_deg is not None:
            if self.size_hw is None:
                raise ValueError(
                    "--fov-deg needs --size-hw HEIGHT WIDTH: intrinsics are in pixels."
                )
            focal_px = focal_from_fov(math.radians(self.fov_deg), self.size_hw[1])
            intrinsics = intrinsics_from_focal(torch.tensor(focal_px), *self.size_hw)
        cameras = load_cameras(
            self.source,
            file_format=self.source_format,
            size_hw=self.size_hw,
            intrinsics=intrinsics,
        )
        save_cameras(self.output, cameras, file_format=self.to, fps=self.fps)
        LOGGER.info("Wrote %d cameras to %s.", cameras.num_frames, self.output)
        return 0


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Camera paths: list the names, preview one as a picture, convert camera files."""

    command: OmitSubcommandPrefixes[
        Annotated[ListPaths, subcommand("list")]
        | Annotated[PreviewPath, subcommand("preview")]
        | Annotated[ConvertPath, subcommand("convert")]
    ]

    def run(self) -> int:
        """Run the chosen command."""
        return self.command.run()


def _unit_scene() -> Scene4D:
    """A point one unit away from an input view at the origin, 4:3, 55 degrees wide."""
    height, width = 480, 640
    focal_px = torch.tensor([focal_from_fov(math.radians(55), width)])
    camera = Cameras(
        world_to_camera=torch.eye(4)[None],
        intrinsics=intrinsics_from_focal(focal_px, height, width),
        height=height,
        width=width,
    )
    point = PointTracks(
        positions=torch.tensor([[[0.0, 0.0, 1.0]]]),
        colors=torch.zeros(1, 3),
        visibility=torch.ones(1, 1, dtype=torch.bool),
    )
    return Scene4D(points=point, cameras=camera, fps=24.0)
