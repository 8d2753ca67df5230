"""One sample of TrajScene-60K, checked and brought to our format.

The pickles hold `coords` (frame, point, 3): camera-space positions, each in the camera of its own
frame, of a 384x512 grid that covers the whole first frame whatever its aspect; `colors` (point, 3)
in 0-255; `vis` (frame, point). A leading axis of length 1 may come before each. Camera motion was
not taken out of the data, so all of it is in the motion, and our cameras stand still.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from more4d_backend.files import FileFormatError
from more4d_backend.files.safe_pickle import load_pickle
from more4d_backend.scene import Cameras
from more4d_backend.shapes import ShapeError, check_shapes

from .lossless_video import decode_video, read_fps
from .samples import SampleError, TrainingSample, check_sample

GRID_HW = (384, 512)

ASPECTS = {"512x384": 0.375, "596x336": 336 / 596 / 2}
"""Size that the tracker saw -> largest |Y/Z| of frame 0, as its focal length is the width."""


class RejectedSampleError(SampleError):
    """A sample that fails a check; the message is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleLimits:
    """What a sample must keep to. The paper names its filters but no thresholds: these are ours."""

    near_depth: float = 0.01
    """A depth below this is an error of the depth model, in metres."""

    far_depth: float = 500.0
    """A coordinate beyond this is one too; the released loader drops the sample at 500."""

    max_bad_share: float = 0.01
    """Share of points outside these depths that one frame may have. Frame 0 may have none at
    or behind the camera."""

    max_depth_spread: float = 5.0
    """Standard deviation of the depth of frame 0 over its median."""

    max_scale_jump: float = 1.25
    """Ratio by which the depth of the points seen in two successive frames may change, in the
    median. Depth is estimated frame by frame; a larger step is its scale, not motion."""

    max_ray_error_px: float = 2.0
    """Distance of the points of frame 0 from the rays of the pinhole camera fitted to them."""

    max_color_difference: float = 40.0
    """Mean difference of the point colors from the first video frame, in 0-255."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFiles:
    """The three files of a sample that are read; renders and masks can be made from them."""

    name: str
    """The sample's number, as `000017`."""

    archive: str
    """Where it comes from, as `000001_000050`."""

    video: Path
    """`<id>.mp4`."""

    caption: Path
    """`<id>.txt`."""

    prediction: Path
    """`<id>_dt3d_pred.pkl`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prediction:
    coords: Float[Tensor, "frame point 3"]
    colors: Float[Tensor, "point 3"]
    vis: Tensor


def convert_sample(files: SampleFiles, limits: SampleLimits) -> TrainingSample:
    """Read and check one sample.

    Raises:
        SampleError: the reason for leaving it out.
    """
    try:
        caption = files.caption.read_text(encoding="utf-8").strip()
        prediction = _prediction(load_pickle(files.prediction))
        encoded = files.video.read_bytes()
        video, fps = decode_video(encoded, "The video"), read_fps(encoded, "The video")
    except (FileFormatError, UnicodeDecodeError) as e:
        raise RejectedSampleError(str(e)) from e
    if not caption:
        raise RejectedSampleError("The caption is empty.")
    frames = prediction.coords.shape[0]
    _check_depths(prediction, limits)
    intrinsics, aspect = _fitted_camera(prediction.coords[0], limits)
    video, step = _matching_frames(video, frames)
    _check_colors(video[0], prediction.colors, limits)
    motion = (prediction.coords - prediction.coords[:1]).half()
    sample = TrainingSample(
        name=f"trajscene-{files.name}",
        caption=caption,
        source=f"TrajScene-60K {files.archive}/{files.name}, tracked at {aspect}",
        fps=fps / step,
        video=video,
        depth=prediction.coords[0, :, 2].reshape(GRID_HW),
        motion=motion.reshape(frames, *GRID_HW, 3),
        visibility=prediction.vis.reshape(frames, *GRID_HW),
        cameras=Cameras(
            world_to_camera=torch.eye(4).repeat(frames, 1, 1),
            intrinsics=intrinsics.expand(frames, 3, 3).contiguous(),
            height=GRID_HW[0],
            width=GRID_HW[1],
        ),
    )
    check_sample(sample)
    return sample


def _prediction(value: Any) -> _Prediction:
    coords, colors, vis = (
        _array(value, name, axes) for name, axes in (("coords", 3), ("colors", 2), ("vis", 2))
    )
    points = math.prod(GRID_HW)
    try:
        check_shapes(
            coords=(coords, f"frame {points} 3"),
            colors=(colors, f"{points} 3"),
            vis=(vis, f"frame {points}"),
        )
    except ShapeError as e:
        grid = f"the points are a grid of {GRID_HW[0]}x{GRID_HW[1]}"
        raise RejectedSampleError(f"{e} ({grid}.)") from e
    # A stride of 0 lets a small pickle claim any number of frames.
    if not 2 <= len(coords) <= 1000:
        raise RejectedSampleError(f"The tracks have {len(coords)} frames; expected 2 to 1000.")
    coords, colors = coords.float(), colors.float()
    for name, array in (("coords", coords), ("colors", colors)):
        if not array.isfinite().all():
            raise RejectedSampleError(f"{name} holds NaN or infinity.")
    return _Prediction(coords=coords, colors=colors, vis=vis.bool())


def _array(value: Any, name: str, axes: int) -> Tensor:
    array = value.get(name) if isinstance(value, dict) else None
    if isinstance(array, np.ndarray) and array.dtype.kind in "?biuf":
        array = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    if not isinstance(array, Tensor) or array.is_complex():
        raise RejectedSampleError(f"The pickle has no numbers called {name}.")
    if name == "vis" and array.is_floating_point():
        raise RejectedSampleError(f"vis has type {array.dtype}; expected true or false.")
    return array[0] if array.ndim == axes + 1 and array.shape[0] == 1 else array


def _check_depths(prediction: _Prediction, limits: SampleLimits) -> None:
    coords = prediction.coords
    depth = coords[..., 2]
    if (count := int((depth[0] <= 0).sum())) > 0:
        raise RejectedSampleError(f"{count} points of frame 0 have depth 0 or less.")
    bad = (depth < limits.near_depth) | (coords.abs().amax(-1) > limits.far_depth)
    share = bad.float().mean(1)
    worst = int(share.argmax())
    if share[worst] > limits.max_bad_share:
        raise RejectedSampleError(
            f"Frame {worst} has {share[worst]:.1%} of its points nearer than {limits.near_depth} "
            f"or farther than {limits.far_depth}; at most {limits.max_bad_share:.1%} may be."
        )
    spread = float(depth[0].std() / depth[0].median())
    if spread > limits.max_depth_spread:
        raise RejectedSampleError(
            f"The depth of frame 0 varies by {spread:.2f} of its median; at most "
            f"{limits.max_depth_spread} is usable."
        )
    for t in range(1, len(depth)):
        both = prediction.vis[t] & prediction.vis[t - 1] & (depth[t] > 0) & (depth[t - 1] > 0)
        if both.any():
            jump = float((depth[t][both] / depth[t - 1][both]).median())
            if not 1 / limits.max_scale_jump <= jump <= limits.max_scale_jump:
                raise RejectedSampleError(
                    f"The scale is not constant: depth changes by a factor of {jump:.3f} from "
                    f"frame {t - 1} to {t}; at most {limits.max_scale_jump} is usable."
                )


def _fitted_camera(
    positions: Float[Tensor, "point 3"], limits: SampleLimits
) -> tuple[Float[Tensor, "3 3"], str]:
    """Fit a pinhole camera to the grid of frame 0; also name the size that the tracker saw."""
    height, width = GRID_HW
    grid = positions.double().reshape(height, width, 3)
    intrinsics = torch.eye(3, dtype=torch.float64)
    for axis, size in ((0, width), (1, height)):
        ratio = grid[..., axis] / grid[..., 2]  # X/Z = (pixel - c) / f, along rows and columns
        pixel = torch.arange(size, dtype=torch.float64) + 0.5
        by_pixel = ratio.mean(axis)
        spread = pixel - pixel.mean()
        slope = (spread * by_pixel).sum() / (spread * spread).sum()
        if not slope > 0:
            raise RejectedSampleError("Frame 0 is not a grid of rays: its rays do not fan out.")
        focal_px, center_px = 1 / slope, pixel.mean() - by_pixel.mean() / slope
        intrinsics[axis, axis], intrinsics[axis, 2] = focal_px, center_px
        expected = pixel[None, :] if axis == 0 else pixel[:, None]
        error_px = float((ratio * focal_px + center_px - expected).abs().max())
        if error_px > limits.max_ray_error_px:
            raise RejectedSampleError(
                f"Frame 0 is not a grid of rays: a point is {error_px:.1f} pixels off the pinhole "
                f"camera that fits best; at most {limits.max_ray_error_px} is usable."
            )
    tallest = float((grid[..., 1] / grid[..., 2]).abs().max())
    fitting = [name for name, value in ASPECTS.items() if abs(tallest - value) < 0.01]
    return intrinsics.float(), fitting[0] if fitting else f"another aspect (|Y/Z| {tallest:.3f})"


def _matching_frames(video: Tensor, num_frames: int) -> tuple[Tensor, int]:
    """Pick the video frames that were tracked and squash them to the grid."""
    if len(video) == num_frames:
        step = 1
    elif len(video) >= 2 * num_frames - 1:
        step = 2  # as the released loader does
    else:
        raise RejectedSampleError(
            f"The video has {len(video)} frames and the tracks {num_frames}; expected as many, "
            f"or at least {2 * num_frames - 1} of which every second was tracked."
        )
    picked = video[: step * num_frames : step]
    if tuple(picked.shape[1:3]) == GRID_HW:
        return picked, step
    squashed = torch.nn.functional.interpolate(
        picked.permute(0, 3, 1, 2).float(), GRID_HW, mode="bilinear", antialias=True
    )
    return squashed.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous(), step


def _check_colors(first: Tensor, colors: Float[Tensor, "point 3"], limits: SampleLimits) -> None:
    difference = float((first.reshape(-1, 3).float() - colors).abs().mean())
    if difference > limits.max_color_difference:
        raise RejectedSampleError(
            f"The point colors differ from the first frame by {difference:.0f} of 255 in the "
            f"mean; at most {limits.max_color_difference} is usable. Video and tracks do not "
            "belong together."
        )
