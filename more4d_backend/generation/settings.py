"""What is asked for of one image, and what comes of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from ..camera_paths import PathSettings
from ..camera_paths.sources import check_source
from ..depth import DepthProvider
from ..rendering import RenderSettings
from ..strag.pipeline import StragSettings
from ..vism.pipeline import VismSettings
from ..wan.latents import check_video_size
from ..wan.sampling import Progress
from ..wan.text import check_prompt
from ..wan.windows import plan_windows

_MAX_SEED = 2**63

Report = Callable[[str], Progress | None]
"""Gives the progress callback of a stage that begins; raising from it interrupts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthSource:
    """Where the depth of the image comes from."""

    load: Callable[[], DepthProvider]
    """Makes the provider, a file or a network, when depth is really needed. The images of a batch
    whose `name` and `files` are the same share one."""

    name: str
    """Tells this provider and its weights from others, so that its result can be reused."""

    files: tuple[Path, ...] = ()
    """Files that decide the depth: the depth file, the intrinsics."""

    fov_rad: float | None = None
    """Horizontal field of view, where the provider knows none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """Everything that decides the result, but for the image, its depth and the weights."""

    prompt: str
    """What the scene shows and what moves in it, in which direction."""

    cameras: tuple[str, ...] = ("orbit-left",)
    """Camera paths by name, keyframe files or camera files."""

    seed: int = 0
    """Of the motion; each camera's completion takes the next number."""

    strag: StragSettings = field(default_factory=StragSettings)
    """How motion is generated."""

    vism: VismSettings = field(default_factory=VismSettings)
    """How holes are filled."""

    path: PathSettings = field(default_factory=PathSettings)
    """How far and how evenly cameras move."""

    render: RenderSettings = field(default_factory=RenderSettings)
    """How the scene is drawn."""

    grow_holes_px: int = 1
    """Holes are grown by this, so that no half-covered pixel counts as known."""

    complete: bool = True
    """Fill the holes; False stops at the renders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One image, and all that is asked for of it but the weights."""

    load_image: Callable[[], Float[Tensor, "height width 3"]]
    """Reads the image (sRGB in [0, 1]) when its turn comes: a batch may be larger than memory."""

    depth: DepthSource
    """Where its depth comes from."""

    settings: GenerationSettings
    """Everything else."""

    folder: Path
    """Where its results are written."""

    name: str = ""
    """What the log calls it, where there are several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraOutputs:
    """Files of one camera path."""

    label: str
    """Name of the path."""

    rendered: Path
    """Video of the scene, without loss."""

    holes: Path
    """Hole mask, white = to be filled, without loss."""

    completed: Path | None
    """Video with the holes filled; None where that was not asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one image of a batch."""

    outputs: list[CameraOutputs]
    """Its files; none where it failed."""

    error: str | None = None
    """Why it failed."""


def check_settings(settings: GenerationSettings) -> None:
    """Refuse what cannot work, before anything slow starts.

    Raises:
        PromptError, CameraPathError, ValueError: names the value that is wrong.
    """
    check_prompt(settings.prompt)
    for source in settings.cameras:
        check_source(source)
    strag, vism = settings.strag, settings.vism
    check_video_size(strag.num_frames, *strag.size_hw)
    plan_windows(strag.num_frames, vism.window_frames, vism.overlap_frames)
    if not 0 <= settings.seed < _MAX_SEED:
        raise ValueError(f"seed is {settings.seed}; expected 0 to {_MAX_SEED - 1}.")
    if strag.max_depth is not None and not strag.max_depth > 0:
        raise ValueError(f"max_depth is {strag.max_depth}; expected a positive number.")
