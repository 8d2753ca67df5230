"""Scenes for benchmarks, where they are not at hand yet."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..geo4d.model import Geo4DNetworks
from ..geo4d.pipeline import ReconstructionSettings, reconstruct
from ..scene_files import save_scene
from .benchmark_readers import TrueVideo

_log = logging.getLogger(__name__)


def scene_maker(
    networks: Geo4DNetworks, settings: ReconstructionSettings | None = None
) -> Callable[[TrueVideo, Path], None]:
    """Return what reconstructs a video of a benchmark and writes its scene.

    Whole pictures are seen, whatever the settings say (fit "pad"): every pixel counts.
    """
    whole = replace(settings or ReconstructionSettings(), fit="pad")

    def make(true: TrueVideo, path: Path) -> None:
        result = reconstruct(true.video(), networks, whole)
        save_scene(path, result.scene)
        _log.info("%s: %s", true.name, result.report.summary())

    return make
