"""`evaluate`: predicted scenes, videos or depth maps against the truth."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from ..evaluation.depth import Alignment
from .console import progress_bar

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Compare predicted scenes, videos and depth maps with the truth; print tables.

    Give two folders whose files have the same names, or a manifest (docs/evaluation.md). A sample
    that fails is named, and makes the means of its table NaN.
    """

    predicted: Path | None = None
    """Folder of predictions: scenes (.safetensors), videos, depth maps."""

    truth: Path | None = None
    """Folder of truths with the same names."""

    manifest: Path | None = None
    """JSON file that pairs them instead."""

    depth_alignment: Alignment = "scale"
    """What is fitted per sequence before depth is compared."""

    device: str = "cpu"
    """Where to compute."""

    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """JSON file for all figures."""

    def run(self) -> int:
        """Evaluate; 1 if a sample failed."""
        from ..evaluation import evaluate, pairs_of_folders, read_manifest, save_reports

        if self.manifest is not None and self.predicted is None and self.truth is None:
            pairs = read_manifest(self.manifest)
        elif self.manifest is None and self.predicted is not None and self.truth is not None:
            pairs = pairs_of_folders(self.predicted, self.truth)
        else:
            raise ValueError("Give --predicted FOLDER and --truth FOLDER, or --manifest FILE.")
        with progress_bar("evaluate") as progress:
            reports = evaluate(
                pairs,
                depth_alignment=self.depth_alignment,
                device=self.device,
                progress=progress,
            )
        for report in reports:
            sys.stdout.write(report.text() + "\n")
        if self.output is not None:
            save_reports(self.output, reports)
            LOGGER.info("Wrote %s.", self.output)
        return 1 if any(report.failures for report in reports) else 0
