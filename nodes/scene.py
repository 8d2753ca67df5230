"""Nodes that load, save and export scenes, and make them from the host's geometry."""

import math
import uuid
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import Types, io, ui

from ..more4d_backend.depth.videos import lift_video
from ..more4d_backend.scene import Scene4D
from ..more4d_backend.scene_files import save_scene
from ..more4d_backend.scene_files.formats import (
    SCENE_FORMATS,
    SCENE_SUFFIXES,
    export_scene,
    import_scene,
)
from ..more4d_backend.scene_files.points import save_gaussian_ply, save_ply
from .convert import DA3Geometry, MoGeGeometry, host_geometry, host_splat
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
from .memory import report_progress
from .types import SceneType

_CATEGORY = "More4D/scene"
_ALL_FRAMES = -1
_EXPORT_FORMATS = ("ply", "gaussians", "usd", "tapvid3d")
_POINTS, _GAUSSIANS = "points", "gaussians"


class More4DSceneLoad(io.ComfyNode):
    """File to scene."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DSceneLoad",
            display_name="Load 4D Scene (More4D)",
            category=_CATEGORY,
            description="Read a scene: ours (.safetensors), tracks of TAPVid-3D (.npz) or the "
            "points of one PLY.",
            search_aliases=["open scene", "import point cloud", "tapvid", "load 4d"],
            inputs=[
                io.Combo.Input(
                    "file", options=listed_files(SCENE_SUFFIXES),
                    tooltip="In the input folder, or (marked [output]) in output/more4d.",
                ),
            ],
            outputs=[SceneType.Output(display_name="scene")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return refusal(file_at, file)

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None) -> Any:
        return fingerprint(file)

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(import_scene(file_at(file)))


class More4DSceneSave(io.ComfyNode):
    """Scene to file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DSceneSave",
            display_name="Save 4D Scene (More4D)",
            category=_CATEGORY,
            description="Write a whole scene to the output folder, as one .safetensors file that "
            "Load 4D Scene and the command line read.",
            search_aliases=["store scene", "save 4d", "save point cloud video"],
            is_output_node=True,
            inputs=[
                SceneType.Input("scene", tooltip="The scene to write."),
                prefix_input("more4d/scene"),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="Name in the output folder.")],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        return refusal(check_prefix, filename_prefix)

    @classmethod
    def execute(cls, scene, filename_prefix) -> io.NodeOutput:
        file = new_output(filename_prefix, ".safetensors")
        save_scene(file, scene)
        return _written(file)


class More4DSceneExport(io.ComfyNode):
    """Scene to another program's file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DSceneExport",
            display_name="Export 4D Scene (More4D)",
            category=_CATEGORY,
            description="Write a scene for other programs: PLY points, Gaussian PLY for splat "
            "viewers, animated USD, or TAPVid-3D tracks (.npz).",
            search_aliases=["export ply", "gaussian splat", "usd", "blender", "supersplat"],
            is_output_node=True,
            inputs=[
                SceneType.Input("scene", tooltip="The scene to write."),
                io.Combo.Input("format", options=list(_EXPORT_FORMATS),
                               tooltip="ply and gaussians: a folder with one file per frame. usd: "
                               "moving points and camera (needs usd-core). tapvid3d: tracks."),
                prefix_input("more4d/export"),
                _frame_input(_ALL_FRAMES, "-1 writes all"),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="Name in the output folder.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        return refusal(check_prefix, filename_prefix)

    @classmethod
    def execute(cls, scene, format, filename_prefix, frame) -> io.NodeOutput:
        if frame != _ALL_FRAMES:
            scene = scene.frames([_checked(frame, scene)])
        suffixes = SCENE_FORMATS[format].suffixes
        # A format that holds one frame to a file has a folder for several.
        suffix = suffixes[0] if scene.num_frames == 1 else suffixes[-1 if "" in suffixes else 0]
        file = new_output(filename_prefix, suffix)
        export_scene(file, scene, format, progress=report_progress())
        return _written(file)


class More4DSceneToSplat(io.ComfyNode):
    """One frame to the host's splats."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DSceneToSplat",
            display_name="4D Scene to Splat (More4D)",
            category=_CATEGORY,
            description="One frame of a scene as ComfyUI's own Gaussian splats: Render Splat, "
            "Transform Splat, Splat to File and the like.",
            search_aliases=["gaussian splat", "3dgs", "splat"],
            inputs=[
                SceneType.Input("scene", tooltip="The scene."),
                _frame_input(0, "0 is the first"),
            ],
            outputs=[io.Splat.Output(display_name="splat")],
        )

    @classmethod
    def execute(cls, scene, frame) -> io.NodeOutput:
        return io.NodeOutput(host_splat(scene, _checked(frame, scene)))


