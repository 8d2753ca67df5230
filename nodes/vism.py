"""Nodes that fill the holes of a rendered video: 4D-ViSM on the host's samplers."""

from typing import Any

import torch
from comfy_api.latest import io

from ..more4d_backend.vism.conditioning import (
    check_holes,
    condition_by,
    hole_warning,
    paste_back,
)
from ..more4d_backend.wan.fitting import extended_to_multiple
from ..more4d_backend.wan.latents import PIXELS_PER_TOKEN, check_num_frames
from .messages import show_on_node
from .wan_inputs import (
    check_text,
    check_vae_sizes,
    check_vism,
    conditioned,
    empty_latent,
    image_tokens,
    raw_latent,
    video_encoder,
)

_MASK_CHANNELS = 4


class More4DVismConditioning(io.ComfyNode):
    """Rendered video and holes to conditioning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DVismConditioning",
            display_name="ViSM Conditioning (More4D)",
            category="More4D/fill holes",
            description="Tell Wan2.1-Fun-InP with the 4D-ViSM LoRA what is known of a rendered "
            "video and what is to be filled, pixel by pixel. Then KSampler and VAE Decode.",
            search_aliases=["video inpaint", "fill holes", "4D-ViSM", "Fun InP mask"],
            inputs=_conditioning_inputs(),
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Latent.Output(display_name="latent"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, vae, rendered, holes, clip_vision_output=None
    ) -> io.NodeOutput:
        check_vism(model)
        check_text(model, positive, negative)
        encode = video_encoder(vae)
        check_vae_sizes(model, {"Load VAE": vae})
        rendered = rendered[..., :3].clamp(0, 1)
        hole_mask = _hole_mask(holes, rendered)
        check_holes(rendered, hole_mask)
        if (warning := hole_warning(rendered, hole_mask)) is not None:
            show_on_node(cls, warning)
        check_num_frames(len(rendered), "The number of rendered frames")
        video, hole_mask = (
            extended_to_multiple(part, PIXELS_PER_TOKEN) for part in (rendered, hole_mask)
        )
        condition = condition_by(encode, video, hole_mask)
        values = {
            # The host's mask says what to generate, the network's what is known.
            "concat_mask": 1 - condition[:, :_MASK_CHANNELS],
            "concat_latent_image": raw_latent(condition[:, _MASK_CHANNELS:]),
            "clip_vision_output": image_tokens(clip_vision_output),
        }
        latent = empty_latent(*hole_mask.shape)
        return io.NodeOutput(*conditioned(positive, negative, values), latent)


class More4DPasteBack(io.ComfyNode):
    """Known pixels over a filled video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="More4DPasteBack",
            display_name="Paste Known Pixels (More4D)",
            category="More4D/fill holes",
            description="Put the rendered pixels back over the filled video, so that only the "
            "holes are the model's. The seam fades over known pixels.",
            search_aliases=["paste back", "composite holes", "blend seam"],
            inputs=[
                # First, and so what comes out where the node is bypassed.
                io.Image.Input("filled", tooltip="The filled video, from VAE Decode."),
                io.Image.Input("known", tooltip="The rendered video."),
                io.Mask.Input("holes", tooltip="1 (white) = was filled; as in ViSM Conditioning."),
                io.Int.Input(
                    "feather_px", default=8, min=0, max=256,
                    tooltip="Width of the seam, in pixels; 0 is a hard edge.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image")],
        )  # fmt: skip

    @classmethod
    def execute(cls, filled, known, holes, feather_px) -> io.NodeOutput:
        known = known[..., :3]
        height, width = known.shape[1:3]
        filled = filled[..., :3].to(known)
        # ViSM Conditioning extends sizes to multiples of 16; cut that off again.
        if filled.shape[1:3] == extended_to_multiple(known[:1], PIXELS_PER_TOKEN).shape[1:3]:
            filled = filled[:, :height, :width]
        hole_mask = _hole_mask(holes, known)
        if filled.shape != known.shape:
            raise ValueError(
                f"The filled video is {_size(filled)} and the known one {_size(known)}. Decode the "
                "latent that was sampled for this video, with as many frames and its size."
            )
        return io.NodeOutput(paste_back(known, filled, hole_mask, feather_px))


def _hole_mask(holes: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
    """True = to be filled; one mask holds for all frames.

    Raises:
        ValueError: the masks are not of the video's size, or not as many.
    """
    hole_mask = holes > 0.5
    if hole_mask.ndim == 2:
        hole_mask = hole_mask[None]
    if hole_mask.shape[1:] != video.shape[1:3] or len(hole_mask) not in (1, len(video)):
        raise ValueError(
            f"The holes are {_size(hole_mask)} and the video {_size(video)}. Connect the holes "
            "output of the Render 4D Scene that made the video, or one mask of its size for all "
            "frames."
        )
    return hole_mask.expand(len(video), -1, -1)


def _size(frames: torch.Tensor) -> str:
    return f"{len(frames)} frames of {frames.shape[1]}x{frames.shape[2]} (height x width)"


def _conditioning_inputs() -> list[Any]:
    return [
        io.Model.Input("model", tooltip="Fun-InP with the ViSM LoRA (strength 0.55)."),
        io.Conditioning.Input("positive", tooltip="What the scene shows."),
        io.Conditioning.Input("negative", tooltip="What to move away from; usually an empty text."),
        io.Vae.Input("vae", tooltip="The Wan 2.1 VAE."),
        io.Image.Input("rendered", tooltip="The rendered video, 4k + 1 frames; best 49."),
        io.Mask.Input(
            "holes", tooltip="1 (white) = to be filled; one mask per frame, or one for all."
        ),
        io.ClipVisionOutput.Input(
            "clip_vision_output", optional=True,
            tooltip="Of the picture that the scene came from. The released weights were sampled "
            "without: nothing gives zeros.",
        ),
    ]  # fmt: skip


NODES: list[type[io.ComfyNode]] = [More4DVismConditioning, More4DPasteBack]
