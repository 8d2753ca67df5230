"""What a run tells: its settings, and its metrics in a file and in a tracker."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from more4d_backend.files import replacing

from .settings import SettingsError, Tracker

if TYPE_CHECKING:
    from accelerate import Accelerator


def check_tracker(tracker: Tracker) -> None:
    """Refuse a tracker that accelerate would silently leave out.

    Raises:
        SettingsError: its package is not installed.
    """
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise SettingsError(
            f"run.tracker is {tracker!r}, which is not installed: pip install {tracker}, or set "
            "run.tracker to none."
        )


class RunRecords:
    """`config.json` and `metrics.jsonl` of a run, written by rank 0, and its tracker."""

    def __init__(
        self, accelerator: "Accelerator", output: Path, config: Mapping[str, Any], step: int
    ) -> None:
        """Begin, or go on at `step`: what was recorded after it will be done again."""
        self._accelerator = accelerator
        self._metrics = output / "metrics.jsonl"
        # Plain values only: the trackers' tables take nothing else.
        about = {"recipe": json.dumps(config), "ranks": accelerator.num_processes}
        accelerator.init_trackers("metrics", config=about)
        if accelerator.is_main_process:
            output.mkdir(parents=True, exist_ok=True)
            with replacing(output / "config.json") as temporary:
                temporary.write_text(json.dumps(config, indent=1), encoding="utf-8")
            if self._metrics.exists():
                self._keep_until(step)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add metrics of a step."""
        if self._accelerator.is_main_process:
            line = json.dumps({"step": step, **metrics})
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        self._accelerator.log(dict(metrics), step=step)

    def _keep_until(self, step: int) -> None:
        # A killed run may have left half a line at the end.
        whole = (line for line in self._metrics.read_text(encoding="utf-8").split("\n")[:-1])
        kept = [line + "\n" for line in whole if json.loads(line)["step"] <= step]
        with replacing(self._metrics) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
