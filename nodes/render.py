"""The node that renders a scene along a camera path."""

from typing import get_args

import comfy.model_management
from comfy_api.latest import io

from ..more4d_backend.depth.depth_pictures import depth_picture
from ..more4d_backend.rendering import (
    RenderMode,
    RenderOutput,
    RenderSettings,
    bytes_per_frame,
    check_renderable,
    fill_pinholes,
    hole_mask,
    render,
)
from ..more4d_backend.scene import Cameras, Scene4D
from .convert import grey_image
from .memory import report_progress
from .types import CameraPathType, RenderType, SceneType

_AS_PICTURE, _AS_VALUES = "picture", "camera z"


class More4DRender(io.ComfyNode):
    """Scene and path to video, holes and depth."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DRender",
            display_name="Render 4D Scene (More4D)",
            category="More4D/render",
            description="What a camera sees of a 4D scene, frame by frame, and what was never "
            "seen: the holes that 4D-ViSM, or any video inpainting, is to fill.",
            search_aliases=["point cloud render", "novel view", "splat", "hole mask", "reshoot"],
            inputs=_inputs(),
            outputs=[
                io.Image.Output(display_name="image", tooltip="Black where nothing was seen."),
                io.Mask.Output(display_name="holes", tooltip="1 (white) = to be filled."),
                io.Image.Output(display_name="depth", tooltip="As depth_as says."),
                RenderType.Output(display_name="render", tooltip="Colour, camera z, coverage."),
                io.Float.Output(display_name="fps", tooltip="The scene's, for Create Video."),
            ],
        )

    @classmethod
    def execute(cls, scene, camera_path, mode, width, height, grow_px, feather_px, min_area_px,
                draw_unseen, depth_as) -> io.NodeOutput:  # fmt: skip
        path = camera_path.resized(height or camera_path.height, width or camera_path.width)
        device = comfy.model_management.get_torch_device()
        settings = RenderSettings(mode=mode, draw_unseen=draw_unseen, device=device)
        check_renderable(scene, path, settings)
        _make_room(scene, path, settings)
        view = render(scene, path, settings, progress=report_progress())
        if min_area_px:
            view = fill_pinholes(view, min_area_px)
        holes = hole_mask(
            view.alpha, grow_px=grow_px, feather_px=feather_px, min_area_px=min_area_px
        )
        keep = comfy.model_management.intermediate_device()
        picture = depth_picture(view.depth).to(keep) if depth_as == _AS_PICTURE else None
        view = RenderOutput(
            rgb=view.rgb.to(keep), depth=view.depth.to(keep), alpha=view.alpha.to(keep)
        )
        depth = grey_image(view.depth if picture is None else picture)
        return io.NodeOutput(view.rgb, holes.to(keep), depth, view, scene.fps)


def _inputs() -> list[io.Input]:
    return [
        SceneType.Input("scene", tooltip="As many frames as the path, or one."),
        CameraPathType.Input("camera_path", tooltip="One camera per frame."),
        io.Combo.Input(
            "mode", options=list(get_args(RenderMode)), default="splat",
            tooltip="nearest: one pixel a point. splat: each point covers its part of the surface. "
            "gaussian: small Gaussians, blended (gsplat where it is installed with CUDA).",
        ),
        io.Int.Input("width", default=0, min=0, max=8192, step=8,
                     tooltip="Pixels; 0: the path's. Another aspect stretches the picture."),
        io.Int.Input("height", default=0, min=0, max=8192, step=8,
                     tooltip="Pixels; 0: the path's. Another aspect stretches the picture."),
        io.Int.Input("grow_px", default=0, min=0, max=256,
                     tooltip="Fill this far around each hole too, in pixels: a render is least "
                     "reliable beside its holes."),
        io.Int.Input("feather_px", default=0, min=0, max=256, advanced=True,
                     tooltip="Fade the mask out over this many pixels around the holes."),
        io.Int.Input("min_area_px", default=0, min=0, max=65536,
                     tooltip="Close holes of fewer pixels with what is around them."),
        io.Boolean.Input("draw_unseen", default=False, advanced=True,
                         tooltip="Draw tracked points also in frames where they are hidden; their "
                         "positions are guesses there."),
        io.Combo.Input("depth_as", options=[_AS_PICTURE, _AS_VALUES], advanced=True,
                       tooltip="picture: white is near, even in disparity, one scale for the whole "
                       "video. camera z: world units, 0 where nothing was seen."),
    ]  # fmt: skip


def _make_room(scene: Scene4D, path: Cameras, settings: RenderSettings) -> None:
    """Have the host put models away where the renderer needs their memory."""
    if comfy.model_management.is_device_cpu(settings.device):
        return  # few frames at a time, whatever is free
    needed = path.num_frames * bytes_per_frame(scene, path, settings.mode)
    comfy.model_management.free_memory(needed, settings.device)


NODES: list[type[io.ComfyNode]] = [More4DRender]
