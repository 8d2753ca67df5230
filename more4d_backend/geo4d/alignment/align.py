"""The story of the alignment: check, sample, start, adjust, fuse, report."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from ...geometry import intrinsics_from_focal
from ...scene import Cameras, PointMaps, Scene4D
from ...shapes import ShapeError
from ..predictions import WindowPrediction
from .adjustment import Adjusted, adjust, term_weights
from .disparities import share_within
from .fusion import FusionInputs, fuse
from .initial import (
    in_unit_depth,
    start_from_points,
    start_without_points,
    window_depths,
    with_relative_weights,
)
from .report import AlignmentReport, AlignmentResult, WindowReport
from .rotations import vector_from_rotation
from .samples import Samples, take_samples
from .settings import AlignmentError, AlignmentSettings
from .unknowns import Unknowns, frame_samples, window_to_camera

_log = logging.getLogger(__name__)

_MIN_DISPARITY_SHARE = 0.3
"""Share of a window's disparity that must fit its depth within a factor of 1.25."""

_NAMED_WINDOWS = 8
"""Windows that a warning names one by one."""

_FUSION_STEPS = 20
"""Of the progress bar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What was found out about windows on the way."""

    disparity_share: Tensor | None
    disparity_counts: Tensor
    ray_errors: Tensor | None
    rays_count: Tensor
    bridged: tuple[int, ...]


