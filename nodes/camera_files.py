"""Nodes that read and write camera files."""

from typing import Any

from comfy_api.latest import io, ui

from ..more4d_backend.camera_files import CAMERA_FORMATS, save_cameras
from ..more4d_backend.camera_paths.keyframes import keyframes_from_cameras, save_keyframes
from ..more4d_backend.camera_paths.sources import path_from
from .camera import CATEGORY, frames_input, scene_input
from .folders import (
    check_prefix,
    file_at,
    fingerprint,
    listed_files,
    new_output,
    prefix_input,
    refusal,
    shown,
)
from .types import CameraPathType

_FILE_SUFFIXES = (".json", ".npz", ".txt", ".tum")
_SUFFIX_OF = {
    "keyframes": ".json",
    "transforms": ".json",
    "npz": ".npz",
    "colmap": "",
    "realestate10k": ".txt",
    "tum": ".tum",
    "load3d": ".json",
}
"""Of every format; the empty one is a folder."""


class More4DCameraLoad(io.ComfyNode):
    """A path from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DCameraLoad",
            display_name="Load Camera Path (More4D)",
            category=CATEGORY,
            description="Read cameras: keyframes, transforms.json (nerfstudio, Blender), "
            "RealEstate10K or CameraCtrl text, TUM, LOAD3D JSON, npz.",
            search_aliases=["import camera", "colmap", "nerfstudio", "camera trajectory file"],
            inputs=[
                scene_input(),
                io.Combo.Input(
                    "file", options=listed_files(_FILE_SUFFIXES),
                    tooltip="In the input folder, or (marked [output]) in output/more4d.",
                ),
                frames_input("the file's own for a scene of one frame"),
                io.Boolean.Input(
                    "in_scene_world", default=False,
                    tooltip="On: the file's world is the scene's. Off: the path is moved, unbent, "
                    "to start at the input view.",
                ),
            ],
            outputs=[CameraPathType.Output(display_name="camera_path")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return refusal(file_at, file)

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **_: Any) -> Any:
        return fingerprint(file)

    @classmethod
    def execute(cls, scene, file, num_frames, in_scene_world) -> io.NodeOutput:
        path = path_from(
            str(file_at(file)), scene, num_frames or None, in_scene_world=in_scene_world
        )
        return io.NodeOutput(path)


class More4DCameraSave(io.ComfyNode):
    """A path to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DCameraSave",
            display_name="Save Camera Path (More4D)",
            category=CATEGORY,
            description="Write a camera path to the output folder, for another program or for "
            "Load Camera Path.",
            search_aliases=["export camera", "colmap", "nerfstudio", "blender camera"],
            is_output_node=True,
            inputs=[
                CameraPathType.Input("camera_path", tooltip="The path to write."),
                prefix_input("more4d/camera"),
                io.Combo.Input("format", options=["keyframes", *CAMERA_FORMATS],
                               tooltip="keyframes: few poses, to be edited. transforms: nerfstudio "
                               "and Blender. npz: everything, exactly. colmap is a folder."),
                io.Float.Input("fps", default=8.0, min=0.1, max=240.0, step=0.01,
                               advanced=True,
                               tooltip="Frames per second, for formats with time stamps."),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="Name in the output folder.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        return refusal(check_prefix, filename_prefix)

    @classmethod
    def execute(cls, camera_path, filename_prefix, format, fps) -> io.NodeOutput:
        file = new_output(filename_prefix, _SUFFIX_OF[format])
        if format == "keyframes":
            save_keyframes(file, keyframes_from_cameras(camera_path))
        else:
            save_cameras(file, camera_path, file_format=format, fps=fps)
        return io.NodeOutput(shown(file), ui=ui.PreviewText(f"Saved {shown(file)}"))


NODES: list[type[io.ComfyNode]] = [More4DCameraLoad, More4DCameraSave]
