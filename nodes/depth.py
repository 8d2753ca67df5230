"""Nodes that lift a picture to points: a scene of one frame, from any source of depth."""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..more4d_backend.depth.depth_pictures import (
    DepthEncoding,
    depth_from_picture,
    depth_picture,
)
from ..more4d_backend.depth.lifting import check_same_size
from ..more4d_backend.depth.provider import DepthPrediction, lift_prediction
from ..more4d_backend.depth.tiny_depth import TinyDepth
from ..more4d_backend.depth.unidepth import INSTALL, UniDepth
from .convert import DA3Geometry, MoGeGeometry, grey_image, host_geometry, one_picture
from .memory import HostNetwork
from .types import SceneType

_CATEGORY = "More4D/depth"
_CACHE = "Hugging Face cache"
_BATCH_TOOLTIP = "Which picture of a batch; 0 is the first."


class More4DDepthFromMoGe(io.ComfyNode):
    """MoGe geometry to a scene."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DDepthFromMoGe",
            display_name="Lift MoGe Geometry (More4D)",
            category=_CATEGORY,
            description="Make the points of one picture from what ComfyUI's own MoGe nodes say of "
            "it: depth in metres, and the camera.",
            search_aliases=["moge to scene", "lift depth", "point map", "depth to points"],
            inputs=[
                MoGeGeometry.Input("moge_geometry", tooltip="From Run MoGe Inference."),
                io.Int.Input("batch_index", default=0, min=0, max=4096, tooltip=_BATCH_TOOLTIP),
                *_lifting_inputs("0 takes MoGe's own."),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, moge_geometry, batch_index, fov_deg, max_depth, drop_edges) -> io.NodeOutput:
        geometry = host_geometry(moge_geometry)
        prediction = geometry.prediction(batch_index)
        return _lifted(geometry.images[batch_index], prediction, fov_deg, max_depth, drop_edges)


class More4DDepthFromDepthAnything3(io.ComfyNode):
    """Depth Anything 3 geometry to a scene."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DDepthFromDepthAnything3",
            display_name="Lift Depth Anything 3 (More4D)",
            category=_CATEGORY,
            description="Make the points of one picture from what ComfyUI's own Depth Anything 3 "
            "nodes say of it. Only multiview mode knows the camera; else set fov_deg.",
            search_aliases=["da3 to scene", "depth anything", "lift depth", "point map"],
            inputs=[
                DA3Geometry.Input("da3_geometry", tooltip="From Run Depth Anything 3."),
                io.Int.Input("batch_index", default=0, min=0, max=4096, tooltip=_BATCH_TOOLTIP),
                *_lifting_inputs("0 takes that of multiview mode; mono mode has none."),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, da3_geometry, batch_index, fov_deg, max_depth, drop_edges) -> io.NodeOutput:
        geometry = host_geometry(da3_geometry)
        prediction = geometry.prediction(batch_index)
        return _lifted(geometry.images[batch_index], prediction, fov_deg, max_depth, drop_edges)


