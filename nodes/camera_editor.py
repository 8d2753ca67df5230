"""The camera editor: a path drawn in the page, kept as JSON, run without it."""

import asyncio
import weakref
from collections import deque
from dataclasses import dataclass, fields, replace

import torch
from aiohttp import web
from comfy_api.latest import io
from server import PromptServer
from torch import Tensor

from ..more4d_backend.camera_paths import (
    PathSettings,
    make_path,
    mean_point,
    path_descriptions,
    scene_scale,
)
from ..more4d_backend.camera_paths.keyframes import keyframes_from_cameras, keyframes_to_json
from ..more4d_backend.camera_paths.reference_paths import REFERENCE_PATHS
from ..more4d_backend.scene import Cameras, Scene4D
from .camera import CATEGORY, frames_input, keyframe_path, read_keyframes
from .folders import refusal
from .types import CameraPathType, SceneType
from .viewer import Place, are_there, view_files

PRESETS_ROUTE = "/more4d/camera_presets"
_FRAMES = 49

_NEW_DOCUMENT = """{
  "format": "more4d-camera-keyframes",
  "version": 1,
  "scene_scale": 1,
  "keyframes": [
    {"time": 0, "position": [0, 0, 0], "quaternion_wxyz": [1, 0, 0, 0], "zoom": 1, "ease": "in-out"}
  ]
}
"""


class More4DCameraEditor(io.ComfyNode):
    """A path drawn in the scene."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DCameraEditor",
            display_name="Camera Editor (More4D)",
            category=CATEGORY,
            description="Draw a camera path in the 4D scene: look around, add keyframes from the "
            "view, play. Run it once to see the scene. Without a page it does the same from its "
            "JSON.",
            search_aliases=["camera path", "keyframe editor", "timeline", "draw trajectory"],
            is_output_node=True,
            inputs=[
                SceneType.Input("scene", tooltip="What to move through; gives input view, scale "
                                "and number of frames."),
                io.String.Input(
                    "keyframes", multiline=True, default=_NEW_DOCUMENT, socketless=True,
                    tooltip="The path as JSON, as Camera Keyframes takes it. The editor writes it; "
                    "paste it from elsewhere, too. scene_scale is the median depth of the scene "
                    "where the positions were set.",
                ),
                frames_input(),
            ],
            outputs=[CameraPathType.Output(display_name="camera_path")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, keyframes: str | None = None) -> bool | str:
        return refusal(read_keyframes, keyframes)

    @classmethod
    def execute(cls, scene, keyframes, num_frames) -> io.NodeOutput:
        path = keyframe_path(scene, keyframes, num_frames)
        scale = scene_scale(scene)
        shown = {
            "num_frames": path.num_frames,
            "mean_point": [x / scale for x in mean_point(scene)],
        }
        ui = {"more4d_view": [_files_of(scene)], "more4d_editor": [shown]}
        return io.NodeOutput(path, ui=ui)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """A scene whose files are there."""

    tensors: tuple[weakref.ref[Tensor], ...]
    """All it consists of."""

    fps: float
    """Of the scene."""

    places: dict[str, Place]
    """As `view_files` says."""

    def shows(self, scene: Scene4D) -> bool:
        found = [tensor() for tensor in self.tensors]
        return (
            self.fps == scene.fps
            and len(found) == len(tensors := _tensors(scene))
            and all(a is b for a, b in zip(found, tensors, strict=True))
            and are_there(self.places)
        )


_written: deque[_Written] = deque(maxlen=16)


def _files_of(scene: Scene4D) -> dict[str, Place]:
    """Write a scene for the page once: edits of the path run the node, and change none of it."""
    for written in _written:
        if written.shows(scene):
            return written.places
    tensors = tuple(weakref.ref(tensor) for tensor in _tensors(scene))
    places = view_files(scene)
    _written.append(_Written(tensors=tensors, fps=scene.fps, places=places))
    return places


def _tensors(scene: Scene4D) -> list[Tensor]:
    values = [getattr(p, f.name) for p in (scene.points, scene.cameras) for f in fields(p)]
    return [value for value in values if isinstance(value, Tensor)]


def preset_document(name: str, amplitude: float, mean: tuple[float, float, float]) -> str:
    """Return the keyframes of a movement as JSON text, in median depths of any scene.

    `mean` is the scene's mean point in the same unit and in the axes of the input view; MoRe4D's
    own movements go around it.

    Raises:
        CameraPathError: unknown name, or a number that the path cannot follow.
    """
    unit = Cameras(
        world_to_camera=torch.eye(4, dtype=torch.float64)[None],
        intrinsics=torch.eye(3, dtype=torch.float64)[None],
        height=1,
        width=1,
    )
    pivot = mean if name in REFERENCE_PATHS else None
    settings = PathSettings(amplitude=amplitude, pivot_distance=1.0, pivot=pivot)
    path = make_path(name, unit, _FRAMES, settings=settings)
    found = keyframes_from_cameras(path, unit)
    return keyframes_to_json(replace(found, scene_scale=1.0))


async def _answer_list(_: web.Request) -> web.Response:
    return web.json_response(path_descriptions())


async def _answer_preset(request: web.Request) -> web.Response:
    asked = request.rel_url.query
    try:
        amplitude = float(asked.get("amplitude", "1"))
        x, y, z = (float(v) for v in asked.get("mean_point", "0,0,1").split(","))
        name = request.match_info["name"]
        text = await asyncio.to_thread(preset_document, name, amplitude, (x, y, z))
    except ValueError as e:  # CameraPathError is one, too
        return web.json_response({"error": str(e)}, status=400)
    return web.Response(text=text, content_type="application/json")


def add_routes() -> None:
    """Serve the presets to the page; where there is no server, no page asks."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.get(PRESETS_ROUTE)(_answer_list)
        server.routes.get(f"{PRESETS_ROUTE}/{{name}}")(_answer_preset)


add_routes()

NODES: list[type[io.ComfyNode]] = [More4DCameraEditor]
