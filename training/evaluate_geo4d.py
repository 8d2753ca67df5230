"""What Geo4D gets right on procedural videos that no trainer uses, beside its baselines.

    python -m training.evaluate_geo4d --output runs/geo4d-numbers
    python -m training.evaluate_geo4d --weights runs/tiny-geo4d/more4d_tiny_geo4d.safetensors \
        --device cuda --output runs/geo4d-numbers

Draws videos, reconstructs each of them as `reconstruct` does, with all modalities, with points
alone and with disparity alone (the ablation of arXiv 2504.07961, table 3), and compares the scenes
with the true ones by the protocols of `evaluate`. Prints the tables and what they come to;
`numbers.json` in the output folder holds all of it. Videos of the same settings that are there
already are used again, and so are scenes that the same weights made of them. The exit code is 1 if
a video failed.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from more4d_backend.devices.state import detect_device
from more4d_backend.evaluation import EvaluationReport, save_reports
from more4d_backend.evaluation.benchmarks import (
    BENCHMARKS,
    CONFIDENCE_COLUMNS,
    camera_title,
    confidence_title,
    depth_title,
    evaluate_benchmark,
)
from more4d_backend.evaluation.reconstruction import scene_maker
from more4d_backend.files import replacing
from more4d_backend.geo4d.alignment import AlignmentSettings
from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.pipeline import ReconstructionSettings
from more4d_backend.geo4d.sampling import SamplingSettings
from more4d_backend.geo4d.weight_choice import choose_weights
from more4d_backend.weights.geo4d import load_geo4d

from .geo4d.tiny_settings import HELD_OUT
from .procedural.clips import ClipSettings, write_clip
from .run.command_line import exit_with
from .run.settings import SettingsError

_log = logging.getLogger(__name__)

_FIRST_SEED = HELD_OUT + 1_000_000  # apart from the clips that the trainer looks at
_PROCEDURAL = BENCHMARKS["procedural"]
_FPS = 8.0

ABLATIONS: Mapping[str, AlignmentSettings] = {
    "all": AlignmentSettings(),
    "points": AlignmentSettings.points_only(),
    "disparity": AlignmentSettings.disparity_only(),
}
"""What the alignment is given -> its settings."""
_WITHOUT_CAMERAS = ("disparity",)
"""Disparity alone tells no camera: all of them stand still there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geo4DEvaluation:
    """What is measured."""

    output: Path = Path("runs/geo4d-numbers")
    """Folder for videos, scenes and numbers."""

    weights: Path | None = None
    """Geo4D file. None: the embedded one."""

    num_videos: int = 16
    """Videos, of consecutive seeds."""

    first_seed: int = _FIRST_SEED
    """Of the first video; no trainer uses those from 900 000 000 on."""

    num_frames: int = 32
    """Of a video: several windows."""

    clips: ClipSettings = field(default_factory=ClipSettings)
    """How they are drawn; the camera turns 1 to 3 degrees a frame."""

    num_steps: int | None = None
    """Denoising steps. None: what the weights are made for."""

    mirrored_windows: bool | None = None
    """See each window mirrored, too. None: what the weights are made for."""

    device: str = "cpu"
    """Where the networks run."""

    def __post_init__(self) -> None:
        if self.first_seed < HELD_OUT:
            raise SettingsError(
                f"first_seed is {self.first_seed}; expected {HELD_OUT} or more: trainers may have "
                "seen videos of smaller ones."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What the tables come to; None where a video failed, or nothing was told."""

    rotation_of_still: float | None
    """RPE rotation over that of a camera that stands still."""

    ate_of_line: float | None
    """ATE over that of the best straight line."""

    within: float | None
    """Share of depth within 1.25, after scale and shift per video as published."""

    within_relative: float | None
    """The same after scale and shift that make relative errors least."""

    constant_within: float | None
    """The same of the best constant depth."""

    abs_rel: float | None
    """Mean relative error of depth."""

    errors_by_sigma: tuple[float, ...] | None
    """Relative error of the fifth of pixels with the least sigma, and so on to the most."""

    failed: tuple[str, ...] = ()
    """Videos that were not reconstructed, or not compared."""

    @classmethod
    def of(cls, reports: Sequence[EvaluationReport]) -> "Numbers":
        """Read them off the reports of the procedural benchmark."""
        tables = {report.title: report for report in reports}
        cameras = tables.get(camera_title(_PROCEDURAL))
        depth = tables[depth_title(_PROCEDURAL, _PROCEDURAL.depth.alignment)]
        relative = tables[depth_title(_PROCEDURAL, "scale-shift")]
        confidence = tables.get(confidence_title(_PROCEDURAL))
        groups = [confidence.mean(c.name) for c in CONFIDENCE_COLUMNS] if confidence else []
        known = [group for group in map(_finite, groups) if group is not None]
        return cls(
            rotation_of_still=_finite(cameras and cameras.mean("RPE rotation / still")),
            ate_of_line=_finite(cameras and cameras.mean("ATE / best line")),
            within=_finite(depth.mean("within 1.25")),
            within_relative=_finite(relative.mean("within 1.25")),
            constant_within=_finite(depth.mean("constant within 1.25")),
            abs_rel=_finite(depth.mean("AbsRel")),
            errors_by_sigma=tuple(known) if len(known) == len(CONFIDENCE_COLUMNS) else None,
            failed=tuple(sorted({name for report in reports for name in report.failures})),
        )

    def lines(self) -> list[str]:
        """Say what was aimed at, and whether it is reached."""
        groups = self.errors_by_sigma
        grows = None if groups is None else list(groups) == sorted(groups)
        told = "not told" if groups is None else ", ".join(f"{100 * g:.1f}" for g in groups)
        return [
            _line("rotation RPE / still camera", self.rotation_of_still, "<=", 0.35),
            _line("ATE / best straight line", self.ate_of_line, "<=", 0.5),
            _line("within 1.25, scale and shift as published", self.within, ">=", 0.85),
            f"    the same by least relative errors: {_told(self.within_relative)}",
            _line("within 1.25 of a constant depth", self.constant_within, "<=", 0.6),
            f"error [%] by sigma, five groups: {told}; aim: growing; {_verdict(grows)}",
        ]


def evaluate(evaluation: Geo4DEvaluation) -> dict[str, Numbers]:
    """Measure, print, and return what came out for every choice of modalities."""
    # 1. The networks: weights that cannot be used are refused before anything is drawn.
    detect_device(evaluation.device)
    choice = choose_weights(evaluation.weights)
    _log.info("%s", choice.reason)
    networks = load_geo4d(choice.path, dtype=torch.float32, device=evaluation.device)
    fingerprint = hashlib.sha256(choice.path.read_bytes()).hexdigest()[:12]

    # 2. Videos, their scenes, and the tables.
    truth = truth_folder(evaluation)
    draw_videos(evaluation, truth)
    numbers = {}
    for name in ABLATIONS:
        reports = _reports(evaluation, networks, truth, name, fingerprint)
        for report in reports:
            print(f"{name}\n{report.text()}")
        numbers[name] = Numbers.of(reports)

    # 3. What they come to.
    print("\n".join(["", *numbers["all"].lines(), "", *ablation_lines(numbers)]))
    told = {name: asdict(value) for name, value in numbers.items()}
    with replacing(evaluation.output / "numbers.json") as path:
        made_by = {
            "weights": fingerprint,
            "num_steps": _num_steps(evaluation, networks),
            "mirrored_windows": _mirrored_windows(evaluation, networks),
        }
        path.write_text(json.dumps({**made_by, **told}, indent=2) + "\n")
    return numbers


def truth_folder(evaluation: Geo4DEvaluation) -> Path:
    """Return where the videos lie; those of other settings have a folder of their own."""
    drawn_as = hashlib.sha256(repr(_clip_settings(evaluation)).encode()).hexdigest()[:8]
    return evaluation.output / "truth" / f"{evaluation.num_frames}-frames-{drawn_as}"


def draw_videos(evaluation: Geo4DEvaluation, folder: Path) -> None:
    """Write those videos and true scenes that are not there yet."""
    settings = _clip_settings(evaluation)
    for seed in _seeds(evaluation):
        path = folder / f"{seed}.mkv"
        if not path.with_suffix(".safetensors").is_file():
            write_clip(path, seed, settings, fps=_FPS, device=evaluation.device)


def ablation_lines(numbers: Mapping[str, Numbers]) -> list[str]:
    """Compare all modalities with each alone: what came out, whatever it is."""
    lines = []
    for name, field_name, left_out in (
        ("AbsRel", "abs_rel", ()),
        ("ATE / best straight line", "ate_of_line", _WITHOUT_CAMERAS),
        ("rotation RPE / still camera", "rotation_of_still", _WITHOUT_CAMERAS),
    ):
        values = {c: getattr(n, field_name) for c, n in numbers.items() if c not in left_out}
        told = ", ".join(f"{choice} {_told(value)}" for choice, value in values.items())
        known = [value for value in values.values() if value is not None]
        best = values["all"] == min(known) if len(known) == len(values) else None
        verdict = {None: "not measured", True: "yes", False: "NO"}[best]
        lines.append(f"{name}: {told}; all together are best: {verdict}")
    return lines


def _reports(
    evaluation: Geo4DEvaluation,
    networks: Geo4DNetworks,
    truth: Path,
    name: str,
    fingerprint: str,
) -> list[EvaluationReport]:
    settings = ReconstructionSettings(
        alignment=ABLATIONS[name],
        sampling=SamplingSettings(num_steps=evaluation.num_steps),
        mirrored_windows=evaluation.mirrored_windows,
    )
    made_by = f"{fingerprint}-{_num_steps(evaluation, networks)}-steps"
    made_by += "-mirrored" if _mirrored_windows(evaluation, networks) else ""
    scenes = evaluation.output / "scenes" / truth.name / made_by / name
    benchmark = replace(
        _PROCEDURAL,
        # Not all that lie there: an earlier run may have asked for more.
        names=lambda _folder: tuple(map(str, _seeds(evaluation))),
        tells_cameras=name not in _WITHOUT_CAMERAS,
    )
    reports = evaluate_benchmark(benchmark, truth, scenes, make=scene_maker(networks, settings))
    save_reports(evaluation.output / f"{name}.json", reports)
    return reports


def _clip_settings(evaluation: Geo4DEvaluation) -> ClipSettings:
    return replace(evaluation.clips, num_frames=evaluation.num_frames)


def _seeds(evaluation: Geo4DEvaluation) -> range:
    return range(evaluation.first_seed, evaluation.first_seed + evaluation.num_videos)


def _num_steps(evaluation: Geo4DEvaluation, networks: Geo4DNetworks) -> int:
    return evaluation.num_steps or networks.num_steps


def _mirrored_windows(evaluation: Geo4DEvaluation, networks: Geo4DNetworks) -> bool:
    asked = evaluation.mirrored_windows
    return networks.mirrored_windows if asked is None else asked


def _line(name: str, value: float | None, sign: str, aim: float) -> str:
    reached = None if value is None else (value <= aim if sign == "<=" else value >= aim)
    return f"{name}: {_told(value)}; aim: {sign} {aim:g}; {_verdict(reached)}"


def _verdict(reached: bool | None) -> str:
    return {None: "not measured", True: "reached", False: "NOT reached"}[reached]


def _told(value: float | None) -> str:
    return "NaN" if value is None else f"{value:.3f}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and value == value else None


def _main() -> int:
    """Run the command line; 1 if a video failed with any choice of modalities."""
    import tyro

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    numbers = evaluate(tyro.cli(Geo4DEvaluation))
    return int(any(found.failed for found in numbers.values()))


if __name__ == "__main__":
    exit_with(_main)
