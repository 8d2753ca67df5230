"""What the networks say about one window of the video, as geometry: the input of the alignment.

Lengths are in box units: the window's point maps are known up to a similarity (their scale and the
place of the first camera on its axis are not told), its disparity up to scale and shift.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..shapes import check_kinds, check_shapes


class WindowError(ValueError):
    """A window's prediction that cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RayMaps:
    """Rays of pixels in Pluecker form, in the coordinates of some world."""

    directions: Float[Tensor, "frame height width 3"]
    """From the camera's centre through the pixel's; of any length above 0, and 0 where no
    ray is known, as in the border of a padded picture."""

    moments: Float[Tensor, "frame height width 3"]
    """Centre of the camera x direction of unit length."""

    def __post_init__(self) -> None:
        check_kinds(directions=(self.directions, "float"), moments=(self.moments, "float"))
        check_shapes(
            directions=(self.directions, "frame height width 3"),
            moments=(self.moments, "frame height width 3"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPrediction:
    """One window, in the coordinates of its first camera."""

    first_frame: int
    """Index in the video of the window's first frame."""

    points: Float[Tensor, "frame height width 3"]
    """Point maps: x to the right, y down, z away, up to one scale and one shift along z."""

    valid: Bool[Tensor, "frame height width"]
    """False where the networks see sky or a point out of the box."""

    sigma: Float[Tensor, "frame height width"] | None = None
    """Predicted scale of the points' error, in box units, positive; None when it is not known."""

    disparity: Float[Tensor, "frame disparity_height disparity_width"] | None = None
    """About 0 to 1; affine in 1 / depth. May be smaller than the point maps."""

    rays: RayMaps | None = None
    """May be smaller than the point maps."""

    def __post_init__(self) -> None:
        if self.first_frame < 0:
            raise WindowError(f"first_frame is {self.first_frame}; expected 0 or more.")
        check_kinds(points=(self.points, "float"), valid=(self.valid, "bool"))
        tensors = {
            "points": (self.points, "frame height width 3"),
            "valid": (self.valid, "frame height width"),
        }
        if self.sigma is not None:
            check_kinds(sigma=(self.sigma, "float"))
            tensors["sigma"] = (self.sigma, "frame height width")
        if self.disparity is not None:
            check_kinds(disparity=(self.disparity, "float"))
            tensors["disparity"] = (self.disparity, "frame disparity_height disparity_width")
        if self.rays is not None:
            tensors["rays.directions"] = (self.rays.directions, "frame ray_height ray_width 3")
        check_shapes(**tensors)
        if 0 in self.valid.shape:
            raise WindowError(
                f"points has shape {tuple(self.points.shape)}; expected at least one frame and "
                "one pixel."
            )

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return self.points.shape[0]

    @property
    def last_frame(self) -> int:
        """Index in the video of the window's last frame."""
        return self.first_frame + self.num_frames - 1

    def frames(self, index: slice) -> "WindowPrediction":
        """Return some consecutive frames, as when padding is cut off.

        Raises:
            WindowError: the slice has a step, or nothing is left.
        """
        start, stop, step = index.indices(self.num_frames)
        if step != 1 or stop <= start:
            raise WindowError(f"{index} of {self.num_frames} frames; expected consecutive frames.")
        rays = self.rays
        return WindowPrediction(
            first_frame=self.first_frame + start,
            points=self.points[index],
            valid=self.valid[index],
            sigma=None if self.sigma is None else self.sigma[index],
            disparity=None if self.disparity is None else self.disparity[index],
            rays=None
            if rays is None
            else RayMaps(directions=rays.directions[index], moments=rays.moments[index]),
        )

    def mirrored(self) -> "WindowPrediction":
        """Return what is true of the frames if this is true of their mirror images.

        Left and right are exchanged in every map, and x in what is a place or a direction. A moment
        is a cross product, which a mirror turns the other way: there y and z change their signs.
        """
        side = self.points.new_tensor([-1, 1, 1])
        rays = self.rays
        return replace(
            self,
            points=self.points.flip(2) * side,
            valid=self.valid.flip(2),
            sigma=None if self.sigma is None else self.sigma.flip(2),
            disparity=None if self.disparity is None else self.disparity.flip(2),
            rays=None
            if rays is None
            else RayMaps(
                directions=rays.directions.flip(2) * side.to(rays.directions),
                moments=rays.moments.flip(2) * -side.to(rays.moments),
            ),
        )

    def check_finite(self, name: str) -> None:
        """Refuse NaN and infinity where they would be used.

        Raises:
            WindowError: names the window, what is not finite, and in which frame.
        """
        # A sum is finite only if all that it sums is, and costs one pass.
        parts = {
            "points": self.points.masked_fill(~self.valid[..., None], 0),
            "sigma": None if self.sigma is None else self.sigma.masked_fill(~self.valid, 1),
            "disparity": self.disparity,
            "ray directions": None if self.rays is None else self.rays.directions,
            "ray moments": None if self.rays is None else self.rays.moments,
        }
        for what, values in parts.items():
            if values is None or values.sum(dtype=torch.float32).isfinite():
                continue
            frame = int((~values.isfinite()).flatten(1).any(1).nonzero()[0])
            raise WindowError(
                f"{name} has NaN or infinite {what}, first in its frame {frame} (frame "
                f"{self.first_frame + frame} of the video). Check that the weights are whole, "
                "and use bfloat16 or float32 instead of float16."
            )
        if self.sigma is not None and not (self.sigma > 0).where(self.valid, True).all():
            raise WindowError(f"{name} has a sigma of 0 or less; expected positive numbers.")
