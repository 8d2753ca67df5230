"""The node that shows a scene in the page, and the files that the page draws."""

import uuid
from pathlib import Path

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
        )

    @classmethod
    def execute(cls, scene, camera_path=None) -> io.NodeOutput:
        return io.NodeOutput(ui={"more4d_view": [view_files(scene, camera_path)]})


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


NODES: list[type[io.ComfyNode]] = [More4DSceneViewer]
