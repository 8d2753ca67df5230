"""Nodes that make, join and show camera paths."""

from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..more4d_backend.camera_files.json_formats import cameras_from_load3d
from ..more4d_backend.camera_paths import (
    PathSettings,
    path_descriptions,
    scene_scale,
)
from ..more4d_backend.camera_paths.edits import (
    EASES,
    concatenate_paths,
    loop_path,
    retime_path,
    reverse_path,
)
from ..more4d_backend.camera_paths.keyframes import (
    CameraKeyframes,
    cameras_from_keyframes,
    keyframes_from_json,
)
from ..more4d_backend.camera_paths.preview import draw_path
from ..more4d_backend.camera_paths.sources import path_from
from ..more4d_backend.camera_paths.wan_embedding import wan_camera_embedding
from ..more4d_backend.scene import Cameras, Scene4D
from .folders import refusal
from .types import CameraPathType, SceneType

CATEGORY = "More4D/camera"
_FRAMES_OF_A_PICTURE = 49
_AUTO_EASE = "auto"

_EXAMPLE_KEYFRAMES = """{
  "format": "more4d-camera-keyframes",
  "version": 1,
  "scene_scale": 1.0,
  "keyframes": [
    {"time": 0, "position": [0, 0, 0], "quaternion_wxyz": [1, 0, 0, 0], "ease": "in-out"},
    {"time": 1, "position": [0.2, 0, 0.1], "quaternion_wxyz": [1, 0, 0, 0]}
  ]
}"""


