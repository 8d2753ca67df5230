"""Measure embedded weights on held-out procedural scenes: every figure of their card.

    python -m training.evaluate_tiny --device cuda --output card.json
    python -m training.evaluate_tiny --parts depth motion-vae --weights runs/tiny

Seeds from 900 000 000 on were never trained on. Baselines are printed beside. A sample that fails
is named, and makes the means of its table NaN.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from more4d_backend.depth import TinyDepth
from more4d_backend.devices import DeviceRequest
from more4d_backend.devices.state import detect_device
from more4d_backend.evaluation import EvaluationReport, save_reports
from more4d_backend.generation import FileModels
from more4d_backend.generation.model_choice import DEFAULTS, EMBEDDED_SLOTS
from more4d_backend.strag.pipeline import StragSettings
from more4d_backend.tiny import WEIGHTS_FOLDER, relative_path
from more4d_backend.vism.pipeline import VismSettings
from more4d_backend.wan.sampling import SamplingSettings
from more4d_backend.weights.model_loading import load_motion_vae

from .data.samples import TrainingSample
from .evaluation.parts import evaluate_depth, evaluate_motion_vae
from .evaluation.strag import (
    StragEvaluation,
    evaluate_strag,
    evaluate_swapped_captions,
    word_motions,
)
from .evaluation.vism import VismEvaluation, evaluate_vism, pattern_regions
from .procedural.dataset import on_cpu, procedural_sample, procedural_tiny
from .procedural.demo_picture import FIRST_HELD_OUT_SEED
from .procedural.scenes import draw_scene
from .run.command_line import exit_with

_log = logging.getLogger(__name__)

Part = Literal["depth", "motion-vae", "strag", "vism"]

_ORACLE_SEED = 700_000_000
"""What words mean on average is learned from these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyEvaluation:
    """What is measured, and how."""

    parts: tuple[Part, ...] = ("depth", "motion-vae", "strag", "vism")
    """Which parts of the embedded model."""

    weights: Path = WEIGHTS_FOLDER
    """Folder laid out as that of the embedded files."""

    num_samples: int = 32
    """Held-out scenes for each part."""

    num_depth_samples: int = 200
    """Pictures for depth and field of view."""

    num_oracle_samples: int = 400
    """Scenes that tell the oracle what each word does on average."""

    generations: int = 4
    """Scenes that 4D-STraG generates for each sample; the best whole one is told too."""

    num_steps: int = DEFAULTS["embedded"].num_steps
    """Denoising steps."""

    guidance_scale: float = DEFAULTS["embedded"].guidance_scale
    """1 is none."""

    seed: int = FIRST_HELD_OUT_SEED
    """Of the first scene; the others follow it."""

    device: str = "cpu"
    """Where networks run and rays are cast."""

    output: Path | None = None
    """JSON file for all figures."""

    def samples(
        self, count: int, *, first: int = 0, novel: bool = False
    ) -> Iterator[TrainingSample]:
        """Make samples, one after the other."""
        settings = procedural_tiny()
        settings = settings if novel else replace(settings, novel_paths=())
        for seed in range(self.seed + first, self.seed + first + count):
            yield on_cpu(procedural_sample(seed, settings, device=self.device))

    def file(self, name: str) -> Path:
        """Return where an embedded file lies in `weights`."""
        return self.weights / relative_path(name)

    def models(self) -> FileModels:
        """Return the pipelines of these weights."""
        defaults = DEFAULTS["embedded"]
        return FileModels(
            files={slot: self.file(name) for slot, name in EMBEDDED_SLOTS.items()},
            profile=defaults.profile,
            lora_weight=defaults.lora_weight,
            request=DeviceRequest(device=self.device),
        )

    def sampling(self) -> SamplingSettings:
        """Return how both transformers are sampled."""
        return SamplingSettings(num_steps=self.num_steps, guidance_scale=self.guidance_scale)


def _depth(told: TinyEvaluation) -> list[EvaluationReport]:
    provider = TinyDepth.load(told.file("depth"), device=told.device)
    return [evaluate_depth(provider, told.samples(told.num_depth_samples))]


def _motion_vae(told: TinyEvaluation) -> list[EvaluationReport]:
    profile = DEFAULTS["embedded"].profile
    motion_vae = load_motion_vae(
        told.file("motion_vae"),
        profile.latents,
        encoder=told.file("wan_vae"),
        dtype=torch.float32,
        device=told.device,
    )
    samples = told.samples(told.num_samples)
    return evaluate_motion_vae(motion_vae, samples, profile, device=told.device)


def _strag(told: TinyEvaluation) -> list[EvaluationReport]:
    size = procedural_tiny().size
    frames, size_hw = size.num_frames, (size.height, size.width)
    evaluation = StragEvaluation(
        settings=StragSettings(num_frames=frames, size_hw=size_hw, sampling=told.sampling()),
        num_samples=told.generations,
    )
    first = _ORACLE_SEED - told.seed
    known = told.samples(told.num_oracle_samples, first=first)
    oracle = word_motions(known, DEFAULTS["embedded"].profile.motion)
    with told.models().strag(frames, size_hw) as pipeline:
        samples = list(told.samples(told.num_samples))
        swapped = replace(evaluation, num_samples=1)
        return [
            *evaluate_strag(pipeline, samples, evaluation, oracle),
            evaluate_swapped_captions(pipeline, samples, swapped, oracle),
        ]


def _vism(told: TinyEvaluation) -> list[EvaluationReport]:
    settings = procedural_tiny()
    size = settings.size
    worlds = {
        f"procedural-{seed:09d}": draw_scene(seed, settings).world
        for seed in range(told.seed, told.seed + told.num_samples)
    }
    evaluation = VismEvaluation(settings=VismSettings(sampling=told.sampling()))
    with told.models().vism(size.num_frames, (size.height, size.width)) as pipeline:
        samples = told.samples(told.num_samples, novel=True)
        regions = pattern_regions(lambda sample: worlds[sample.name])
        return evaluate_vism(pipeline, samples, evaluation, regions)


_PARTS: dict[Part, Callable[[TinyEvaluation], list[EvaluationReport]]] = {
    "depth": _depth,
    "motion-vae": _motion_vae,
    "strag": _strag,
    "vism": _vism,
}


def evaluate_tiny(told: TinyEvaluation) -> list[EvaluationReport]:
    """Evaluate the parts that were asked for, printing each table as it is done."""
    detect_device(told.device)
    reports = []
    for part in told.parts:
        for report in _PARTS[part](told):
            sys.stdout.write(report.text() + "\n")
            sys.stdout.flush()
            reports.append(report)
    if told.output is not None:
        save_reports(told.output, reports)
    return reports


if __name__ == "__main__":
    import tyro

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    exit_with(lambda: int(any(r.failures for r in evaluate_tiny(tyro.cli(TinyEvaluation)))))
