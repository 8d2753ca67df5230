"""What alignment returns: the scene, and how well it came out."""

from dataclasses import dataclass
from statistics import median

from jaxtyping import Float
from torch import Tensor

from ...scene import Scene4D
from ...wording import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowReport:
    """One window."""

    first_frame: int
    """Of the video."""

    num_frames: int
    """Frames of the window."""

    valid_share: float
    """Share of its samples that hold a point."""

    point_error: float | None
    """Median distance of its points from the scene, as a share of their depth; None without any."""

    disparity_share: float | None
    """Share of its disparity that fits the depth of the point maps within a factor of 1.25; None
    when it has none, or no points to compare with."""

    disparity_used: bool
    """False where there is none, or too little of it fits."""

    ray_error_deg: float | None
    """How differently its ray cameras turn, per frame (root mean square); None without rays."""

    rays_used: bool
    """False where there are none, or they turn too differently."""

    bridged: bool
    """True where it shares too little with the windows before: the camera was kept still there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Value of each weighted term."""

    points: float
    """Mean distance of predicted points from the scene, in median depths."""

    disparity: float
    """Mean difference of disparity."""

    cameras: float
    """Difference to the cameras of the ray maps."""

    smoothness: float
    """Motion of the camera."""

    @property
    def total(self) -> float:
        """What is minimised."""
        return self.points + self.disparity + self.cameras + self.smoothness


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentReport:
    """How well the windows fit together."""

    converged: bool
    """Whether cameras and windows came to rest."""

    iterations: int
    """Steps of the adjustment."""

    last_step: float
    """Largest movement of a camera, or change of a window, in the last step: radians, median
    depths, or a relative change."""

    start: Losses
    """Before the first step."""

    end: Losses
    """After the last."""

    focal_px: float
    """Focal length that was found, at the size of the point maps."""

    windows: tuple[WindowReport, ...]
    """One per window."""

    def summary(self) -> str:
        """Return one line for a log."""
        state = "converged" if self.converged else "NOT converged"
        errors = [w.point_error for w in self.windows if w.point_error is not None]
        error = f", median point error {100 * median(errors):.2f} %" if errors else ""
        no_disparity = sum(not w.disparity_used for w in self.windows)
        no_rays = sum(not w.rays_used for w in self.windows)
        bridged = sum(w.bridged for w in self.windows)
        return (
            f"{counted(len(self.windows), 'window')} {state} in "
            f"{counted(self.iterations, 'step')} "
            f"(last {self.last_step:.1e}): loss {self.start.total:.4f} -> {self.end.total:.4f}"
            f"{error}, focal length {self.focal_px:.1f} px; without disparity {no_disparity}, "
            f"without rays {no_rays}, bridged {bridged}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentResult:
    """The video as a scene."""

    scene: Scene4D
    """Point maps in the world of camera 0; the median depth is 1. On the CPU. Confidence is 1 /
    sigma in units of the depth's 1 %, or None when no window knows sigma."""

    depth: Float[Tensor, "frame height width"]
    """Camera z; 0 where not valid."""

    report: AlignmentReport
    """How well it came out."""
