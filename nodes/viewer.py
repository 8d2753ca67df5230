"""The node that shows a scene in the page, and the files that the page draws."""

import uuid
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..more4d_backend.scene import Cameras, Scene4D
from ..more4d_backend.scene_files.view_file import (
    SUFFIX,
    ViewSettings,
    forget_oldest_views,
    write_view,
)
from .memory import report_progress
from .types import CameraPathType, SceneType

_FIRST = ViewSettings(stride=2, limit_bytes=2**27)
_FULL = ViewSettings(stride=1, limit_bytes=2**29)
_OUR_FOLDER = "more4d"
_KEPT_BYTES = 2**32

Place = dict[str, str]

_shown: dict[str, dict[str, Place]] = {}
"""The files that a node shows, by its id."""

_times_lost: dict[str, int] = {}
"""How often they were removed meanwhile."""


class More4DSceneViewer(io.ComfyNode):
    """Scene to the page."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DSceneViewer",
            display_name="View 4D Scene (More4D)",
            category="More4D/scene",
            description="Play and scrub a 4D scene in the node: orbit, fly, motion trails, holes, "
            "and what the camera of a path sees, pixel for pixel as Render 4D Scene (nearest).",
            search_aliases=["3d viewer", "4d viewer", "preview scene", "point cloud", "play"],
            is_output_node=True,
            inputs=[
                SceneType.Input("scene", tooltip="What to show."),
                CameraPathType.Input(
                    "camera_path",
                    optional=True,
                    tooltip="Is drawn in the scene, and can be looked through. Else the cameras "
                    "that the scene was seen from.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        return times_lost(cls.hidden.unique_id)

    @classmethod
    def execute(cls, scene, camera_path=None) -> io.NodeOutput:
        places = view_files(scene, camera_path)
        if getattr(cls, "hidden", None) is not None:  # None: called by a script
            _shown[cls.hidden.unique_id] = places
        return io.NodeOutput(ui={"more4d_view": [places]})


def view_files(scene: Scene4D, camera_path: Cameras | None = None) -> dict[str, Place]:
    """Write what the page draws to the host's temp folder, and return where: half and full.

    Half has every second pixel each way; a scene too large for a page has fewer in both.
    """
    folder = Path(folder_paths.get_temp_directory()) / _OUR_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    forget_oldest_views(folder, _KEPT_BYTES)
    name = uuid.uuid4().hex
    places = {}
    for which, settings in (("half", _FIRST), ("full", _FULL)):
        file = folder / f"{name}_{which}{SUFFIX}"
        write_view(file, scene, camera_path, settings, progress=report_progress())
        places[which] = {"filename": file.name, "subfolder": _OUR_FOLDER, "type": "temp"}
    return places


def are_there(places: dict[str, Place]) -> bool:
    """Tell whether no file of these was removed."""
    root = Path(folder_paths.get_temp_directory())
    return all((root / p["subfolder"] / p["filename"]).is_file() for p in places.values())


def times_lost(node_id: str) -> int:
    """Return a number that changes when files that a node shows are gone.

    As its fingerprint, it has the host run the node again. Else the host would give the page what
    it remembers of the last run, and nothing would bring the scene back. (Not for nodes with
    outputs: all that comes after them would run again, too.)
    """
    places = _shown.get(node_id)
    if places is not None and not are_there(places):
        del _shown[node_id]
        _times_lost[node_id] = _times_lost.get(node_id, 0) + 1
    return _times_lost.get(node_id, 0)


NODES: list[type[io.ComfyNode]] = [More4DSceneViewer]
