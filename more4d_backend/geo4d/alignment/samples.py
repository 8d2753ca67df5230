"""The pixels that alignment computes with: a regular subset of every window, on one device.

Axes: window, position (of a frame within the window, padded to the longest), pixel. The same
samples seen from the video are (frame, slot): the windows that cover a frame lie in its slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...geometry import pixel_centers
from ..predictions import WindowError, WindowPrediction
from ..ray_maps import RayCameras, cameras_from_rays, focal_from_rays
from .settings import AlignmentError, AlignmentSettings

_FRAMES_PER_CHUNK, _FRAMES_PER_CHUNK_ON_GPU = 32, 128
"""Cores have small caches; for GPUs fewer and larger calls are faster."""
_EDGE, _FAR_DISPARITY = 0.1, 0.2
"""Disparities of neighbours in a smaller image that differ by more than this share: an edge between
them has no place there. Below the far disparity its share is meant."""
_BYTES_PER_SAMPLE = 72
"""28 in `Samples`, 24 of them once more frame by frame, and what is made on the way; measured."""
_RAYS_PER_FRAME = 1000
"""Enough for a camera: three numbers each for centre and rotation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cover:
    """Which windows cover which frame."""

    first_frame: tuple[int, ...]
    """Of each window, in the video."""

    length: tuple[int, ...]
    """Frames of each window."""

    window: Int[Tensor, "frame slot"]
    """Window in a slot; 0 where the slot is empty."""

    position: Int[Tensor, "frame slot"]
    """The frame's index within that window."""

    filled: Bool[Tensor, "frame slot"]
    """False where the slot is empty."""

    @property
    def num_frames(self) -> int:
        """Of the video."""
        return self.window.shape[0]

    @property
    def num_windows(self) -> int:
        """Number of windows."""
        return len(self.first_frame)


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """A subset of the pixels of all windows."""

    cover: Cover
    """Which windows cover which frame; on the CPU."""

    offsets_px: Float[Tensor, "pixel 2"]
    """Pixel centres from the middle of the image."""

    points: Float[Tensor, "window position pixel 3"]
    """In the window's coordinates and box units; 0 where the weight is 0."""

    weights: Float[Tensor, "window position pixel"]
    """1 for the median pixel of a window, more where sigma is smaller; 0 where invalid."""

    disparity: Float[Tensor, "window position pixel"] | None
    """None when it is not used."""

    disparity_weights: Float[Tensor, "window position pixel"] | None
    """As `weights`, and 0 where the disparity is too low."""

    sigma: Float[Tensor, "window position pixel"]
    """In box units; 1 where not valid, and for windows that came without."""

    sigma_known: Bool[Tensor, "window"]
    """Whether the window came with sigma; on the CPU."""

    ray_cameras: RayCameras | None
    """Of each window, padded; on the CPU, float64. None when they are not used."""

    ray_focal_px: Float[Tensor, "window"] | None
    """Focal length that each window's first ray map tells; on the CPU."""

    height: int
    """Of the images."""

    width: int
    """Of the images."""

    @property
    def chunks(self) -> list[slice]:
        """Slices of the video's frames, to be worked on at once."""
        return chunks(self.cover.num_frames, self.points.device)

    def rays(self, focal_px: float) -> Float[Tensor, "pixel 3"]:
        """Return the camera-space directions of the samples, with z = 1."""
        rays = self.offsets_px / focal_px
        return torch.cat([rays, torch.ones_like(rays[:, :1])], dim=-1)


def chunks(num_frames: int, device: torch.device) -> list[slice]:
    """Slices of the video's frames, to be worked on at once."""
    count = _FRAMES_PER_CHUNK if device.type == "cpu" else _FRAMES_PER_CHUNK_ON_GPU
    return [slice(at, min(at + count, num_frames)) for at in range(0, num_frames, count)]


