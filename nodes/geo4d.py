"""Nodes that reconstruct a moving scene from a video: Geo4D."""

from typing import get_args

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io
from torch import nn

from ..more4d_backend.geo4d.alignment import AlignmentSettings
from ..more4d_backend.geo4d.framing import Fit, Resolution, plan_framing
from ..more4d_backend.geo4d.model import Geo4DNetworks
from ..more4d_backend.geo4d.pipeline import ReconstructionSettings, reconstruct, work_bytes
from ..more4d_backend.geo4d.sampling import SamplingSettings
from ..more4d_backend.geo4d.video import PictureVideo
from ..more4d_backend.geo4d.weight_choice import EMBEDDED_GEO4D
from ..more4d_backend.weights.files import WeightsError
from ..more4d_backend.weights.geo4d import load_geo4d
from .memory import HostNetwork, report_progress
from .types import Geo4DType, SceneType

_EMBEDDED = "embedded (procedural videos only)"
_FOLDER = "geometry_estimation"
_MODALITIES = {
    "all": AlignmentSettings,
    "points": AlignmentSettings.points_only,
    "disparity": AlignmentSettings.disparity_only,
}


class HeldGeo4D(nn.Module):
    """The networks with a shell around: the host writes attributes of its own on a model."""

    def __init__(self, networks: Geo4DNetworks) -> None:
        super().__init__()
        self.networks = networks


class More4DLoadGeo4D(io.ComfyNode):
    """See the description."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DLoadGeo4D",
            display_name="Load Geo4D (More4D)",
            category="More4D/video",
            description="Load the networks that turn a video into a moving scene with cameras.",
            search_aliases=["geo4d loader", "video to 4d model", "video depth model"],
            inputs=[
                io.Combo.Input(
                    "weights_name",
                    options=[
                        *([_EMBEDDED] if EMBEDDED_GEO4D.is_file() else []),
                        *folder_paths.get_filename_list(_FOLDER),
                    ],
                    tooltip="File in models/geometry_estimation, made of the released checkpoints "
                    "by `weights convert`. The embedded one comes with the pack.",
                ),
            ],
            outputs=[Geo4DType.Output(display_name="geo4d")],
        )

    @classmethod
    def execute(cls, weights_name: str) -> io.NodeOutput:
        path = EMBEDDED_GEO4D
        if weights_name != _EMBEDDED:
            path = folder_paths.get_full_path_or_raise(_FOLDER, weights_name)
        device = comfy.model_management.get_torch_device()
        half = comfy.model_management.should_use_bf16(device)
        dtype = torch.bfloat16 if half else torch.float32
        try:
            networks = load_geo4d(path, dtype=dtype)
        except WeightsError as e:
            raise WeightsError(
                f"{e} Choose another file in Load Geo4D; its help page says how one is made of the "
                "published checkpoints."
            ) from e
        return io.NodeOutput(HostNetwork(HeldGeo4D(networks)))


class More4DReconstruct(io.ComfyNode):
    """See the description."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DReconstruct",
            display_name="Reconstruct 4D Scene (More4D)",
            category="More4D/video",
            description="Turn a video into a moving scene: a point for every pixel of every frame, "
            "in one world, and the camera of every frame.",
            search_aliases=["video to 4d", "geo4d", "video depth", "camera tracking", "slam"],
            inputs=_inputs(),
            outputs=[
                SceneType.Output(display_name="scene", tooltip="As many frames as the video."),
                io.String.Output(
                    display_name="report", tooltip="How well the windows fit together."
                ),
            ],
        )

    @classmethod
    def execute(cls, geo4d, image, fps, stride, fit, resolution, num_steps, modalities,
                seed) -> io.NodeOutput:  # fmt: skip
        video = PictureVideo(image[..., :3], fps)
        networks = geo4d.patcher.model.networks
        settings = ReconstructionSettings(
            stride=stride or None,
            fit=fit,
            resolution=resolution,
            seed=seed,
            sampling=SamplingSettings(num_steps=num_steps or None),
            alignment=_MODALITIES[modalities](),
        )
        framing = plan_framing((image.shape[1], image.shape[2]), networks.size, fit=fit)
        networks = geo4d.load(work_bytes(networks, framing.network_hw)).networks
        done = reconstruct(video, networks, settings, report=lambda _stage: report_progress())
        return io.NodeOutput(done.scene, done.report.summary())


def _inputs() -> list[io.Input]:
    return [
        Geo4DType.Input("geo4d", tooltip="From Load Geo4D."),
        io.Image.Input("image", tooltip="The frames of one video, in order; any size and number."),
        io.Float.Input(
            "fps", default=24.0, min=0.1, max=240.0, step=0.01,
            tooltip="Frames per second of the video, for the scene; Get Video Components tells it.",
        ),
        io.Int.Input(
            "stride", default=0, min=0, max=16,
            tooltip="Frames from one window of 16 to the next. 0: 4, the best published; 8 takes "
            "half the time.",
        ),
        io.Combo.Input(
            "fit", options=list(get_args(Fit)), default="crop",
            tooltip="How a video of another shape gets the network's size: cut, or continued at "
            "its border, which is left out of the scene again. Nothing is ever squashed.",
        ),
        io.Combo.Input(
            "resolution", options=list(get_args(Resolution)), default="auto",
            tooltip="Pixels of the scene: those of the video (source), of the network, or auto: "
            "of the video if all points fit 2 GiB.",
        ),
        io.Int.Input(
            "num_steps", default=0, min=0, max=100, advanced=True,
            tooltip="Denoising steps. 0: what the weights are made for, 5 for the released ones.",
        ),
        io.Combo.Input(
            "modalities", options=list(_MODALITIES), default="all", advanced=True,
            tooltip="What is fitted together: point maps, disparity and rays, or one of them.",
        ),
        io.Int.Input(
            "seed", default=0, min=0, max=2**53, control_after_generate=False,
            tooltip="Of the noise that geometry is sampled from.",
        ),
    ]  # fmt: skip


NODES: list[type[io.ComfyNode]] = [More4DLoadGeo4D, More4DReconstruct]
