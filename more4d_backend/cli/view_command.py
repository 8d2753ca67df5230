"""`view`: any scene in the browser, or as a recording."""

import logging
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from ..viewing import ViewSettings, check_recording_name, record_scene, view_scene

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class View:
    """View a scene in the browser: play, fly through, filter by confidence, see the cameras.

    Needs viser: pip install viser. Ctrl+C ends it.
    """

    source: Positional[Path]
    """Scene to view: ours (.safetensors), a PLY, or a TAPVid-3D .npz."""

    record: Path | None = None
    """Write a recording (.viser) instead, which viser's player shows without Python."""

    max_points: int = 100_000
    """Points of a frame; where a scene has more, they are thinned evenly."""

    hide_percent: float = 0.0
    """Share of all points to hide, the least confident first."""

    point_size: float | None = None
    """In units of the scene. Default: a two hundredth of the distance to it."""

    camera_images: bool = True
    """Show the pictures on the cameras."""

    host: str = "127.0.0.1"
    """Address to serve at; 0.0.0.0 lets other machines in."""

    port: int = 8080
    """The next free one is taken if it is in use."""

    def run(self) -> int:
        """Serve or record."""
        from ..scene_files.formats import import_scene

        if self.record is not None:
            check_recording_name(self.record)
        settings = ViewSettings(
            max_points=self.max_points,
            hide_percent=self.hide_percent,
            point_size=self.point_size,
            camera_images=self.camera_images,
            host=self.host,
            port=self.port,
        )
        scene = import_scene(self.source)
        if self.record is not None:
            record_scene(self.record, scene, settings)
            LOGGER.info("Wrote %s: %d frames.", self.record, scene.num_frames)
            return 0
        view_scene(scene, settings, ready=lambda url: LOGGER.info("Open %s", url))
        return 0
