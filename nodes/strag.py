"""Nodes that give a picture motion: 4D-STraG on the host's samplers."""

from typing import Any

import comfy.latent_formats
import folder_paths
import torch
from comfy_api.latest import io

from ..more4d_backend.scene import Scene4D
from ..more4d_backend.strag.conditioning import clip_picture, condition_by, perceived_picture
from ..more4d_backend.strag.lifted import lift_scene, moved_scene
from ..more4d_backend.strag.motion_preview import MotionPreview
from ..more4d_backend.tiny import embedded_file
from ..more4d_backend.wan.latents import LATENT_CHANNELS, PIXELS_PER_LATENT, check_video_size
from ..more4d_backend.weights.model_loading import load_byte_text
from .convert import one_picture
from .memory import HostNetwork
from .motion_vae import PROFILES, HostMotionVAE
from .types import MotionVAEType, SceneType
from .wan_inputs import (
    TINY_TEXT,
    check_strag,
    check_text,
    check_vae_sizes,
    conditioned,
    empty_latent,
    image_tokens,
    raw_latent,
    video_encoder,
)
from .wan_model import CONDITION_KEY, StragPicture

_AUTO = "auto"
_SWITCH = {_AUTO: None, "on": True, "off": False}


class More4DLoadMotionVAE(io.ComfyNode):
    """File to motion VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DLoadMotionVAE",
            display_name="Load Motion VAE (More4D)",
            category="More4D/motion",
            description="Load the motion-sensitive VAE of 4D-STraG: it turns sampled latents into "
            "the motion of every pixel.",
            search_aliases=["load trajectory vae", "motion sensitive vae", "4D-STraG vae"],
            inputs=[
                io.Combo.Input(
                    "motion_vae_name",
                    options=folder_paths.get_filename_list("vae"),
                    tooltip="File in models/vae: the VAE and its two adapters in one. "
                    "more4d_tiny_motion_vae comes with the pack, for the tiny STraG model.",
                ),
                io.Combo.Input(
                    "weights_profile",
                    options=[_AUTO, *PROFILES],
                    default=_AUTO,
                    advanced=True,
                    tooltip="How the weights were trained: as the published ones (released) or by "
                    "this project's trainer (own). auto reads it from the file.",
                ),
            ],
            outputs=[MotionVAEType.Output(display_name="motion_vae")],
        )

    @classmethod
    def execute(cls, motion_vae_name: str, weights_profile: str) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("vae", motion_vae_name)
        return io.NodeOutput(HostMotionVAE.load(path, PROFILES.get(weights_profile)))


class More4DTinyTextEncode(io.ComfyNode):
    """Text to conditioning, for the tiny models."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DTinyTextEncode",
            display_name="Tiny Text Encode (More4D)",
            category="More4D/tiny",
            description="Encode a text for the embedded tiny models. The full-size models read "
            "text by Load CLIP (umt5_xxl, type wan) and CLIP Text Encode instead.",
            search_aliases=["tiny prompt", "byte text encoder", "embedded text encoder"],
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What is seen and what moves, in which direction; at most 511 bytes. "
                    "Empty for the negative prompt.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning")],
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        from ..more4d_backend.tiny.text_encoder import ByteTextEncoder

        # 16 bits save nothing on a network of 1.5 MB.
        network = HostNetwork(load_byte_text(embedded_file("text_encoder")).float())
        encoder = ByteTextEncoder(network.load())
        return io.NodeOutput([[encoder.encode([text]).cpu(), {TINY_TEXT: True}]])