class More4DCameraPreset(io.ComfyNode):
    """A path by name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DCameraPreset",
            display_name="Camera Preset (More4D)",
            category=CATEGORY,
            description="A camera movement by name. It starts at the input view, and its "
            "distances follow the scene. The help page says what each one does.",
            search_aliases=["camera path", "orbit", "dolly", "truck", "crane", "camera move"],
            inputs=[
                scene_input(),
                io.Combo.Input("preset", options=list(path_descriptions()), default="orbit-left",
                               tooltip="The movement. static, surrounding and names with _ "
                               "are MoRe4D's own."),
                frames_input(),
                io.Float.Input("amplitude", default=1.0, min=-10.0, max=10.0, step=0.05,
                               tooltip="Factor on distances and angles; negative mirrors them."),
                io.Combo.Input("ease", options=[_AUTO_EASE, *EASES], default=_AUTO_EASE,
                               tooltip="auto: starts and ends slowly; MoRe4D's own go evenly. "
                               "linear: even; in: starts slowly; out: ends slowly."),
                io.Boolean.Input("loop", default=False,
                                 tooltip="Come back, so that the video repeats without a jump."),
                io.Float.Input("angle_deg", default=0.0, min=-720.0, max=720.0, step=0.5,
                               advanced=True,
                               tooltip="Whole turn of an orbit, arc, crane or spiral, in degrees. "
                               "0 takes the preset's own."),
                io.Float.Input("pivot_distance", default=0.0, min=0.0, max=1e6, step=0.01,
                               advanced=True,
                               tooltip="Depth of the point to turn around, and unit of the "
                               "distances; world units. 0 takes the scene's median depth."),
                # Else pages draw it anew each time, and all that follows runs again.
                io.Int.Input("seed", default=0, min=0, max=2**31 - 1, advanced=True,
                             control_after_generate=False,
                             tooltip="Chooses the sway of handheld; no unit."),
            ],
            outputs=[CameraPathType.Output(display_name="camera_path")],
        )  # fmt: skip

    @classmethod
    def execute(cls, scene, preset, num_frames, amplitude, ease, loop, angle_deg, pivot_distance,
                seed) -> io.NodeOutput:  # fmt: skip
        settings = PathSettings(amplitude=amplitude, angle_deg=angle_deg or None,
                                ease=None if ease == _AUTO_EASE else ease,
                                pivot_distance=pivot_distance or None, loop=loop,
                                seed=seed)  # fmt: skip
        path = path_from(preset, scene, _frames(num_frames, scene), settings=settings)
        return io.NodeOutput(path)


class More4DCameraKeyframes(io.ComfyNode):
    """A path through keyframes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DCameraKeyframes",
            display_name="Camera Keyframes (More4D)",
            category=CATEGORY,
            description="A smooth path through a few camera poses, written as JSON. Works without "
            "a browser.",
            search_aliases=["camera path", "keyframe editor", "custom trajectory", "camera json"],
            inputs=[
                scene_input(),
                io.String.Input(
                    "keyframes", multiline=True, default=_EXAMPLE_KEYFRAMES,
                    tooltip="JSON: time 0-1, position in world units (x right, y down, z forward "
                    "from the input view; scene_scale 1 means: in median depths), unit "
                    "quaternion_wxyz, zoom (factor on the focal length), ease.",
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
        return io.NodeOutput(keyframe_path(scene, keyframes, num_frames))


class More4DCameraCombine(io.ComfyNode):
    """Paths joined, reversed, looped, retimed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DCameraCombine",
            display_name="Combine Camera Paths (More4D)",
            category=CATEGORY,
            description="Join paths end to end, then reverse, go there and back, and change the "
            "number of frames, in this order.",
            search_aliases=["concatenate camera", "reverse camera", "retime camera", "loop camera"],
            inputs=[
                CameraPathType.Input("first", tooltip="The path to begin with."),
                CameraPathType.Input(
                    "then", optional=True,
                    tooltip="Moved so that it starts where the first one ends. The frame at the "
                    "joint comes once: 25 and 25 frames make 49.",
                ),
                io.Boolean.Input("reverse", default=False, tooltip="Go the way backwards."),
                io.Boolean.Input("there_and_back", default=False,
                                 tooltip="Go the way and come back: 2 n - 2 frames."),
                io.Int.Input("num_frames", default=0, min=0, max=10_000,
                             tooltip="Go the same way in this many frames. 0 keeps the number."),
                io.Combo.Input("ease", options=list(EASES), default="linear",
                               tooltip="On top of the paths' own. in: starts slowly; out: ends "
                               "slowly."),
            ],
            outputs=[CameraPathType.Output(display_name="camera_path")],
        )  # fmt: skip

    @classmethod
    def execute(cls, first, reverse, there_and_back, num_frames, ease, then=None) -> io.NodeOutput:
        if then is not None and (then.height, then.width) != (first.height, first.width):
            raise ValueError(
                f"The path first is for pictures of {first.height}x{first.width} and then for "
                f"{then.height}x{then.width} (height x width). Connect the same scene to the nodes "
                "that make them."
            )
        path = first if then is None else concatenate_paths(first, then)
        path = reverse_path(path) if reverse else path
        path = loop_path(path) if there_and_back else path
        if num_frames or ease != "linear":
            path = retime_path(path, num_frames or path.num_frames, ease=ease)
        return io.NodeOutput(path)


class More4DCameraFromLoad3D(io.ComfyNode):
    """A path to a camera of ComfyUI's 3D nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DCameraFromLoad3D",
            display_name="Camera From Load3D (More4D)",
            category=CATEGORY,
            description="Move from the input view to a camera of ComfyUI's 3D nodes, and on to a "
            "second one. Set it while looking at the scene's own PLY or splat: only Preview Point "
            "Cloud rescales what it shows.",
            search_aliases=["camera_info", "load 3d camera", "viewport camera", "camera gizmo"],
            inputs=[
                scene_input(),
                io.Load3DCamera.Input("camera_info", tooltip="World units, y up, fov vertical in "
                                      "degrees, as the host's 3D nodes give it. Without fov: the "
                                      "picture's own."),
                io.Load3DCamera.Input("camera_info_end", optional=True,
                                      tooltip="Where to go on to from camera_info."),
                io.Boolean.Input("start_at_input_view", default=True,
                                 tooltip="Off: start at camera_info. With that camera alone, it "
                                 "stands still."),
                frames_input(),
                io.Combo.Input("ease", options=list(EASES), default="in-out",
                               tooltip="linear: even; in: starts slowly; out: ends slowly."),
            ],
            outputs=[CameraPathType.Output(display_name="camera_path")],
        )  # fmt: skip

    @classmethod
    def execute(cls, scene, camera_info, start_at_input_view, num_frames, ease,
                camera_info_end=None) -> io.NodeOutput:  # fmt: skip
        start, frames = _input_view(scene), _frames(num_frames, scene)
        infos = [info for info in (camera_info, camera_info_end) if info is not None]
        size_hw, own = (start.height, start.width), start.intrinsics[0]
        # Older hosts give no field of view: then the picture's own.
        stops = cameras_from_load3d(infos, size_hw, intrinsics=own)
        if start_at_input_view:
            stops = _joined(start, stops)
        if stops.num_frames == 1:
            return io.NodeOutput(stops.repeated(frames))
        return io.NodeOutput(retime_path(stops, frames, ease=ease))


class More4DCameraToWanEmbedding(io.ComfyNode):
    """A path as conditioning of Wan Fun-Camera."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DCameraToWanEmbedding",
            display_name="Camera Path to Wan Embedding (More4D)",
            category=CATEGORY,
            description="Turn any camera path into the camera_embedding of Wan Camera Image To "
            "Video, which otherwise knows nine movements.",
            search_aliases=["wan camera embedding", "fun camera", "cameractrl", "pluecker"],
            inputs=[
                CameraPathType.Input("camera_path", tooltip="4k + 1 frames, such as 49 or 81."),
                io.Int.Input("width", default=0, min=0, max=8192, step=16,
                             tooltip="Of the video, in pixels, a multiple of 16. 0: the path's."),
                io.Int.Input("height", default=0, min=0, max=8192, step=16,
                             tooltip="Of the video, in pixels, a multiple of 16. 0: the path's."),
                io.Float.Input(
                    "translation_scale", default=1.0, min=0.001, max=1e4, step=0.001,
                    tooltip="Factor on the distances. The model was trained on scenes without a "
                    "unit; 1 / the scene's median depth is a good start.",
                ),
            ],
            outputs=[
                io.WanCameraEmbedding.Output(display_name="camera_embedding"),
                io.Int.Output(display_name="width"),
                io.Int.Output(display_name="height"),
                io.Int.Output(display_name="length"),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, camera_path, width, height, translation_scale) -> io.NodeOutput:
        path = camera_path.resized(height or camera_path.height, width or camera_path.width)
        embedding = wan_camera_embedding(path, translation_scale=translation_scale)
        return io.NodeOutput(embedding, path.width, path.height, path.num_frames)


class More4DCameraPreview(io.ComfyNode):
    """A path as a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DCameraPreview",
            display_name="Preview Camera Path (More4D)",
            category=CATEGORY,
            description="Draw a camera path from above and from the side, in the scene if that is "
            "connected. Green is the start, orange the end.",
            search_aliases=["show camera", "draw trajectory", "visualize camera path"],
            is_output_node=True,
            inputs=[
                CameraPathType.Input("camera_path", tooltip="The path to draw."),
                SceneType.Input("scene", optional=True, tooltip="What it moves through."),
                io.Int.Input("width", default=1280, min=320, max=4096, step=16, advanced=True,
                             tooltip="Of the picture, in pixels."),
            ],
            outputs=[io.Image.Output(display_name="image")],
        )  # fmt: skip

    @classmethod
    def execute(cls, camera_path, width, scene=None) -> io.NodeOutput:
        picture = np.asarray(draw_path(camera_path, scene, width=width), dtype=np.float32)
        image = torch.from_numpy(picture / 255)[None]
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))