def align_windows(
    windows: Sequence[WindowPrediction],
    colors: Float[Tensor, "frame height width 3"],
    fps: float,
    *,
    settings: AlignmentSettings | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AlignmentResult:
    """Join overlapping windows into a scene with one camera per frame.

    `colors` is the video (sRGB, 0 to 1) at the size of the point maps. Windows may lie on the CPU:
    samples of them, and then a few frames at a time, are moved to `device` (default: where the
    first window's points are). The result does not depend on chance. `progress(done, total)` is
    called between steps; what it raises interrupts.

    Raises:
        AlignmentError: no window, frames without a window, or nothing valid in any window.
        WindowError: a window with NaN, or of another size; names the window.
        ShapeError: colors of another number of frames or size.
    """
    settings = (settings or AlignmentSettings()).for_weights()
    if not windows:
        raise AlignmentError("There is no window to align; expected at least one.")
    device = torch.device(device) if device is not None else windows[0].points.device
    samples = _checked_samples(windows, colors, settings, device)
    total = settings.max_iterations + _FUSION_STEPS + 1

    def report_progress(done: int) -> None:
        if progress is not None:
            progress(done, total)

    if settings.points:
        unknowns, bridged = start_from_points(samples)
    else:
        unknowns, bridged = start_without_points(samples), ()
    report_progress(1)
    disparity_share = _disparity_shares(samples, unknowns) if settings.points else None
    samples, disparity_counts = _without_bad_disparity(samples, disparity_share)
    ray_errors = _ray_errors(samples, unknowns)
    rays_count = _trusted_rays(samples, ray_errors, settings)
    samples, sigma_medians = with_relative_weights(samples, unknowns, settings)
    weights = term_weights(samples, unknowns, settings)
    adjusted = adjust(
        samples, unknowns, weights, rays_count, settings, lambda done, _: report_progress(1 + done)
    )
    unknowns = in_unit_depth(adjusted.unknowns.from_first_camera(), samples)
    fused = fuse(
        FusionInputs(
            windows=windows,
            samples=samples,
            unknowns=unknowns,
            weights=weights,
            settings=settings,
            disparity_counts=disparity_counts,
            sigma_medians=sigma_medians,
        ),
        lambda done, all_frames: report_progress(
            total - _FUSION_STEPS + done * _FUSION_STEPS // all_frames
        ),
    )
    found = _Found(
        disparity_share=disparity_share,
        disparity_counts=disparity_counts,
        ray_errors=ray_errors,
        rays_count=rays_count,
        bridged=bridged,
    )
    report = _report(samples, unknowns, adjusted, found)
    _log.log(logging.INFO if report.converged else logging.WARNING, "%s", report.summary())
    points = PointMaps(
        positions=fused.positions,
        colors=colors.detach().to("cpu", torch.float32),
        valid=fused.valid,
        confidence=fused.confidence,
    )
    scene = Scene4D(points=points, cameras=_cameras(unknowns, samples), fps=fps)
    return AlignmentResult(scene=scene, depth=fused.depth, report=report)


def _checked_samples(
    windows: Sequence[WindowPrediction],
    colors: Tensor,
    settings: AlignmentSettings,
    device: torch.device,
) -> Samples:
    samples = take_samples(windows, settings, device)
    expected = (samples.cover.num_frames, samples.height, samples.width, 3)
    if tuple(colors.shape) != expected:
        raise ShapeError(
            f"colors has shape {tuple(colors.shape)}; expected {expected}: the frames that the "
            "windows cover, at the size of their point maps."
        )
    usable = bool((samples.weights > 0).any())
    if not settings.points and samples.disparity_weights is not None:
        usable = bool((samples.disparity_weights > 0).any())
    if not usable:
        raise AlignmentError(
            f"None of the {len(windows)} windows has a valid point: all is sky, or out of the box. "
            "There is no scene in this video."
        )
    if settings.rays and samples.ray_cameras is None:
        _log.info("Some windows have no ray maps; the camera term is left out.")
    if settings.disparity and not bool((samples.disparity_weights > 0).any()):  # pyright: ignore
        _log.info("No window has usable disparity; the disparity term is left out.")
    return samples


def _disparity_shares(samples: Samples, unknowns: Unknowns) -> Float[Tensor, "window"] | None:
    if samples.disparity is None or samples.disparity_weights is None:
        return None
    scale = unknowns.disparity_scale.to(samples.disparity)[:, None]
    shift = unknowns.disparity_shift.to(samples.disparity)[:, None]
    known = window_depths(samples, unknowns).reciprocal().flatten(1)
    fitted = scale * samples.disparity.flatten(1) + shift
    return share_within(fitted, known, samples.disparity_weights.flatten(1)).cpu()


def _without_bad_disparity(
    samples: Samples, shares: Tensor | None
) -> tuple[Samples, Bool[Tensor, "window"]]:
    """Leave out the disparity of windows that contradicts their points."""
    if samples.disparity_weights is None:
        return samples, torch.zeros(samples.cover.num_windows, dtype=torch.bool)
    counts = (samples.disparity_weights > 0).flatten(1).any(1).cpu()
    if shares is None:
        return samples, counts
    bad = counts & (shares < _MIN_DISPARITY_SHARE)
    if bad.any():
        _log.warning(
            "The disparity of %s fits the points in %s %% of the pixels only: left out.",
            _windows(bad), _span(100 * shares[bad], 0),
        )  # fmt: skip
    counts &= shares >= _MIN_DISPARITY_SHARE
    weights = samples.disparity_weights * counts.to(samples.disparity_weights)[:, None, None]
    return replace(samples, disparity_weights=weights), counts


def _ray_errors(samples: Samples, unknowns: Unknowns) -> Float[Tensor, "window"] | None:
    """Difference of the rotations from frame to frame, root mean square, in degrees."""
    if samples.ray_cameras is None:
        return None
    cover, longest = samples.cover, samples.weights.shape[1]
    position = torch.arange(longest)
    frame = position + torch.tensor(cover.first_frame)[:, None]
    camera = unknowns.world_to_camera[frame.clamp_max(cover.num_frames - 1), :3, :3]
    rays = samples.ray_cameras.rotation.transpose(-1, -2)
    ours = camera[:, 1:] @ camera[:, :-1].transpose(-1, -2)
    theirs = rays[:, 1:] @ rays[:, :-1].transpose(-1, -2)
    angle = vector_from_rotation(ours @ theirs.transpose(-1, -2)).norm(dim=-1)
    inside = position[1:] < torch.tensor(cover.length)[:, None]
    mean = (angle.square() * inside).sum(1) / inside.sum(1).clamp_min(1)
    return torch.rad2deg(mean.sqrt())


def _trusted_rays(
    samples: Samples, errors: Tensor | None, settings: AlignmentSettings
) -> Bool[Tensor, "window"]:
    if errors is None:
        return torch.zeros(samples.cover.num_windows, dtype=torch.bool)
    trusted = errors < settings.max_ray_error_deg
    if not trusted.all():
        _log.warning(
            "The ray cameras of %s turn differently, by %s degrees a frame: left out.",
            _windows(~trusted), _span(errors[~trusted], 1),
        )  # fmt: skip
    return trusted


def _windows(chosen: Bool[Tensor, "window"]) -> str:
    """Name some windows in a few words, however many there are."""
    numbers = [str(number) for number in chosen.nonzero()[:, 0].tolist()]
    named = ", ".join(numbers[:_NAMED_WINDOWS])
    if len(numbers) == 1:
        return f"window {named}"
    if len(numbers) > _NAMED_WINDOWS:
        named += ", ..."
    return f"{len(numbers)} of {len(chosen)} windows ({named})"


def _span(values: Float[Tensor, "value"], digits: int) -> str:
    """Write the smallest and the largest of some numbers, or the one that they are."""
    low, high = (f"{float(value):.{digits}f}" for value in values.aminmax())
    return low if low == high else f"{low} to {high}"


def _cameras(unknowns: Unknowns, samples: Samples) -> Cameras:
    intrinsics = intrinsics_from_focal(
        unknowns.log_focal.exp().float(), samples.height, samples.width
    )
    return Cameras(
        world_to_camera=unknowns.world_to_camera.float(),
        intrinsics=intrinsics.expand(samples.cover.num_frames, 3, 3),
        height=samples.height,
        width=samples.width,
    )


def _point_errors(samples: Samples, unknowns: Unknowns) -> list[float | None]:
    """Median distance of each window's points from the scene, relative to depth."""
    rays = samples.rays(unknowns.focal_px)
    cover = samples.cover
    by_window = torch.full_like(samples.weights, torch.nan)
    for frames in samples.chunks:
        part = frame_samples(samples, frames)
        matrix, offset = window_to_camera(unknowns, samples, frames)
        points = einsum(matrix.to(rays), part.points, "f s i j, f s p j -> f s p i")
        depth = unknowns.depth[frames, None]
        fused = depth[..., None] * rays
        error = (points + offset.to(rays)[:, :, None] - fused).norm(dim=-1) / depth
        error = error.where(part.weights > 0, torch.nan)
        filled = cover.filled[frames]
        window, position = cover.window[frames][filled], cover.position[frames][filled]
        by_window[window.to(error.device), position.to(error.device)] = error[
            filled.to(error.device)
        ]
    medians = by_window.flatten(1).nanmedian(dim=1).values.tolist()
    return [None if math.isnan(median) else median for median in medians]


def _report(
    samples: Samples,
    unknowns: Unknowns,
    adjusted: Adjusted,
    found: "_Found",
) -> AlignmentReport:
    cover = samples.cover
    share, rays = found.disparity_share, found.ray_errors
    points = _point_errors(samples, unknowns)
    valid = (samples.weights > 0).float().mean(-1).cpu()
    windows = tuple(
        WindowReport(
            first_frame=cover.first_frame[number],
            num_frames=cover.length[number],
            valid_share=float(valid[number, : cover.length[number]].mean()),
            point_error=points[number],
            disparity_share=None if share is None else float(share[number]),
            disparity_used=bool(found.disparity_counts[number]),
            ray_error_deg=None if rays is None else float(rays[number]),
            rays_used=bool(found.rays_count[number]),
            bridged=number in found.bridged,
        )
        for number in range(cover.num_windows)
    )
    return AlignmentReport(
        converged=adjusted.converged,
        iterations=adjusted.iterations,
        last_step=adjusted.last_step,
        start=adjusted.start,
        end=adjusted.end,
        focal_px=unknowns.focal_px,
        windows=windows,
    )