class More4DSceneToFile3D(io.ComfyNode):
    """One frame to a PLY of the host."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DSceneToFile3D",
            display_name="4D Scene to 3D File (More4D)",
            category=_CATEGORY,
            description="One frame of a scene as a PLY for ComfyUI's own 3D nodes: Preview "
            "Gaussian Splat, Preview Point Cloud, Save.",
            search_aliases=["ply", "preview 3d", "point cloud", "file 3d"],
            inputs=[
                SceneType.Input("scene", tooltip="The scene."),
                _frame_input(0, "0 is the first"),
                io.Combo.Input("content", options=[_POINTS, _GAUSSIANS],
                               tooltip="points: for Preview Point Cloud. gaussians: for Preview "
                               "Gaussian Splat."),
            ],
            outputs=[io.File3DPLY.Output(display_name="model_3d")],
        )  # fmt: skip

    @classmethod
    def execute(cls, scene, frame, content) -> io.NodeOutput:
        write = save_ply if content == _POINTS else save_gaussian_ply
        file = Path(folder_paths.get_temp_directory()) / f"more4d_{uuid.uuid4().hex}.ply"
        write(file, scene, frame=_checked(frame, scene))
        return io.NodeOutput(Types.File3D(str(file)))


class More4DSceneFromGeometry(io.ComfyNode):
    """Geometry of a video to a scene."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DSceneFromGeometry",
            display_name="Scene From Geometry (More4D)",
            category=_CATEGORY,
            description="A video to a 4D scene, fast: the geometry that ComfyUI's own nodes see in "
            "each frame, as one point per pixel. Depth Anything 3 in multiview mode also knows how "
            "the camera moved; otherwise it is taken to stand still.",
            search_aliases=["video to 4d", "da3 video", "moge video", "point map video"],
            inputs=[
                io.MultiType.Input("geometry", types=[DA3Geometry, MoGeGeometry],
                                   tooltip="Of all frames: run the geometry node on the video."),
                io.Float.Input("fps", default=8.0, min=0.1, max=240.0, step=0.01,
                               tooltip="Frames per second of the video."),
                io.Float.Input("fov_deg", default=0.0, min=0.0, max=170.0, step=0.1,
                               tooltip="Horizontal field of view in degrees. 0 takes the model's."),
                io.Float.Input("max_depth", default=0.0, min=0.0, max=1e6, step=0.01,
                               advanced=True,
                               tooltip="Leave out points farther than this, in world units. 0 "
                               "keeps all."),
                io.Boolean.Input("drop_edges", default=True,
                                 tooltip="Leave out the pixels on both sides of depth edges."),
            ],
            outputs=[SceneType.Output(display_name="scene")],
        )  # fmt: skip

    @classmethod
    def execute(cls, geometry, fps, fov_deg, max_depth, drop_edges) -> io.NodeOutput:
        video = host_geometry(geometry).video(math.radians(fov_deg) or None)
        scene = lift_video(
            video,
            fps=fps,
            max_depth=max_depth or None,
            drop_edges=drop_edges,
            progress=report_progress(),
        )
        return io.NodeOutput(scene)


def _frame_input(default: int, extra: str) -> Any:
    return io.Int.Input(
        "frame", default=default, min=default, max=100_000, tooltip=f"Number of the frame; {extra}."
    )


def _checked(frame: int, scene: Scene4D) -> int:
    if frame >= scene.num_frames:
        raise ValueError(
            f"frame is {frame} and the scene has {scene.num_frames}; expected 0 to "
            f"{scene.num_frames - 1}."
        )
    return frame


def _written(file: Path) -> io.NodeOutput:
    return io.NodeOutput(shown(file), ui=ui.PreviewText(f"Saved {shown(file)}"))


NODES: list[type[io.ComfyNode]] = [
    More4DSceneLoad,
    More4DSceneSave,
    More4DSceneExport,
    More4DSceneToSplat,
    More4DSceneToFile3D,
    More4DSceneFromGeometry,
]