class More4DDepthFromImage(io.ComfyNode):
    """Depth picture to a scene."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DDepthFromImage",
            display_name="Lift Depth Image (More4D)",
            category=_CATEGORY,
            description="Make the points of one picture from a depth image of any node or program "
            "and the field of view.",
            search_aliases=["depth map to scene", "depth image to points", "lift depth"],
            inputs=[
                io.Image.Input("image", tooltip="The picture; one."),
                io.Image.Input("depth", tooltip="Its depth, of the same size; red is read."),
                io.Combo.Input(
                    "encoding", options=list(get_args(DepthEncoding)),
                    tooltip="What the depth values are. disparity 0-1: white is near, as most "
                    "estimators draw. depth 0-1: black is near. depth: world units as they are.",
                ),
                io.Float.Input("near", default=1.0, min=0.01, max=1e4, step=0.01,
                               tooltip="Depth of the nearest grey value (0-1 only); world units."),
                io.Float.Input("far", default=10.0, min=0.01, max=1e5, step=0.01,
                               tooltip="Depth of the farthest grey value (0-1 only); world units."),
                *_lifting_inputs("About 55 for a phone, 40 for a 50 mm lens.", fov_deg=55.0),
            ],
            outputs=_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(cls, image, depth, encoding, near, far, fov_deg, max_depth,
                drop_edges) -> io.NodeOutput:  # fmt: skip
        image, values = one_picture(image, "image"), one_picture(depth, "depth")[..., 0]
        check_same_size(values, *image.shape[:2])
        prediction = DepthPrediction(
            depth=depth_from_picture(values, encoding, near=near, far=far),
            intrinsics=None,
            provider="A depth image",
            is_metric=False,
        )
        return _lifted(image, prediction, fov_deg, max_depth, drop_edges)


class More4DDepthUniDepth(io.ComfyNode):
    """Picture to scene by UniDepth V2."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        files = folder_paths.get_filename_list("geometry_estimation")
        return io.Schema(
            node_id="More4DDepthUniDepth",
            display_name="Lift With UniDepth (More4D)",
            category=_CATEGORY,
            description="Estimate depth in metres and the camera with UniDepth V2, by which "
            "MoRe4D's training data was made, and make the picture's points. Needs the package "
            "unidepth (CC BY-NC 4.0, no commercial use).",
            search_aliases=["unidepth", "metric depth", "lift depth", "point map"],
            inputs=[
                io.Image.Input("image", tooltip="The picture; one."),
                io.Combo.Input(
                    "weights", options=[_CACHE, *files],
                    tooltip="The file in a UniDepth V2 folder (with its config.json) inside "
                    "models/geometry_estimation; or lpiccinelli/unidepth-v2-vitl14 in the local "
                    "Hugging Face cache. Nothing is downloaded.",
                ),
                *_lifting_inputs("0 takes UniDepth's own."),
            ],
            outputs=_outputs(),
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, weights: str | None = None) -> bool | str:
        if find_spec("unidepth") is None:
            return f"UniDepth is not installed. If its licence (CC BY-NC 4.0) suits you: {INSTALL}"
        known = folder_paths.get_filename_list("geometry_estimation")
        if weights in (None, _CACHE, *known):
            return True
        return f"There is no {weights!r} in models/geometry_estimation; choose another."

    @classmethod
    def execute(cls, image, weights, fov_deg, max_depth, drop_edges) -> io.NodeOutput:
        image = one_picture(image, "image")
        source = None if weights == _CACHE else _folder_of(weights)
        network = HostNetwork(UniDepth.load(source).model)
        prediction = UniDepth(network.load()).predict(image)
        return _lifted(image, prediction, fov_deg, max_depth, drop_edges)


class More4DDepthTiny(io.ComfyNode):
    """Picture to scene by the embedded network."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DDepthTiny",
            display_name="Lift With Tiny Depth (More4D)",
            category="More4D/tiny",
            description="Estimate depth and camera with the small network that comes with the "
            "pack, and make the picture's points. Trained on procedural scenes only: for "
            "photographs use MoGe or Depth Anything 3.",
            search_aliases=["tiny depth", "embedded depth", "lift depth"],
            inputs=[
                io.Image.Input("image", tooltip="The picture; one."),
                *_lifting_inputs("0 takes the network's own."),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, image, fov_deg, max_depth, drop_edges) -> io.NodeOutput:
        image = one_picture(image, "image")
        network = HostNetwork(TinyDepth.load().model)
        prediction = TinyDepth(network.load()).predict(image)
        return _lifted(image, prediction, fov_deg, max_depth, drop_edges)


def _lifting_inputs(fov_tooltip: str, fov_deg: float = 0.0) -> list[Any]:
    lowest = 0.0 if fov_deg == 0 else 1.0
    return [
        io.Float.Input(
            "fov_deg", default=fov_deg, min=lowest, max=170.0, step=0.1,
            tooltip=f"Horizontal field of view of the picture, in degrees. {fov_tooltip}",
        ),
        io.Float.Input(
            "max_depth", default=0.0, min=0.0, max=1e6, step=0.01, advanced=True,
            tooltip="Leave out points farther than this, in world units (metres where the depth "
            "is metric). 0 keeps all.",
        ),
        io.Boolean.Input(
            "drop_edges", default=False, advanced=True,
            tooltip="Leave out the pixels on both sides of depth edges, where depth is least sure "
            "of which surface it shows.",
        ),
    ]  # fmt: skip


def _outputs() -> list[Any]:
    return [
        SceneType.Output(display_name="scene", tooltip="One frame, a point per pixel."),
        io.Image.Output(
            display_name="depth", tooltip="To look at: white is near, even in disparity."
        ),
    ]


def _lifted(
    image: Tensor,
    prediction: DepthPrediction,
    fov_deg: float,
    max_depth: float,
    drop_edges: bool,
) -> io.NodeOutput:
    scene = lift_prediction(
        image,
        prediction,
        fov_rad=math.radians(fov_deg) or None,
        max_depth=max_depth or None,
        drop_edges=drop_edges,
    )
    return io.NodeOutput(scene, grey_image(depth_picture(prediction.depth[None])))


def _folder_of(weights: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise("geometry_estimation", weights)).parent


NODES: list[type[io.ComfyNode]] = [
    More4DDepthFromMoGe,
    More4DDepthFromDepthAnything3,
    More4DDepthFromImage,
    More4DDepthUniDepth,
    More4DDepthTiny,
]
