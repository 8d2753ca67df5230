"""Scene values <-> the compact tensors of a scene file. docs/scene-files.md lists them.

Every pair `encode_*` / `decode_*` states the largest error of a round trip.
"""

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ..geometry import pixel_centers, project, transform_points, unproject
from ..scene import Cameras, PointMaps, PointTracks

_log = logging.getLogger(__name__)

RAY_TOLERANCE_PX = 0.01
"""Point maps are stored as depth when every point projects this near to its pixel's centre."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What goes into a file: tensors by name, and numbers by name."""

    tensors: dict[str, Tensor]
    numbers: dict[str, float]


def encode_tracks(tracks: PointTracks) -> Encoded:
    """Encode tracks. Per coordinate, the error is at most 2^-11 of its motion.

    (Plus 2^-40 of the largest motion in the file, and float32 rounding of the position.) Where
    2^-40 of the largest motion would show, because a few points fly off, motion stays float32.

    Raises:
        ValueError: a visible point is not finite.
    """
    _refuse_non_finite(tracks.positions, tracks.visibility, "visible")
    first = _first_finite_positions(tracks.positions)
    motion, scale = _encode_motion(tracks.positions, first)
    return Encoded(
        tensors={
            "tracks.first_positions": first.float(),
            "tracks.motion": motion,
            "tracks.visibility": pack_bits(tracks.visibility),
            "tracks.colors": encode_colors(tracks.colors),
        },
        numbers={"motion_scale": scale},
    )


def decode_tracks(encoded: Encoded, grid_hw: tuple[int, int] | None) -> PointTracks:
    """Inverse of `encode_tracks`, in float32.

    Raises:
        ValueError: a visible point is not finite, or shapes disagree.
    """
    tensors = encoded.tensors
    first, motion = tensors["tracks.first_positions"], tensors["tracks.motion"]
    positions = motion.float().mul_(encoded.numbers["motion_scale"]).add_(first)
    visibility = unpack_bits(tensors["tracks.visibility"], motion.shape[:2])
    _refuse_non_finite(positions, visibility, "visible")
    return PointTracks(
        positions=positions,
        colors=decode_colors(tensors["tracks.colors"]),
        visibility=visibility,
        grid_hw=grid_hw,
    )


def encode_point_maps(maps: PointMaps, cameras: Cameras) -> Encoded:
    """Encode point maps: depth where points lie on the rays of their pixels, else positions.

    As depth, the error is at most 2^-11 * |ln(depth / median depth)| of the depth, along the ray;
    as positions there is none. Confidence is within 2^-11 of itself.

    Raises:
        ValueError: a valid point is not finite.
    """
    _refuse_non_finite(maps.positions, maps.valid, "valid")
    tensors = {
        "point_maps.valid": pack_bits(maps.valid.flatten(1)),
        "point_maps.colors": encode_colors(maps.colors),
    }
    numbers: dict[str, float] = {}
    depth = _depth_on_rays(maps, cameras)
    if depth is None:
        tensors["point_maps.positions"] = maps.positions.float()
    else:
        log_depth = depth.log()
        center = float(log_depth[maps.valid].median()) if maps.valid.any() else 0.0
        offset = torch.where(maps.valid, log_depth - center, 0.0)
        tensors["point_maps.log_depth"] = offset.half()
        numbers["log_depth_center"] = center
    if maps.confidence is not None:
        scale = _power_of_two_scale(_largest_finite(maps.confidence))
        tensors["point_maps.confidence"] = (maps.confidence / scale).half()
        numbers["confidence_scale"] = scale
    return Encoded(tensors=tensors, numbers=numbers)


def decode_point_maps(encoded: Encoded, cameras: Cameras) -> PointMaps:
    """Inverse of `encode_point_maps`, in float32. Invalid points of a depth file become NaN.

    Raises:
        ValueError: a valid point is not finite, or shapes disagree.
    """
    tensors, numbers = encoded.tensors, encoded.numbers
    colors = decode_colors(tensors["point_maps.colors"])
    valid = unpack_bits(tensors["point_maps.valid"], (colors.shape[0], *colors.shape[1:3]))
    if "point_maps.log_depth" in tensors:
        if tuple(valid.shape[1:]) != (cameras.height, cameras.width):
            raise ValueError(
                f"log_depth is {valid.shape[1]}x{valid.shape[2]} pixels; its cameras are "
                f"{cameras.height}x{cameras.width}."
            )
        depth = (tensors["point_maps.log_depth"].float() + numbers["log_depth_center"]).exp()
        depth = torch.where(valid, depth, torch.nan)
        positions = _lift(depth, cameras)
    else:
        positions = tensors["point_maps.positions"]
    _refuse_non_finite(positions, valid, "valid")
    confidence = tensors.get("point_maps.confidence")
    if confidence is not None:
        confidence = confidence.float() * numbers["confidence_scale"]
    return PointMaps(positions=positions, colors=colors, valid=valid, confidence=confidence)


def encode_colors(colors: Float[Tensor, "*axes 3"]) -> Tensor:
    """Encode colours as uint8 when they came from 8-bit pictures (error 4e-6), else float16.

    float16 is within 2^-12, one sixteenth of an 8-bit step.

    Raises:
        ValueError: a colour is not finite.
    """
    if not colors.isfinite().all():
        raise ValueError("colors has entries that are NaN or infinite; expected sRGB in [0, 1].")
    steps = colors * 255
    rounded = steps.round()
    exact = (steps - rounded).abs().max() <= 1e-3
    if exact and rounded.min() >= 0 and rounded.max() <= 255:
        return rounded.to(torch.uint8)
    return colors.half()