def scene_input() -> Any:
    """Return the input of the nodes whose path belongs to a scene."""
    return SceneType.Input("scene", tooltip="Gives the input view, the scale and the frame count.")


def frames_input(of_one: str = "49 for a scene of one frame") -> Any:
    """Return the input for the number of frames; `of_one` says what 0 means for a picture."""
    return io.Int.Input(
        "num_frames", default=0, min=0, max=10_000,
        tooltip=f"Frames of the path. 0: as many as the scene has; {of_one}.",
    )  # fmt: skip


def read_keyframes(text: str) -> CameraKeyframes:
    """Read the JSON text of a node; errors call it what it is there."""
    return keyframes_from_json(text, "The text of the keyframes")


def keyframe_path(scene: Scene4D, keyframes: str, num_frames: int) -> Cameras:
    """Return the path through the keyframes of a JSON text; 0 frames as `frames_input` says."""
    return cameras_from_keyframes(
        read_keyframes(keyframes),
        _input_view(scene),
        _frames(num_frames, scene),
        scene_scale=scene_scale(scene),
    )


def _frames(num_frames: int, scene: Scene4D) -> int:
    if num_frames:
        return num_frames
    return scene.num_frames if scene.num_frames > 1 else _FRAMES_OF_A_PICTURE


def _input_view(scene: Scene4D) -> Cameras:
    return scene.cameras.frames(slice(0, 1))


def _joined(start: Cameras, stops: Cameras) -> Cameras:
    return Cameras(
        world_to_camera=torch.cat([start.world_to_camera, stops.world_to_camera]),
        intrinsics=torch.cat([start.intrinsics, stops.intrinsics]),
        height=start.height,
        width=start.width,
    )


NODES: list[type[io.ComfyNode]] = [
    More4DCameraPreset,
    More4DCameraKeyframes,
    More4DCameraCombine,
    More4DCameraFromLoad3D,
    More4DCameraToWanEmbedding,
    More4DCameraPreview,
]