def cover_of(windows: Sequence[WindowPrediction]) -> Cover:
    """Sort out which windows cover which frame.

    Raises:
        AlignmentError: there is no window, or a frame that no window covers.
        WindowError: windows of different image sizes.
    """
    if not windows:
        raise AlignmentError("There is no window to align; expected at least one.")
    size = windows[0].valid.shape[1:]
    for number, window in enumerate(windows):
        if window.valid.shape[1:] != size:
            raise WindowError(
                f"Window {number} has images of {tuple(window.valid.shape[1:])} pixels and window "
                f"0 has {tuple(size)}; expected one size."
            )
    num_frames = 1 + max(w.last_frame for w in windows)
    slots: list[list[tuple[int, int]]] = [[] for _ in range(num_frames)]
    for number, window in enumerate(windows):
        for position in range(window.num_frames):
            slots[window.first_frame + position].append((number, position))
    if not all(slots):
        missing = next(frame for frame, slot in enumerate(slots) if not slot)
        raise AlignmentError(
            f"No window covers frame {missing} of {num_frames}; expected windows over all frames."
        )
    depth = max(len(slot) for slot in slots)
    padded = [slot + [(0, -1)] * (depth - len(slot)) for slot in slots]
    table = torch.tensor(padded)
    return Cover(
        first_frame=tuple(w.first_frame for w in windows),
        length=tuple(w.num_frames for w in windows),
        window=table[..., 0],
        position=table[..., 1].clamp_min(0),
        filled=table[..., 1] >= 0,
    )


def take_samples(
    windows: Sequence[WindowPrediction], settings: AlignmentSettings, device: torch.device
) -> Samples:
    """Check all windows and bring a subset of their pixels to the device.

    Raises:
        AlignmentError, WindowError: see `cover_of` and `WindowPrediction.check_finite`.
    """
    cover = cover_of(windows)
    for number, window in enumerate(windows):
        window.check_finite(f"Window {number}")
    height, width = windows[0].valid.shape[1:]
    rows, columns = _sampled_rows_and_columns((height, width), settings)
    centers = pixel_centers(height, width, device=device)[rows, columns].reshape(-1, 2)
    longest = max(cover.length)

    def padded(parts: list[Tensor]) -> Tensor:
        joined = parts[0].new_zeros(len(parts), longest, *parts[0].shape[1:])
        for row, part in zip(joined, parts, strict=True):
            row[: len(part)] = part
        return joined

    points, weights, sigmas, disparity, disparity_weights = [], [], [], [], []
    for window in windows:
        valid = window.valid[:, rows, columns].flatten(1).to(device)
        taken = window.points[:, rows, columns].flatten(1, 2).to(device, torch.float32)
        sigma = window.sigma
        if sigma is not None:
            sigma = sigma[:, rows, columns].flatten(1).to(device, torch.float32)
        sigmas.append(torch.ones_like(taken[..., 0]) if sigma is None else sigma.where(valid, 1.0))
        points.append(taken.masked_fill(~valid[..., None], 0))
        weights.append(relative_weights(sigma, valid, settings) * settings.points)
        if settings.disparity and window.disparity is not None:
            image = window.disparity.to(device, torch.float32)
            seen = at_pixels(image, centers, height, width)
            usable = valid & (seen > settings.disparity_floor)
            usable &= away_from_edges(image, centers, height, width)
            disparity.append(seen)
            disparity_weights.append(relative_weights(sigma, usable, settings))
        elif settings.disparity:
            disparity.append(torch.zeros_like(weights[-1]))
            disparity_weights.append(torch.zeros_like(weights[-1]))
    rays = _ray_cameras(windows, settings, device) if settings.rays else None
    return Samples(
        cover=cover,
        offsets_px=centers - centers.new_tensor([width / 2, height / 2]),
        points=padded(points),
        weights=padded(weights),
        disparity=padded(disparity) if disparity else None,
        disparity_weights=padded(disparity_weights) if disparity else None,
        sigma=padded(sigmas),
        sigma_known=torch.tensor([w.sigma is not None for w in windows]),
        ray_cameras=None if rays is None else rays[0],
        ray_focal_px=None if rays is None else rays[1] * width,
        height=height,
        width=width,
    )


def sample_bytes(num_frames: int, size_hw: tuple[int, int], settings: AlignmentSettings) -> int:
    """Memory that a window takes, besides its prediction, while windows are aligned."""
    rows, columns = _sampled_rows_and_columns(size_hw, settings)
    pixels = len(range(size_hw[0])[rows]) * len(range(size_hw[1])[columns])
    return num_frames * pixels * _BYTES_PER_SAMPLE


