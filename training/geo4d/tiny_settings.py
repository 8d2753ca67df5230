"""How the embedded Geo4D is trained: `train_tiny_geo4d`."""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch

from more4d_backend.geo4d.sizes import LARGEST_CAMERA_WEIGHT, Geo4DSize

from ..procedural.clips import ClipSettings
from ..run.settings import SettingsError
from ..run.time_boxes import Updates
from .objectives import ModalityWeights

SEEDS_APART = 1_000_000
"""The clips of training seed s begin at s times this."""
HELD_OUT = 900_000_000
"""No trainer uses seeds from here on."""

_AT_LEAST_ONE = (
    *("pool_size", "variants", "vae_steps", "vae_clips", "unet_steps", "unet_windows"),
    "evaluated_clips",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEnds:
    """When each phase has to be over, as a share of all minutes; what is early helps the next."""

    clips: float = 0.16
    """Drawing clips."""

    vae: float = 0.46
    """Training the VAE."""

    latents: float = 0.57
    """Encoding clips."""

    unet: float = 0.95
    """Training the UNet. Then it is measured."""

    def __post_init__(self) -> None:
        ends = (0.0, self.clips, self.vae, self.latents, self.unet, 1.0)
        if any(a >= b for a, b in pairwise(ends)):
            raise SettingsError(f"The ends of the phases are {ends}; expected rising shares.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyGeo4DTraining:
    """How the embedded network is trained."""

    output: Path = Path("runs/tiny-geo4d")
    """Folder for the weights."""

    start: Path | None = None
    """A Geo4D file whose VAE is taken as it is, and whose UNet is trained on. None: from
    nothing."""

    clips: ClipSettings = field(default_factory=lambda: ClipSettings(num_frames=32))
    """What is drawn. Clips may have more frames than the network sees at one time: such windows
    begin anywhere in them. A clip of 32 frames takes 2.4 MB on the device."""

    minutes: float | None = 8.0
    """Of everything. None: no limit, so that the numbers below decide, and a second run makes the
    same weights."""

    phase_ends: PhaseEnds = field(default_factory=PhaseEnds)
    """Of the minutes."""

    pool_size: int = 6000
    """Clips that are drawn, at most."""

    variants: int = 6
    """Windows of each clip, at most: as it is, mirrored, backwards, in other colours. The latents
    of one take 0.5 MB on the device."""

    vae_steps: int = 6000
    """Updates of the VAE, at most."""

    vae_clips: int = 10
    """Clips of one update of the VAE; three frames of each."""

    unet_steps: int = 30_000
    """Updates of the UNet, at most."""

    unet_windows: int = 64
    """Windows of one update of the UNet."""

    learning_rate: float = 1.5e-3
    """At its highest."""

    points_share: float = 0.05
    """Of the UNet's training: the first part, on point maps alone."""

    one_step_share: float = 0.5
    """Of the UNet's training: the first part, on pure noise alone. A small network learns to use
    the video several times as fast so; what is left is for removing noise in steps."""

    noise_share: float = 0.5
    """Then, of the windows that are pure noise; of the rest, half are at the timesteps that
    sampling goes through, and half at any."""

    modality_weights: ModalityWeights = field(default_factory=ModalityWeights)
    """How much the relative error of each modality's latents counts in the UNet's training."""

    seed: int = 1
    """Of parameters and data."""

    device: str = "cuda"
    """Where."""

    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the computation; parameters are float32."""

    workers: int = 12
    """Processes that draw clips; 0: this one."""

    camera_weight: float = 0.5
    """How much the cameras of ray maps count where windows of these weights are aligned; written
    to the file. A hundred times the paper's: a network this small tells cameras better by its rays;
    `evaluate_geo4d` measures it."""

    mirrored_windows: bool = True
    """Whether the file says that each window is to be seen mirrored, too."""

    ema_decay: float = 0.998
    """Of the running mean of the parameters, which is what is written."""

    evaluated_clips: int = 64
    """Clips that were not trained on, to measure on."""

    compile: bool = False
    """Compile the UNet: a minute or two slower to start, faster per update."""

    cuda_graphs: bool = False
    """Record the UNet's kernels and replay them, which saves launching each of them anew; with
    `compile` the compiled ones."""

    def __post_init__(self) -> None:
        if self.minutes is not None and not self.minutes > 0:
            raise SettingsError(f"minutes is {self.minutes}; expected more than 0, or none.")
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.seed < 0 or self.seed >= HELD_OUT // SEEDS_APART:
            raise SettingsError(
                f"seed is {self.seed}; expected 0 to {HELD_OUT // SEEDS_APART - 1}: the clips "
                "beyond are held out."
            )
        if not 0 <= self.camera_weight <= LARGEST_CAMERA_WEIGHT:
            raise SettingsError(
                f"camera_weight is {self.camera_weight}; expected 0 to {LARGEST_CAMERA_WEIGHT:g}."
            )
        if not self.modality_weights.points and self.points_share > 0:
            raise SettingsError(
                f"modality_weights.points is 0 and points_share is {self.points_share}: nothing "
                "would count in that share. Set one of them otherwise."
            )
        if self.cuda_graphs and torch.device(self.device).type != "cuda":
            raise SettingsError(
                f"cuda_graphs is on and device is {self.device}; expected a CUDA device."
            )

    def check_clips(self, size: Geo4DSize) -> None:
        """Refuse clips that networks of a size cannot be shown, before they are drawn.

        Raises:
            SettingsError: names what does not fit.
        """
        (height, width), step = self.clips.size_hw, size.pixel_step
        if self.clips.num_frames < size.num_frames:
            raise SettingsError(
                f"clips have {self.clips.num_frames} frames; expected {size.num_frames} or more, "
                "which the network sees at one time."
            )
        if min(height, width) < step or height % step or width % step:
            raise SettingsError(
                f"clips have {height} x {width} pixels; expected multiples of {step}."
            )

    def autocast(self) -> torch.autocast:
        """Compute in bfloat16 inside, where the settings say so."""
        device = torch.device(self.device).type
        return torch.autocast(
            device,
            torch.bfloat16,
            enabled=self.precision == "bf16",
            cache_enabled=not self.cuda_graphs,  # what is recorded must cast weights anew
        )

    @property
    def updates(self) -> Updates:
        """How the parameters of both networks are updated."""
        return Updates(
            learning_rate=self.learning_rate, ema_decay=self.ema_decay, autocast=self.autocast
        )

    def seconds_until(self, end: float, elapsed: float) -> float:
        """Return how long a phase may take that ends at a share of the minutes."""
        if self.minutes is None:
            return math.inf
        return max(60 * self.minutes * end - elapsed, 1e-3)
