"""`evaluate` and `published`: predictions against the truth, and beside what others published."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from ..evaluation.depth import Alignment
from ..wording import counted
from .console import progress_bar

if TYPE_CHECKING:
    from ..evaluation import EvaluationReport
    from ..evaluation.benchmarks import Make

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Compare predicted scenes, videos and depth maps with the truth; print tables.

    Give two folders whose files have the same names, a manifest, or a benchmark with its data set
    as --truth and scenes of `reconstruct` as --predicted (docs/evaluation.md). A sample that fails
    is named, and makes the means of its table NaN.
    """

    predicted: Path | None = None
    """Folder of predictions: scenes (.safetensors), videos, depth maps."""

    truth: Path | None = None
    """Folder of truths with the same names, or of the benchmark's data set."""

    manifest: Path | None = None
    """JSON file that pairs them instead."""

    benchmark: Literal["sintel", "tum-dynamics", "procedural"] | None = None
    """Depth and cameras of videos, by the published protocols."""

    reconstruct: bool = False
    """Of the benchmark: reconstruct videos that have no scene in --predicted yet, by Geo4D. Nothing
    is cropped (--fit pad), because every pixel counts."""

    weights: Path | None = None
    """Of --reconstruct: Geo4D weights (.safetensors). Default: the small embedded ones."""

    depth_alignment: Alignment = "scale"
    """What is fitted per sequence before depth is compared; a benchmark has its own."""

    device: str = "cpu"
    """Where to compute."""

    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """JSON file for all figures."""

    def run(self) -> int:
        """Evaluate; 1 if a sample failed."""
        from ..evaluation import save_reports

        self._check()
        reports = self._of_files() if self.benchmark is None else self._of_benchmark()
        for report in reports:
            sys.stdout.write(report.text() + "\n")
        if self.output is not None:
            save_reports(self.output, reports)
            LOGGER.info("Wrote %s.", self.output)
        return 1 if any(report.failures for report in reports) else 0

    def _check(self) -> None:
        folders = (self.predicted is not None, self.truth is not None)
        if all(folders) if self.manifest is None else not any(folders):
            if self.manifest is not None and self.benchmark is not None:
                raise ValueError("A benchmark needs --predicted and --truth, not --manifest.")
            if self.benchmark is None and (self.reconstruct or self.weights is not None):
                raise ValueError("--reconstruct and --weights only go with --benchmark.")
            if self.weights is not None and not self.reconstruct:
                raise ValueError("--weights only go with --reconstruct: nothing else needs them.")
            return
        raise ValueError("Give --predicted FOLDER and --truth FOLDER, or --manifest FILE.")

    def _of_files(self) -> "list[EvaluationReport]":
        from ..devices import detect_device
        from ..evaluation import evaluate, pairs_of_folders, read_manifest

        detect_device(self.device)
        if self.manifest is not None:
            pairs = read_manifest(self.manifest)
        else:
            assert self.predicted is not None  # checked
            assert self.truth is not None
            pairs = pairs_of_folders(self.predicted, self.truth)
        with progress_bar("evaluate") as progress:
            return evaluate(
                pairs,
                depth_alignment=self.depth_alignment,
                device=self.device,
                progress=progress,
            )

    def _of_benchmark(self) -> "list[EvaluationReport]":
        from ..evaluation.benchmarks import BENCHMARKS, evaluate_benchmark

        assert self.benchmark is not None  # checked
        assert self.predicted is not None
        assert self.truth is not None
        make = self._reconstruction() if self.reconstruct else None
        there = len(list(self.predicted.glob("*.safetensors")))
        if make is not None and there:
            LOGGER.warning(
                "%s in %s already: compared as they are, whatever weights made them.",
                counted(there, "scene"),
                self.predicted,
            )
        with progress_bar("evaluate") as progress:
            return evaluate_benchmark(
                BENCHMARKS[self.benchmark], self.truth, self.predicted, make=make, progress=progress
            )

    def _reconstruction(self) -> "Make":
        from ..devices import detect_device
        from ..evaluation.reconstruction import scene_maker
        from ..geo4d.weight_choice import choose_weights
        from ..weights.geo4d import load_geo4d

        choice = choose_weights(self.weights)
        (LOGGER.warning if choice.embedded else LOGGER.info)("%s", choice.reason)
        state = detect_device(self.device)
        return scene_maker(load_geo4d(choice.path, dtype=state.dtype, device=state.device))


@dataclass(frozen=True, kw_only=True)
class Published:
    """Print the published tables of video depth and cameras, with a row of ours.

    Our cells come from result files that `evaluate --benchmark NAME --output FILE` wrote; what is
    in none of them is not measured, and says so.
    """

    results: Positional[tuple[Path, ...]] = ()
    """Result files."""

    def run(self) -> int:
        """Print."""
        from ..evaluation.published import published_text, read_results

        sys.stdout.write(published_text(read_results(self.results)))
        return 0