def _sampled_rows_and_columns(
    size_hw: tuple[int, int], settings: AlignmentSettings
) -> tuple[slice, slice]:
    step = max(1, int((size_hw[0] * size_hw[1] / settings.pixels_per_frame) ** 0.5))
    rows, columns = (slice(min(step // 2, size - 1), None, step) for size in size_hw)
    return rows, columns


def relative_weights(
    sigma: Float[Tensor, "*axes"] | None, valid: Bool[Tensor, "*axes"], settings: AlignmentSettings
) -> Float[Tensor, "*axes"]:
    """Median sigma over sigma, bounded above; 1 where sigma is not known; 0 where invalid."""
    if sigma is None or not valid.any():
        return valid.float()
    ratio = sigma[valid].median() / sigma.clamp_min(1e-12)
    return torch.where(valid, ratio.clamp_max(settings.max_confidence_ratio), 0)


def at_pixels(
    images: Float[Tensor, "frame image_height image_width"],
    centers_px: Float[Tensor, "pixel 2"],
    height: int,
    width: int,
) -> Float[Tensor, "frame pixel"]:
    """Read images, that may be smaller than height x width, at pixel centres (bilinear)."""
    if images.shape[1:] == (height, width):
        column, row = centers_px.long().unbind(-1)
        return images[:, row, column]
    grid = 2 * centers_px / centers_px.new_tensor([width, height]) - 1
    grid = grid.expand(len(images), 1, -1, -1)
    sampled = torch.nn.functional.grid_sample(
        images[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[:, 0, 0]


def away_from_edges(
    images: Float[Tensor, "frame image_height image_width"],
    centers_px: Float[Tensor, "pixel 2"],
    height: int,
    width: int,
) -> Bool[Tensor, "frame pixel"]:
    """Where images that are smaller than height x width can be read between their pixels."""
    if images.shape[1:] == (height, width):
        return torch.ones(len(images), len(centers_px), dtype=torch.bool, device=images.device)
    high = torch.nn.functional.max_pool2d(images[:, None], 3, stride=1, padding=1)[:, 0]
    low = -torch.nn.functional.max_pool2d(-images[:, None], 3, stride=1, padding=1)[:, 0]
    smooth = high - low < _EDGE * images.abs().clamp_min(_FAR_DISPARITY)
    return at_pixels(smooth.float(), centers_px, height, width) > 0.5


def _ray_cameras(
    windows: Sequence[WindowPrediction], settings: AlignmentSettings, device: torch.device
) -> tuple[RayCameras, Tensor] | None:
    """Cameras of all windows (identities where padded), and focal lengths in image widths."""
    if any(window.rays is None for window in windows):
        return None
    longest = max(window.num_frames for window in windows)
    rotation = torch.eye(3, dtype=torch.float64).repeat(len(windows), longest, 1, 1)
    center = torch.zeros(len(windows), longest, 3, dtype=torch.float64)
    focal = torch.zeros(len(windows), dtype=torch.float64)
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, window in enumerate(windows):
        assert window.rays is not None
        alike.setdefault(tuple(window.rays.directions.shape), []).append(number)
    for (num_frames, *_), numbers in alike.items():
        rays = [_sampled_rays(windows[n], settings, device) for n in numbers]
        directions, moments, weights, first = map(torch.stack, zip(*rays, strict=True))
        cameras = cameras_from_rays(directions, moments, weights)
        rotation[numbers, :num_frames] = cameras.rotation.cpu().double()
        center[numbers, :num_frames] = cameras.center.cpu().double()
        focal[numbers] = focal_from_rays(first).cpu().double()
    return RayCameras(rotation=rotation, center=center), focal


def _sampled_rays(
    window: WindowPrediction, settings: AlignmentSettings, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Some directions, their moments and weights; and all directions of the first frame."""
    assert window.rays is not None
    height, width = window.rays.directions.shape[1:3]
    step = max(1, int((height * width / _RAYS_PER_FRAME) ** 0.5))
    rows = torch.arange(min(step // 2, height - 1), height, step)
    columns = torch.arange(min(step // 2, width - 1), width, step)
    directions, moments = (
        maps[:, rows][:, :, columns].to(device, torch.float32)
        for maps in (window.rays.directions, window.rays.moments)
    )
    # The same places in the point maps, which may be larger.
    full = window.valid.shape[1:]
    there = (2 * rows + 1) * full[0] // (2 * height), (2 * columns + 1) * full[1] // (2 * width)
    weights = torch.ones_like(directions[..., 0])
    if window.sigma is not None:
        weights = _ray_weights(window.sigma, window.valid, *there, settings).to(weights)
    return directions, moments, weights, window.rays.directions[0].to(device, torch.float32)


def _ray_weights(
    sigma: Float[Tensor, "frame height width"],
    valid: Bool[Tensor, "frame height width"],
    rows: Int[Tensor, "row"],
    columns: Int[Tensor, "column"],
    settings: AlignmentSettings,
) -> Float[Tensor, "frame row column"]:
    """Where the points are uncertain so are the rays; the sky's rays count as the median's."""
    sigma, valid = sigma[:, rows][:, :, columns], valid[:, rows][:, :, columns]
    return relative_weights(sigma, valid, settings).where(valid, 1.0)
