"""What procedural samples are drawn from."""

from dataclasses import dataclass

from more4d_backend.camera_paths import check_path_name
from more4d_backend.synthetic.layout import SETTINGS

from ..data.samples import MotionFamily, SampleSize
from ..run.settings import SettingsError
from .actors import COLORS, KINDS, PATTERNS


@dataclass(frozen=True, slots=True, kw_only=True)
class ProceduralSettings:
    """What is drawn. Ranges are uniform unless it says otherwise."""

    size: SampleSize
    """Of the samples; 5 frames or more."""

    fps: float = 8.0
    """Frames per second. Motions fill the clip, so this changes nothing that is seen."""

    fov_deg: tuple[float, float] = (35.0, 75.0)
    """Field of view across the longer side."""

    num_actors: tuple[int, int] = (2, 4)
    """Fewest and most; at least two of them move, each by another word."""

    radius: tuple[float, float] = (0.05, 0.2)
    """Half size of an actor as a share of the picture's shorter side, logarithmic: at 128 pixels
    6 to 26, and half of them under 12."""

    speed_spread: float = 0.4
    """Unsaid speed and amplitude are the word's mean times 1 +- this."""

    max_moving_share: float = 0.15
    """Of the pixels of frame 0, those on actors that move."""

    settings: tuple[str, ...] = SETTINGS
    """Kinds of scenery: `room`, `landscape`."""

    kinds: tuple[str, ...] = tuple(KINDS)
    """Nouns of actors."""

    patterns: tuple[str, ...] = tuple(PATTERNS)
    """Textures of actors, in words."""

    families: tuple[MotionFamily, ...] = (
        *("translation", "translation", "translation", "spin", "spin", "bounce", "growth"),
        *("swing", "deformation", "wave"),
    )
    """Families of motion, each as often as it is listed; an actor's kind then leaves some."""

    still_share: float = 0.2
    """Of the actors after the second, those that stay still."""

    moving_camera_share: float = 0.25
    """Samples whose source camera travels."""

    novel_paths: tuple[str, ...] = (
        *("orbit-left", "orbit-right", "arc-left", "arc-right", "truck-left", "truck-right"),
        *("dolly-in", "dolly-out", "crane-up", "spiral"),
    )
    """Camera paths of the second video, by name. Empty: no second video."""

    novel_amplitude: tuple[float, float] = (0.1, 0.4)
    """Range of their amplitude."""

    samples: int = 2
    """Colours average samples x samples rays per pixel."""

    def __post_init__(self) -> None:
        low, high = self.num_actors
        if not 2 <= low <= high <= len(COLORS):
            raise SettingsError(
                f"num_actors is {self.num_actors}; expected 2 to {len(COLORS)}, the smaller first."
            )
        for name in ("fov_deg", "radius", "novel_amplitude"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise SettingsError(
                    f"{name} is {(low, high)}; expected positive, the smaller first."
                )
        if not 0 <= self.speed_spread <= 0.5:
            raise SettingsError(
                f"speed_spread is {self.speed_spread}; expected 0 to 0.5: what a caption leaves "
                "unsaid bounds what can be learned."
            )
        self._check_names()

    def _check_names(self) -> None:
        for name, known in (("settings", SETTINGS), ("kinds", KINDS), ("patterns", PATTERNS)):
            chosen = getattr(self, name)
            if not chosen or not set(chosen) <= set(known):
                raise SettingsError(f"{name} is {chosen}; expected some of {', '.join(known)}.")
        possible = {w.family for kind in self.kinds for w in KINDS[kind].words}
        if not self.families or not set(self.families) <= possible:
            raise SettingsError(
                f"families is {self.families}; with these kinds expected some of "
                f"{', '.join(sorted(possible))}."
            )
        if self.size.num_frames < 2:
            raise SettingsError("size has 1 frame; expected 5 or more, or nothing can move.")
        if self.samples < 1:
            raise SettingsError(f"samples is {self.samples}; expected 1 or more.")
        for path in self.novel_paths:
            check_path_name(path)

    @property
    def duration_s(self) -> float:
        """From the first frame to the last."""
        return (self.size.num_frames - 1) / self.fps