def decode_colors(stored: Tensor) -> Float[Tensor, "*axes 3"]:
    """Inverse of `encode_colors`, in float32.

    Raises:
        ValueError: a colour is not finite.
    """
    colors = stored.float()
    if stored.dtype == torch.uint8:
        return colors / 255
    if not colors.isfinite().all():
        raise ValueError("colors has entries that are NaN or infinite.")
    return colors


def pack_bits(flags: Bool[Tensor, "frame item"]) -> UInt8[Tensor, "frame packed"]:
    """Eight flags in a byte, the first in the lowest bit; each frame starts a new byte."""
    return torch.from_numpy(np.packbits(flags.cpu().numpy(), axis=1, bitorder="little"))


def unpack_bits(
    packed: UInt8[Tensor, "frame packed"], shape: torch.Size | tuple[int, ...]
) -> Bool[Tensor, "frame *items"]:
    """Inverse of `pack_bits`, for flags of `shape`.

    Raises:
        ValueError: the bytes are not as many as the shape needs.
    """
    count = math.prod(shape[1:])
    if tuple(packed.shape) != (shape[0], -(-count // 8)):
        raise ValueError(
            f"Packed flags have shape {tuple(packed.shape)}; expected "
            f"{(shape[0], -(-count // 8))} for {tuple(shape)}."
        )
    flags = np.unpackbits(packed.cpu().numpy(), axis=1, count=count, bitorder="little")
    return torch.from_numpy(flags.view(np.bool_)).reshape(shape).to(packed.device)


def _encode_motion(
    positions: Float[Tensor, "frame point 3"], first: Float[Tensor, "point 3"]
) -> tuple[Tensor, float]:
    # Frame by frame, twice: a frame fits the processor's cache, all frames do not.
    largest = max(_largest_finite(frame - first) for frame in positions)
    scale, extent = _power_of_two_scale(largest), _extent(first.cpu())
    if extent > 0 and scale * 2**-25 > extent * 2**-20:
        _log.info(
            "Motion is stored as float32: its largest value, %.3g, is so far beyond the size of "
            "the scene, %.3g, that float16 would move the other points.",
            largest,
            extent,
        )
        return (positions - first).float(), 1.0
    motion = torch.empty(positions.shape, dtype=torch.float16, device=positions.device)
    for stored, frame in zip(motion, positions, strict=True):
        stored.copy_((frame - first).mul_(1 / scale))
    return motion, scale


def _power_of_two_scale(largest: float) -> float:
    """Return what brings `largest` to at most 2^15. A power of two loses nothing in a division,
    and makes the error the same for every unit of length.
    """
    return 2.0 ** max(math.frexp(largest)[1] - 15, -100) if largest > 0 else 1.0


def _largest_finite(values: Tensor) -> float:
    low, high = (float(bound) for bound in values.aminmax())
    if math.isfinite(low) and math.isfinite(high):
        return max(-low, high)
    return float(torch.where(values.isfinite(), values, 0.0).abs().max())


def _extent(positions: Float[Tensor, "point 3"]) -> float:
    """Median distance (largest coordinate) of points from their median: half a scene's size."""
    distance = (positions - positions.nanmedian(0).values).abs().amax(-1).nanmedian()
    return float(distance.nan_to_num(0.0))


def _first_finite_positions(
    positions: Float[Tensor, "frame point 3"],
) -> Float[Tensor, "point 3"]:
    """Frame 0, or a later frame for points that are not finite there; NaN if they never are."""
    first = positions[0].clone()
    for later in positions[1:]:
        missing = ~first.isfinite().all(-1)
        if not missing.any():
            break
        first[missing] = later[missing]
    return torch.where(first.isfinite().all(-1, keepdim=True), first, torch.nan)


def _depth_on_rays(maps: PointMaps, cameras: Cameras) -> Float[Tensor, "frame height width"] | None:
    """Camera z of every point, or None if some valid point is off the ray of its pixel."""
    if (cameras.height, cameras.width) != tuple(maps.positions.shape[1:3]):
        return None
    centers = pixel_centers(cameras.height, cameras.width).to(maps.positions)
    world_to_camera = cameras.world_to_camera.to(maps.positions)
    intrinsics = cameras.intrinsics.to(maps.positions)
    depths = torch.empty_like(maps.positions[..., 0])
    for frame, positions in enumerate(maps.positions):
        in_camera = transform_points(positions, world_to_camera[frame])
        pixels, depths[frame] = project(in_camera, intrinsics[frame])
        on_ray = (pixels - centers).abs().amax(-1) <= RAY_TOLERANCE_PX
        if not (on_ray & (depths[frame] > 0))[maps.valid[frame]].all():
            return None
    return depths


def _lift(
    depth: Float[Tensor, "frame height width"], cameras: Cameras
) -> Float[Tensor, "frame height width 3"]:
    centers = pixel_centers(*depth.shape[1:], device=depth.device, dtype=depth.dtype)
    camera_to_world = cameras.camera_to_world.to(depth)
    positions = torch.empty(*depth.shape, 3, dtype=depth.dtype, device=depth.device)
    for frame, intrinsics in enumerate(cameras.intrinsics.to(depth)):
        in_camera = unproject(centers, depth[frame], intrinsics)
        positions[frame] = transform_points(in_camera, camera_to_world[frame])
    return positions


def _refuse_non_finite(positions: Tensor, needed: Tensor, word: str) -> None:
    for frame, (points, wanted) in enumerate(zip(positions, needed, strict=True)):
        if points.isfinite().all():
            continue
        bad = int((~points.isfinite().all(-1) & wanted).sum())
        if bad:
            raise ValueError(
                f"Frame {frame} has {bad} {word} points that are NaN or infinite; expected "
                f"finite positions wherever a point is {word}."
            )
