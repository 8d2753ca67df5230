"""The configuration of the Geo4D trainers, and recipes for it.

| recipe | what it is |
|---|---|
| released | the published hyperparameters, at full size, on data sets from disk |
| tiny | the embedded network on procedural clips, for one small GPU, a laptop or a test |

Published are AdamW, a learning rate of 1e-5, batches of 32, 16 frames with strides 1 to 3, the
order of the stages and the shares of the data sets. How many updates each stage took is not.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from more4d_backend.geo4d.framing import RELEASED_SIZES_HW

from ..procedural.clips import ClipSettings, ProceduralClips
from ..run.settings import OptimizerSettings, RunSettings, SettingsError
from .clips import GeometryClip
from .datasets import PUBLISHED_SHARES, ClipChoice, MixedClips, point_odyssey, tartanair
from .objectives import ModalityWeights

Geo4DSizeName = Literal["full", "tiny", "toy"]

POINTS_ONLY = ModalityWeights(ray_directions=0, ray_moments=0, disparity=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSources:
    """What to train on: each data set that is given, as often as its share says."""

    point_odyssey: Path | None = None
    """Folder of PointOdyssey."""

    tartanair: Path | None = None
    """Folder of TartanAir."""

    point_odyssey_share: float = PUBLISHED_SHARES["point_odyssey"]
    """Relative to the other shares."""

    tartanair_share: float = PUBLISHED_SHARES["tartanair"]
    """Relative to the other shares."""

    procedural_share: float = 0.0
    """Of procedural clips; 0: none."""

    procedural: ClipSettings = field(default_factory=ClipSettings)
    """How these are drawn."""

    clips: ClipChoice = field(default_factory=ClipChoice)
    """Which frames make a clip of the others."""

    num_clips: int = 1_000_000
    """Clips of an epoch."""

    num_workers: int = 8
    """Processes that read, per rank."""

    def dataset(self, seed: int) -> Dataset[GeometryClip]:
        """Open everything and mix it.

        Raises:
            SettingsError: nothing is given.
            SampleError: a folder holds no sequence.
        """
        parts: list[tuple[Dataset[GeometryClip], float]] = []
        if self.point_odyssey is not None:
            parts.append((point_odyssey(self.point_odyssey, self.clips), self.point_odyssey_share))
        if self.tartanair is not None:
            parts.append((tartanair(self.tartanair, self.clips), self.tartanair_share))
        if self.procedural_share > 0:
            parts.append((ProceduralClips(self.procedural), self.procedural_share))
        if not parts:
            raise SettingsError(
                "There is nothing to train on. Name data sets (--data.point-odyssey, "
                "--data.tartanair), or set --data.procedural-share above 0."
            )
        return MixedClips(parts, self.num_clips, seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Some updates in a row with the same modalities and sizes."""

    share: float
    """Of the run's updates, relative to the other stages' shares."""

    sizes_hw: tuple[tuple[int, int], ...]
    """Heights and widths; each batch has one of them."""

    weights: ModalityWeights = field(default_factory=ModalityWeights)
    """Of the modalities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geo4DConfig:
    """Everything that decides a training of the denoiser or of the point decoder."""

    run: RunSettings
    """See `RunSettings`."""

    data: ClipSources
    """See `ClipSources`."""

    optimizer: OptimizerSettings
    """See `OptimizerSettings`."""

    size: Geo4DSizeName
    """Of networks that begin with random values."""

    stages: tuple[Stage, ...]
    """One after the other."""

    weights: Path | None = None
    """A Geo4D file to begin with: converted, or trained. None: random values."""

    frames_per_clip: int = 16
    """The point decoder sees each by itself: the first so many of a clip."""

    def __post_init__(self) -> None:
        shares = [stage.share for stage in self.stages]
        if not shares or not all(share > 0 for share in shares):
            raise SettingsError(
                f"stages have the shares {shares}; expected at least one stage, and positive ones."
            )
        if self.frames_per_clip < 1:
            raise SettingsError(f"frames_per_clip is {self.frames_per_clip}; expected at least 1.")

    def stage_at(self, step: int) -> Stage:
        """Return the stage of the update after `step` updates."""
        whole, end = sum(stage.share for stage in self.stages), 0.0
        for stage in self.stages:
            end += stage.share
            if step < round(end / whole * self.run.num_steps):
                return stage
        return self.stages[-1]


def denoiser_released(output: Path) -> Geo4DConfig:
    """Published: points at 320x512, then all sizes, then rays and disparity. 8 clips on 4 GPUs."""
    all_sizes = RELEASED_SIZES_HW
    return Geo4DConfig(
        run=RunSettings(
            output=output, num_steps=60_000, batch_size=8, checkpoint_every=500, validate_every=0
        ),
        data=ClipSources(),
        optimizer=OptimizerSettings(learning_rate=1e-5, weight_decay=1e-2, warmup_steps=100),
        size="full",
        stages=(
            Stage(share=2, sizes_hw=((320, 512),), weights=POINTS_ONLY),
            Stage(share=1, sizes_hw=all_sizes, weights=POINTS_ONLY),
            Stage(share=1, sizes_hw=all_sizes, weights=ModalityWeights(disparity=0)),
            Stage(share=2, sizes_hw=all_sizes),
        ),
    )


def denoiser_tiny(output: Path) -> Geo4DConfig:
    """The embedded one: the same stages on procedural clips of 96x128."""
    some_sizes = ((96, 128), (80, 128))
    return Geo4DConfig(
        run=RunSettings(
            output=output,
            num_steps=6000,
            batch_size=32,
            ema_decay=0.998,
            gradient_checkpointing=False,
            checkpoint_every=1000,
            validate_every=0,
        ),
        data=ClipSources(procedural_share=1.0),
        optimizer=OptimizerSettings(learning_rate=1e-3, weight_decay=1e-3, warmup_steps=100),
        size="tiny",
        stages=(
            Stage(share=0.1, sizes_hw=((96, 128),), weights=POINTS_ONLY),
            Stage(share=0.07, sizes_hw=some_sizes, weights=POINTS_ONLY),
            Stage(share=0.83, sizes_hw=some_sizes),
        ),
    )


def point_decoder_released(output: Path) -> Geo4DConfig:
    """The encoder is frozen, as published; how long it took is not published."""
    return Geo4DConfig(
        run=RunSettings(
            output=output, num_steps=20_000, batch_size=2, checkpoint_every=500, validate_every=0
        ),
        data=ClipSources(),
        optimizer=OptimizerSettings(learning_rate=1e-5, weight_decay=1e-2, warmup_steps=100),
        size="full",
        stages=(Stage(share=1, sizes_hw=RELEASED_SIZES_HW),),
        frames_per_clip=4,
    )


def point_decoder_tiny(output: Path) -> Geo4DConfig:
    """The embedded one: name its file with `--weights`, or its encoder is random too."""
    return Geo4DConfig(
        run=RunSettings(
            output=output,
            num_steps=3000,
            batch_size=16,
            gradient_checkpointing=False,
            checkpoint_every=1000,
            validate_every=0,
        ),
        data=ClipSources(procedural_share=1.0),
        optimizer=OptimizerSettings(learning_rate=5e-4, weight_decay=1e-3, warmup_steps=100),
        size="tiny",
        stages=(Stage(share=1, sizes_hw=((96, 128), (80, 128))),),
        frames_per_clip=4,
    )


GEO4D_RECIPES: dict[str, dict[str, Callable[[Path], Geo4DConfig]]] = {
    "geo4d": {"released": denoiser_released, "tiny": denoiser_tiny},
    "geo4d_points": {"released": point_decoder_released, "tiny": point_decoder_tiny},
}
"""Trainer -> recipe -> its function of the output folder."""


def parse_geo4d_config(trainer: str, args: Sequence[str] | None = None) -> Geo4DConfig:
    """Read a config from the command line; prepare the log. Output: `runs/<trainer>`."""
    try:
        import tyro
    except ImportError as e:
        raise ImportError(f"Training needs tyro: pip install tyro ({e}).") from e
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    choices = {
        name: ((recipe.__doc__ or "").strip(), recipe(Path("runs") / trainer))
        for name, recipe in GEO4D_RECIPES[trainer].items()
    }
    return tyro.extras.overridable_config_cli(
        choices, prog=f"python -m training.train_{trainer}", args=args
    )
