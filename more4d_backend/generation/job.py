"""The whole job as a numbered story: depth, motion, camera paths, renders, completed videos."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from .kept_networks import KeptDepth, KeptPipeline
from .models import Models
from .settings import CameraOutputs, DepthSource, GenerationSettings, Item, Outcome, Report
from .stages import (
    Run,
    camera_outputs,
    complete_cameras,
    generate_scene,
    lift,
    open_run,
    render_cameras,
    write_sheet,
)

_log = logging.getLogger(__name__)

_RUNS_AT_ONCE = 10
"""Images that go through the stages side by side: loading is a small part then, and neither the
first results nor a network that does not fit wait for the last image."""

_Attempt = Callable[[list[Run], Callable[[Run], None]], list[Run]]
"""Takes each run through a stage; returns those that go on."""


def image_to_4d_video(
    image: Float[Tensor, "height width 3"],
    depth: DepthSource,
    models: Models,
    settings: GenerationSettings,
    folder: Path,
    *,
    report: Report = lambda _: None,
) -> list[CameraOutputs]:
    """Make a moving scene of an image (sRGB in [0, 1]) and films of it; write all into `folder`.

    Writes scene.safetensors, per camera the rendered video, the hole mask and the completed
    video, contact-sheet.png and run.json. A stage whose inputs have not changed since an earlier
    run into the same folder is reused.

    Raises:
        PromptError, CameraPathError: refused before anything is made.
        ValueError, OSError, MemoryError: a stage cannot be done; earlier stages stay reusable.
    """

    def attempt(runs: list[Run], stage: Callable[[Run], None]) -> list[Run]:
        for run in runs:
            stage(run)
        return runs

    item = Item(load_image=lambda: image, depth=depth, settings=settings, folder=folder)
    run = Run.of(item, models, report)
    _run_stages([run], models, attempt)
    return camera_outputs(run)


def images_to_4d_videos(
    items: Sequence[Item],
    models: Models,
    *,
    report: Report = lambda _: None,
    done: Callable[[Item, Outcome], None] = lambda *_: None,
) -> list[Outcome]:
    """Do for many images what `image_to_4d_video` does for one; load networks once for ten of them.

    A network is loaded once more for another size or after a failure. An image that fails, also by
    an exception that `report` raises, is left out of the later stages, and the others go on; `done`
    is told of ten at a time. What is finished when the batch is interrupted will be reused.
    """
    errors: dict[Run, str] = {}

    def attempt(runs: list[Run], stage: Callable[[Run], None]) -> list[Run]:
        for run in runs:
            try:
                stage(run)
            except Exception as e:  # a batch goes on; every failure is logged and returned
                _log.exception("%s failed.", run.item.name or run.item.folder)
                # Its words only: its traceback would keep networks and tensors in memory.
                errors[run] = str(e) or type(e).__name__
        return [run for run in runs if run not in errors]

    runs = [Run.of(item, models, report) for item in items]
    outcomes: list[Outcome] = []
    for start in range(0, len(runs), _RUNS_AT_ONCE):
        some = runs[start : start + _RUNS_AT_ONCE]
        _run_stages(some, models, attempt)
        for run in some:
            failed = run in errors
            outcome = Outcome(outputs=[] if failed else camera_outputs(run), error=errors.get(run))
            outcomes.append(outcome)
            done(run.item, outcome)
    return outcomes


def _run_stages(runs: list[Run], models: Models, attempt: _Attempt) -> None:
    with ExitStack() as locks:
        # 1. Refuse what cannot work before anything slow starts.
        runs = attempt(runs, lambda run: open_run(run, locks))
        # 2. Depth: where the points start.
        with KeptDepth() as depth:
            runs = attempt(runs, lambda run: lift(run, depth))
        # 3. Motion: where they go.
        with KeptPipeline("4D-STraG", models.strag) as strag:
            runs = attempt(runs, lambda run: generate_scene(run, strag))
        # 4. Per camera: what is seen, and what is missing.
        runs = attempt(runs, render_cameras)
        # 5. Fill what is missing.
        with KeptPipeline("4D-ViSM", models.vism) as vism:
            runs = attempt(runs, lambda run: complete_cameras(run, vism))
        # 6. One picture of all.
        attempt(runs, write_sheet)
