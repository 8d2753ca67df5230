"""Trained parts on held-out samples: the motion VAE and depth here, 4D-STraG and 4D-ViSM beside.

Each function runs one part as the pipelines run it and returns tables of `more4d_backend`'s
metrics, with baselines beside. A sample that fails is named and makes the means NaN.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from more4d_backend.depth import DepthProvider
from more4d_backend.evaluation import (
    Column,
    EvaluationReport,
    Ratio,
    SampleRow,
    SceneTruth,
    compare_depth,
)
from more4d_backend.evaluation.comparison import DEPTH_COLUMNS
from more4d_backend.evaluation.depth import constant_fov_error_deg, horizontal_fov_deg
from more4d_backend.evaluation.motion_fields import RADIUS_CLASSES, motion_field_errors
from more4d_backend.evaluation.tables import Value
from more4d_backend.motion import normalize_motion
from more4d_backend.strag.edge_snapping import snap_motion_to_edges
from more4d_backend.strag.profile import StragWeightsProfile

from ..data.samples import TrainingSample

if TYPE_CHECKING:
    from more4d_backend.strag.motion_vae import MotionVAE

_log = logging.getLogger(__name__)

_MOTION_COLUMNS = (
    Column(name="R", unit="%", digits=1, better="lower"),
    Column(name="R interior", unit="%", digits=1, better="lower"),
    *(Column(name=f"R {name}", unit="%", digits=1, better="lower") for name in RADIUS_CLASSES),
    Column(name="stillness", unit="%", digits=1, better="lower"),
    Column(name="moving", unit="%", digits=1),
)
_MOTION_NOTES = (
    "R: sum |error| / sum |motion| after frame 0, normalised units, where seen, pooled over "
    "samples. Interior: more than 2 px from a motion edge. By radius: of the object in frame 0. "
    "Stillness: 99th percentile of resting pixels over the mean motion of moving ones.",
)

_Item = TypeVar("_Item", bound=TrainingSample)


def evaluated(
    samples: Iterable[_Item], evaluate_one: Callable[[_Item], Mapping[str, Mapping[str, Value]]]
) -> dict[str, list[SampleRow]]:
    """Evaluate sample after sample; return rows by table.

    `evaluate_one` gives values by table. Where it raises ValueError, the sample has failed, in
    every table.
    """
    results: list[tuple[str, Mapping[str, Mapping[str, Value]] | str]] = []
    for sample in samples:
        try:
            results.append((sample.name, evaluate_one(sample)))
        except ValueError as e:  # a prediction that cannot be used; errors of the program pass
            _log.warning("%s failed: %s", sample.name, e)
            results.append((sample.name, str(e)))
        _log.info("%d. %s", len(results), sample.name)
    tables = dict.fromkeys(
        t for _, result in results if not isinstance(result, str) for t in result
    )
    return {
        table: [
            SampleRow(name=name, values={}, failure=result)
            if isinstance(result, str)
            else SampleRow(name=name, values=result[table])
            for name, result in results
        ]
        for table in tables or ("",)
    }


def sample_truth(sample: TrainingSample, *, families: bool = False) -> SceneTruth:
    """Return the true scene of a sample, with its words or the families of its motions."""
    index = sample.object_index
    return SceneTruth(
        scene=sample.scene(),
        object_index=None if index is None else index.flatten().long(),
        words=tuple(o.family if families else o.motion for o in sample.objects),
    )


@torch.no_grad()
def evaluate_motion_vae(
    motion_vae: "MotionVAE",
    samples: Iterable[TrainingSample],
    profile: StragWeightsProfile,
    *,
    device: torch.device | str = "cpu",
) -> list[EvaluationReport]:
    """Send true motion through the VAE and back; as it comes, and snapped to edges."""

    def one(sample: TrainingSample) -> dict[str, dict[str, Value]]:
        motion = normalize_motion(sample.positions(), sample.cameras, profile.motion)
        latent = motion_vae.encode(rearrange(motion, "f h w c -> 1 c f h w").to(device))
        decoded = rearrange(motion_vae.decode(latent), "1 c f h w -> f h w c").to(motion)
        snapped = snap_motion_to_edges(decoded, sample.video[0].float() / 255, sample.depth)
        return {
            "Motion VAE": _motion_values(decoded, motion, sample),
            "Motion VAE, snapped to edges": _motion_values(snapped, motion, sample),
        }

    return [
        EvaluationReport(
            title=title, columns=_MOTION_COLUMNS, rows=tuple(rows), notes=_MOTION_NOTES
        )
        for title, rows in evaluated(samples, one).items()
    ]


def _motion_values(
    decoded: Float[Tensor, "frame height width 3"],
    motion: Float[Tensor, "frame height width 3"],
    sample: TrainingSample,
) -> dict[str, Value]:
    index = None if sample.object_index is None else sample.object_index.long()
    errors = motion_field_errors(decoded, motion, sample.visibility, index)
    moving = (motion != 0).any(-1).any(0)
    return {
        "R": errors.overall,
        "R interior": errors.interior,
        **{f"R {name}": ratio for name, ratio in errors.by_radius.items()},
        "stillness": errors.still,
        "moving": Ratio(amount=float(moving.sum()), reference=float(moving.numel())),
    }


@torch.no_grad()
def evaluate_depth(provider: DepthProvider, samples: Iterable[TrainingSample]) -> EvaluationReport:
    """Predict depth and field of view from frame 0; one scale per image is free."""
    true_fov_deg: list[float] = []

    def one(sample: TrainingSample) -> dict[str, dict[str, Value]]:
        camera = sample.cameras.frames([0])
        true_fov_deg.append(horizontal_fov_deg(camera))
        predicted = provider.predict(sample.video[0].float() / 255)
        known = predicted.intrinsics
        return {
            "Depth": compare_depth(
                predicted.depth,
                sample.depth,
                torch.ones_like(sample.depth, dtype=torch.bool),
                predicted_camera=None if known is None else replace(camera, intrinsics=known[None]),
                true_camera=camera,
            )
        }

    (rows,) = evaluated(samples, one).values()
    guess = constant_fov_error_deg(torch.tensor(true_fov_deg)) if true_fov_deg else float("nan")
    return EvaluationReport(
        title="Depth, one scale per image",
        columns=DEPTH_COLUMNS,
        rows=tuple(rows),
        notes=(
            f"Best constant field of view: median error {guess:.2f} deg. Constant AbsRel: of the "
            "best constant depth of each image.",
        ),
    )
