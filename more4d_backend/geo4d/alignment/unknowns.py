"""What alignment solves for, and the same as seen by one frame's samples.

Small things (cameras, windows) are float64 on the CPU; per-pixel things are float32 on the device.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ...geometry import invert_rigid, rigid
from .samples import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknowns:
    """Everything that is adjusted. World unit: see `in_unit_depth`."""

    log_focal: Float[Tensor, ""]
    """Of the focal length in pixels, one for the video."""

    world_to_camera: Float[Tensor, "frame 4 4"]
    """Rigid."""

    window_scale: Float[Tensor, "window"]
    """Box unit of each window, in world units."""

    window_rotation: Float[Tensor, "window 3 3"]
    """Window to world."""

    window_translation: Float[Tensor, "window 3"]
    """World = scale * rotation @ window + translation."""

    disparity_scale: Float[Tensor, "window"]
    """1 / depth = scale * disparity + shift."""

    disparity_shift: Float[Tensor, "window"]
    """See `disparity_scale`."""

    depth: Float[Tensor, "frame pixel"]
    """Camera z of the samples; positive."""

    @property
    def focal_px(self) -> float:
        """Focal length."""
        return float(self.log_focal.exp())

    @property
    def centers(self) -> Float[Tensor, "frame 3"]:
        """Places of the cameras."""
        return invert_rigid(self.world_to_camera)[:, :3, 3]

    def scaled(self, factor: float) -> "Unknowns":
        """Return the same in a world unit that is `factor` times smaller."""
        world_to_camera = self.world_to_camera.clone()
        world_to_camera[:, :3, 3] *= factor
        return replace(
            self,
            world_to_camera=world_to_camera,
            window_scale=self.window_scale * factor,
            window_translation=self.window_translation * factor,
            disparity_scale=self.disparity_scale / factor,
            disparity_shift=self.disparity_shift / factor,
            depth=self.depth * factor,
        )

    def from_first_camera(self) -> "Unknowns":
        """Return the same in the coordinates of camera 0."""
        first = self.world_to_camera[0]
        rotated = first[:3, :3] @ self.window_rotation
        moved = self.window_translation @ first[:3, :3].T + first[:3, 3]
        relative = self.world_to_camera @ invert_rigid(first)
        relative[0] = torch.eye(4, dtype=relative.dtype)
        return replace(
            self,
            world_to_camera=relative,
            window_rotation=rotated,
            window_translation=moved,
        )


def window_to_camera(
    unknowns: Unknowns, samples: Samples, frames: slice
) -> tuple[Float[Tensor, "frame slot 3 3"], Float[Tensor, "frame slot 3"]]:
    """Matrix (with scale) and offset from each slot's window to the frame's camera. float64."""
    window = samples.cover.window[frames]
    camera = unknowns.world_to_camera[frames, None]
    scale = unknowns.window_scale[window][..., None, None]
    matrix = camera[..., :3, :3] @ unknowns.window_rotation[window] * scale
    offset = camera[..., :3, :3] @ unknowns.window_translation[window][..., None]
    return matrix, offset[..., 0] + camera[..., :3, 3]


def joined(rotation: Tensor, translation: Tensor, scale: Tensor) -> Float[Tensor, "*batch 4 4"]:
    """4x4 matrices of similarities."""
    return rigid(scale[..., None, None] * rotation, translation)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameSamples:
    """Samples of some frames, slot by slot, on the device."""

    points: Float[Tensor, "frame slot pixel 3"]
    """In the coordinates of each slot's window."""

    weights: Float[Tensor, "frame slot pixel"]
    """0 in empty slots."""

    disparity: Float[Tensor, "frame slot pixel"] | None
    """As predicted."""

    disparity_weights: Float[Tensor, "frame slot pixel"] | None
    """0 in empty slots."""


def frame_samples(samples: Samples, frames: slice) -> FrameSamples:
    """Gather the samples of frames out of the windows that cover them."""
    cover = samples.cover
    device = samples.points.device
    window, position = cover.window[frames].to(device), cover.position[frames].to(device)
    filled = cover.filled[frames].to(device)[..., None]

    def gathered(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[window, position] * filled

    return FrameSamples(
        points=samples.points[window, position],
        weights=samples.weights[window, position] * filled,
        disparity=None if samples.disparity is None else samples.disparity[window, position],
        disparity_weights=gathered(samples.disparity_weights),
    )
