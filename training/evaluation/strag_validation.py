"""Generated motion against the true one: what 4D-STraG's validation looks at."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from more4d_backend.evaluation import SceneTruth, compare_scenes
from more4d_backend.rendering import RenderSettings, render
from more4d_backend.scene import PointTracks, Scene4D
from more4d_backend.strag.pipeline import StragPipeline, StragSettings
from more4d_backend.wan.sampling import SamplingSettings

from ..data.samples import TrainingBatch
from ..run.loop import TrainingRun
from ..run.validation import ShownSample, fixed_generator

SAMPLING = SamplingSettings(num_steps=20, guidance_scale=1.5)
"""Few steps, and weak guidance: strong guidance moves more, and less exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedMotion:
    """What was generated for one sample."""

    metrics: Mapping[str, float]
    """By name."""

    shown: ShownSample
    """The true scene and the generated one."""


def generated_motion(
    run: TrainingRun,
    pipeline: StragPipeline,
    batch: TrainingBatch,
    index: int,
    *,
    motion_perception: bool,
) -> GeneratedMotion:
    """Generate the motion of a batch of one sample through the run's pipeline, and compare."""
    frames, height, width = batch.video.shape[1:4]
    settings = StragSettings(
        num_frames=frames,
        size_hw=(height, width),
        sampling=SAMPLING,
        motion_perception=motion_perception,
        fps=batch.fps[0],
    )
    scene = run.inside(
        lambda: pipeline.generate(
            batch.video[0, 0].float() / 255,
            batch.depth[0],
            batch.cameras(0).frames([0]),
            batch.captions[0],
            settings=settings,
            generator=fixed_generator(index, torch.device("cpu")),
        )
    )
    truth = batch.scene(0)
    shown = ShownSample(
        name=batch.names[0],
        about=batch.captions[0],
        fps=batch.fps[0],
        videos={"true": _seen(truth), "generated": _seen(scene)},
    )
    return GeneratedMotion(metrics=_metrics(scene, truth), shown=shown)


def _metrics(generated: Scene4D, truth: Scene4D) -> dict[str, float]:
    """End-point errors after frame 0 where the true point is seen.

    In world units, and in units of the true motion; and the share of points that are near enough
    (`tracking_accuracy`; NaN where no point counts).
    """
    ours, theirs = _tracks(generated), _tracks(truth)
    seen = theirs.visibility[1:]
    moved = theirs.motion[1:].norm(dim=-1)
    error = (ours.motion[1:] - theirs.motion[1:]).norm(dim=-1)
    # Moving: by more than a hundredth of the scene's depth.
    moving = seen & (moved > 0.01 * theirs.positions[0, :, 2].median())
    amount = (moved * moving).sum().clamp_min(1e-9)
    within = compare_scenes([generated], SceneTruth(scene=truth))["within thresholds"]
    return {
        "end_point_error": float((error * seen).sum() / seen.sum().clamp_min(1)),
        "within_thresholds": within if isinstance(within, float) else math.nan,
        "end_point_error_relative": float((error * seen).sum() / amount),
        "moving_error_relative": float((error * moving).sum() / amount),
    }


def _seen(scene: Scene4D) -> Float[Tensor, "frame height width 3"]:
    """The scene's tracks from the input view, which shows their motion alone."""
    view = scene.cameras.frames([0]).repeated(scene.num_frames)
    return render(scene, view, RenderSettings(mode="nearest")).rgb


def _tracks(scene: Scene4D) -> PointTracks:
    assert isinstance(scene.points, PointTracks)
    return scene.points