class More4DStragConditioning(io.ComfyNode):
    """Picture to conditioning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DStragConditioning",
            display_name="STraG Conditioning (More4D)",
            category="More4D/motion",
            description="Tell 4D-STraG which picture is to move: connect positive, negative and "
            "latent to a KSampler (euler, normal, 50 steps, cfg 6), and scene to Decode Motion.",
            search_aliases=["image to 4d", "4D-STraG", "more4d conditioning", "scene flow"],
            inputs=_conditioning_inputs(),
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Latent.Output(display_name="latent"),
                SceneType.Output(
                    display_name="scene", tooltip="The picture at the model's size, one frame."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, positive, negative, vae, motion_vae, image, scene, num_frames, height,
                width, fit, motion_perception, clip_vision=None) -> io.NodeOutput:  # fmt: skip
        check_strag(model)
        check_text(model, positive, negative)
        check_video_size(num_frames, height, width)
        profile = motion_vae.profile
        encode = video_encoder(vae, 3 if profile.reference_latent == "image" else 2)
        check_vae_sizes(model, {"Load VAE": vae, "Load Motion VAE": motion_vae.vae})
        lifted = lift_scene(scene, one_picture(image, "image"), (height, width), fit)
        picture, depth = lifted.fitted.image, lifted.fitted.depth
        condition = condition_by(encode, picture[None], depth[None], num_frames, profile)
        values = {
            "concat_latent_image": raw_latent(condition.channels),
            "reference_latents": [raw_latent(condition.reference_latent[:, :, None])],
            "clip_vision_output": image_tokens(clip_vision, clip_picture(picture, profile)),
            CONDITION_KEY: StragPicture(
                image=perceived_picture(picture, profile) if motion_perception else None,
                unguided_frame=profile.unguided_frame,
                preview=MotionPreview(image=picture, linear=motion_vae.linear),
            ),
        }
        return io.NodeOutput(
            *conditioned(positive, negative, values),
            empty_latent(num_frames, height, width),
            lifted.scene(scene.fps),
        )


class More4DDecodeMotion(io.ComfyNode):
    """Latent to 4D scene."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DDecodeMotion",
            display_name="Decode Motion (More4D)",
            category="More4D/motion",
            description="Turn a latent that 4D-STraG sampled into a 4D scene: every pixel of the "
            "picture as a point with its track over time.",
            search_aliases=["latent to 4d scene", "vae decode motion", "trajectories"],
            inputs=[
                io.Latent.Input("samples", tooltip="What the KSampler made."),
                MotionVAEType.Input("motion_vae", tooltip="The one that the conditioning had."),
                SceneType.Input("scene", tooltip="The scene output of STraG Conditioning."),
                io.Float.Input(
                    "fps", default=8.0, min=0.1, max=240.0, step=0.01,
                    tooltip="Frames per second of the scene; the released weights know 8.",
                ),
                io.Combo.Input(
                    "snap_to_edges", options=list(_SWITCH), default=_AUTO, advanced=True,
                    tooltip="Sharpen the motion along the edges of picture and depth. auto: as the "
                    "weights were made for.",
                ),
            ],
            outputs=[SceneType.Output(display_name="scene")],
        )  # fmt: skip

    @classmethod
    def execute(cls, samples, motion_vae, scene, fps, snap_to_edges) -> io.NodeOutput:
        latent = _motion_latent(samples)
        height, width = (PIXELS_PER_LATENT * n for n in latent.shape[-2:])
        _check_scene_size(scene, height, width)
        lifted = lift_scene(scene, scene.points.colors[0], (height, width), "pad")
        motion = motion_vae.decode(latent).to(lifted.positions.device)
        moved = moved_scene(
            motion, lifted, motion_vae.profile, fps=fps, snap_to_edges=_SWITCH[snap_to_edges]
        )
        return io.NodeOutput(moved)


def _conditioning_inputs() -> list[Any]:
    return [
        io.Model.Input("model", tooltip="4D-STraG, from Load Diffusion Model."),
        io.Conditioning.Input("positive", tooltip="What is seen and what moves, and where to."),
        io.Conditioning.Input("negative", tooltip="What to move away from; usually an empty text."),
        io.Vae.Input("vae", tooltip="The Wan 2.1 VAE, by which the model sees picture and depth."),
        MotionVAEType.Input("motion_vae", tooltip="Decides how picture and depth are shown."),
        io.Image.Input("image", tooltip="One picture, of the size of the scene."),
        SceneType.Input("scene", tooltip="The picture as points, from a More4D depth node."),
        io.Int.Input(
            "num_frames", default=49, min=5, max=401, step=4,
            tooltip="Frames of the scene, 4k + 1. The released weights know 49.",
        ),
        io.Int.Input(
            "height", default=368, min=16, max=2048, step=16,
            tooltip="Pixels, a multiple of 16. Released weights: 368; tiny: 128.",
        ),
        io.Int.Input(
            "width", default=512, min=16, max=2048, step=16,
            tooltip="Pixels, a multiple of 16. Released weights: 512; tiny: 176.",
        ),
        io.Combo.Input(
            "fit", options=["crop", "pad"], default="crop",
            tooltip="How a picture of other proportions gets that size: cut, or continued at its "
            "border, which is left out of the scene again. Nothing is ever squashed.",
        ),
        io.Boolean.Input(
            "motion_perception", default=True, advanced=True,
            tooltip="Guide the model by features of the picture; off to see what they do.",
        ),
        io.MultiType.Input(
            "clip_vision", types=[io.ClipVision, io.ClipVisionOutput], optional=True,
            tooltip="CLIP ViT-H, for models with image tokens: shown what the weights were trained "
            "on. Or a ready CLIP_VISION_OUTPUT. Nothing: zeros.",
        ),
    ]  # fmt: skip


def _check_scene_size(scene: Scene4D, height: int, width: int) -> None:
    """Refuse a scene that is not the conditioning's: its pixels would get the motion of others."""
    size = scene.cameras.height, scene.cameras.width
    # Padding leaves a border on two sides at most; the picture touches the other two.
    if not (size[0] <= height and size[1] <= width and (size[0] == height or size[1] == width)):
        raise ValueError(
            f"The scene is {size[0]}x{size[1]} and the latent is of {height}x{width} pixels "
            "(height x width). Connect the scene output of STraG Conditioning, not that of the "
            "depth node."
        )


def _motion_latent(samples: dict[str, Any]) -> torch.Tensor:
    """From the host's units to those of the transformer."""
    latent = samples["samples"]
    if latent.ndim != 5 or latent.shape[:2] != (1, LATENT_CHANNELS):
        raise ValueError(
            f"The latent has shape {tuple(latent.shape)}; motion is decoded from one latent "
            f"(1, {LATENT_CHANNELS}, frame, height, width), as 4D-STraG samples it. Connect the "
            "KSampler behind STraG Conditioning, with a batch of one."
        )
    return comfy.latent_formats.Wan21().process_in(latent.float())


NODES: list[type[io.ComfyNode]] = [
    More4DLoadMotionVAE,
    More4DTinyTextEncode,
    More4DStragConditioning,
    More4DDecodeMotion,
]
