"""How windows are aligned: which modalities count, and how much."""

from dataclasses import dataclass, fields, replace
from typing import Literal

from ..sizes import RELEASED_CAMERA_WEIGHT

PoseTerms = Literal["mean", "sum"]
Smoothness = Literal["steady", "still"]


class AlignmentError(ValueError):
    """Windows or settings that cannot be aligned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentSettings:
    """Defaults are the paper's, but for smoothness and `pose_terms`: see `with_paper_weights`."""

    points: bool = True
    """Use the point maps. Without them there are cameras only if `rays` is on."""

    disparity: bool = True
    """Use the disparity."""

    rays: bool = True
    """Use the cameras that the ray maps tell."""

    point_weight: float = 1.0
    """Of the mean distance between fused and predicted points; the unit is the median depth."""

    disparity_weight: float = 2.0
    """Of the mean difference between fused and predicted disparity."""

    camera_weight: float | None = None
    """Of the difference to the cameras of the ray maps, in rotation and in place. None: what the
    weights are made for; the paper's 0.005 where nothing says it."""

    smoothness_weight: float = 1.5e-4
    """Of the smoothness of the camera's motion. A hundredth of the paper's: with that the tremble
    of a hand (0.2 degrees) is taken out of the cameras, although it is in the video."""

    smoothness: Smoothness = "steady"
    """`still` wants no motion from frame to frame, as the paper does: it draws the ends of every
    path inwards (by a degree where the camera turns by two per frame). `steady` wants no change of
    motion."""

    pose_terms: PoseTerms = "mean"
    """`mean` over frames, like the other terms, so that the length of the video does not matter;
    `sum` is what the released code does: there long videos get stiff cameras."""

    disparity_floor: float = 0.05
    """Predicted disparity at or below this is not used: far away, or sky."""

    max_ray_error_deg: float = 4.0
    """A window whose ray cameras turn otherwise than the point maps say, by more than this per
    frame (root mean square), does not count in the camera term."""

    max_confidence_ratio: float = 2.0
    """A pixel counts at most this many times as much as the median pixel of its window."""

    pixels_per_frame: int = 2500
    """Samples for cameras and windows. Depth is then fused for every pixel."""

    max_iterations: int = 40
    """Of Gauss-Newton; usually 5 to 20 are needed."""

    tolerance: float = 3e-5
    """Done when no camera moves by more than this (radians, and lengths in median depths)."""

    def __post_init__(self) -> None:
        if not (self.points or self.disparity):
            raise AlignmentError(
                "Both points and disparity are switched off; a scene needs at least one of them."
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not 0 <= value < float("inf"):
                raise AlignmentError(f"{field.name} is {value}; expected 0 or more, and finite.")
        if self.pose_terms not in ("mean", "sum"):
            raise AlignmentError(f"pose_terms is {self.pose_terms!r}; expected 'mean' or 'sum'.")
        if self.smoothness not in ("steady", "still"):
            raise AlignmentError(
                f"smoothness is {self.smoothness!r}; expected 'steady' or 'still'."
            )
        if self.pixels_per_frame < 1 or self.max_iterations < 1:
            raise AlignmentError(
                f"pixels_per_frame is {self.pixels_per_frame} and max_iterations is "
                f"{self.max_iterations}; expected at least 1 of each."
            )

    def for_weights(self, camera_weight: float = RELEASED_CAMERA_WEIGHT) -> "AlignmentSettings":
        """Return settings with the weight of the ray cameras chosen, if it is not yet."""
        if self.camera_weight is not None:
            return self
        return replace(self, camera_weight=camera_weight)

    def with_paper_weights(self) -> "AlignmentSettings":
        """Return the same modalities with all weights of the paper; means and sums as released."""
        return replace(
            self,
            point_weight=1.0,
            disparity_weight=2.0,
            camera_weight=RELEASED_CAMERA_WEIGHT,
            smoothness_weight=0.015,
            smoothness="still",
            pose_terms="sum",
        )

    @staticmethod
    def points_only() -> "AlignmentSettings":
        """Ablation "points" of the paper: depth and cameras from the point maps."""
        return AlignmentSettings(disparity=False, rays=False)

    @staticmethod
    def disparity_only() -> "AlignmentSettings":
        """Ablation "disparity" of the paper: depth alone; the cameras stand still."""
        return AlignmentSettings(points=False, rays=False)
