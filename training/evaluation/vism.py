"""4D-ViSM on held-out samples: known and filled regions, beside simple fills and the VAE alone."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from more4d_backend.evaluation import Column, EvaluationReport, compare_videos
from more4d_backend.evaluation.comparison import VIDEO_COLUMNS, VIDEO_NOTES
from more4d_backend.evaluation.tables import Value
from more4d_backend.evaluation.views import psnr_db
from more4d_backend.scene import Cameras
from more4d_backend.synthetic import SyntheticWorld
from more4d_backend.synthetic.surfaces import Pattern
from more4d_backend.vism.pipeline import VismPipeline, VismSettings
from more4d_backend.wan.latents import decode_video, encode_video

from ..data.holes import HoleSample, HoleSettings, holes_of
from ..data.samples import TrainingSample, stack_samples
from .parts import evaluated

_TELEA_RADIUS_PX = 3

Regions = Callable[[TrainingSample, Cameras], Mapping[str, Bool[Tensor, "frame height width"]]]
"""Gives named regions of what cameras see of a sample's scene, such as `pattern_regions`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VismEvaluation:
    """How 4D-ViSM is evaluated."""

    settings: VismSettings = field(default_factory=VismSettings)
    """Of the pipeline; nothing is pasted back unless they say so."""

    holes: HoleSettings = field(default_factory=HoleSettings)
    """Where holes come from."""

    seed: int = 0
    """Of holes and noise."""


@torch.no_grad()
def evaluate_vism(
    pipeline: VismPipeline,
    samples: Iterable[TrainingSample],
    evaluation: VismEvaluation,
    regions: Regions | None = None,
) -> list[EvaluationReport]:
    """Fill holes and compare, beside Telea's fill, mid-grey, and the true video through the VAE.

    With `regions`, the PSNR of the filled part of each is told too.

    Raises:
        ImportError: OpenCV, which Telea's fill is from, is not installed.
    """
    names: dict[str, None] = {}

    def one(sample: TrainingSample) -> dict[str, dict[str, Value]]:
        draw = torch.Generator().manual_seed(evaluation.seed)
        (hole,) = holes_of(stack_samples([sample]), evaluation.holes, draw)
        filled = pipeline.complete(
            hole.rendered,
            hole.hole_mask,
            sample.caption,
            image=sample.video[0].float() / 255,
            settings=evaluation.settings,
            generator=draw,
        )
        parts = {}
        if regions is not None:
            cameras = sample.novel_cameras if hole.kind == "novel" else sample.cameras
            assert cameras is not None
            parts = regions(sample, cameras)
            names.update(dict.fromkeys(parts))
        videos = {
            "4D-ViSM": filled.to(hole.target),
            "Telea": telea_fill(hole.rendered, hole.hole_mask),
            "Mid-grey": grey_fill(hole.rendered, hole.hole_mask),
            "True video through the VAE": vae_round_trip(pipeline, hole.target),
        }
        return {title: _values(video, hole, parts) for title, video in videos.items()}

    tables = evaluated(samples, one)
    columns = (
        *VIDEO_COLUMNS,
        *(Column(name=f"filled {n}", unit="dB", digits=2, better="higher") for n in names),
    )
    return [
        EvaluationReport(title=title, columns=columns, rows=tuple(rows), notes=VIDEO_NOTES)
        for title, rows in tables.items()
    ]


def telea_fill(
    rendered: Float[Tensor, "frame height width 3"], hole_mask: Bool[Tensor, "frame height width"]
) -> Float[Tensor, "frame height width 3"]:
    """Fill by Telea 2004, frame by frame.

    Raises:
        ImportError: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as e:
        raise ImportError("Telea's fill needs OpenCV: pip install opencv-python-headless") from e
    frames = (rendered.clamp(0, 1) * 255).round().byte().cpu().numpy()
    masks = hole_mask.byte().cpu().numpy()
    filled = [
        cv2.inpaint(frame, mask, _TELEA_RADIUS_PX, cv2.INPAINT_TELEA)
        for frame, mask in zip(frames, masks, strict=True)
    ]
    return torch.from_numpy(np.stack(filled)).to(rendered) / 255


def grey_fill(
    rendered: Float[Tensor, "frame height width 3"], hole_mask: Bool[Tensor, "frame height width"]
) -> Float[Tensor, "frame height width 3"]:
    """Fill with mid-grey."""
    return rendered.masked_fill(hole_mask[..., None], 0.5)


def vae_round_trip(
    pipeline: VismPipeline, video: Float[Tensor, "frame height width 3"]
) -> Float[Tensor, "frame height width 3"]:
    """Encode and decode: no completed video can be expected to be better."""
    with pipeline.using(pipeline.vae):
        signed = rearrange(2 * video - 1, "f h w c -> 1 c f h w").to(pipeline.device)
        decoded = decode_video(pipeline.vae, encode_video(pipeline.vae, signed))
    return rearrange((decoded + 1) / 2, "1 c f h w -> f h w c").to(video)


def pattern_regions(
    world_of: Callable[[TrainingSample], SyntheticWorld],
) -> Regions:
    """Make regions by texture (stripes, checker, noise ...) from the worlds of samples."""

    def regions(
        sample: TrainingSample, cameras: Cameras
    ) -> dict[str, Bool[Tensor, "frame height width"]]:
        world = world_of(sample)
        index: Int[Tensor, "frame height width"] = world.view(cameras).object_index
        textures = [*(o.texture for o in world.objects), world.sky]  # the sky is -1, the last
        pattern = torch.tensor([int(t.pattern) for t in textures], device=index.device)[index]
        return {p.name.lower(): pattern == int(p) for p in Pattern}

    return regions


def _values(
    video: Float[Tensor, "frame height width 3"],
    hole: HoleSample,
    parts: Mapping[str, Bool[Tensor, "frame height width"]],
) -> dict[str, Value]:
    values = compare_videos(video, hole.target, hole.hole_mask)
    for name, region in parts.items():
        values[f"filled {name}"] = psnr_db(video, hole.target, region & hole.hole_mask)
    return values
