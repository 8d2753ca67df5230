"""Edits of camera paths: ease, reverse, loop, retime, concatenate, rebase; and in-between frames.

All take and return `Cameras`. Between frames, positions go straight, rotations take the shortest
way (slerp) and focal lengths change by equal factors (log space).
"""

import difflib
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry import (
    invert_rigid,
    matrix_from_quaternion_wxyz,
    quaternion_wxyz_from_matrix,
    rigid,
)
from ..scene import Cameras


class CameraPathError(ValueError):
    """A camera path that does not exist, or that cannot be made or joined as asked."""


EASES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda time: time,
    "in": lambda time: time * time,
    "out": lambda time: time * (2 - time),
    "in-out": lambda time: time * time * (3 - 2 * time),
}
"""Name -> function from [0, 1] onto [0, 1]. `in` starts slowly, `out` ends slowly."""


def check_ease(ease: str) -> None:
    """Refuse a name that is no ease.

    Raises:
        CameraPathError: suggests the nearest name.
    """
    if ease not in EASES:
        nearest = difflib.get_close_matches(ease.lower().replace("_", "-"), EASES, n=1, cutoff=0.4)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        raise CameraPathError(f"ease is {ease!r}; expected one of {', '.join(EASES)}.{hint}")


def check_num_frames(num_frames: int) -> None:
    """Refuse a path without frames.

    Raises:
        CameraPathError: says what came.
    """
    if num_frames < 1:
        raise CameraPathError(f"num_frames is {num_frames}; expected at least 1.")


def retime_path(path: Cameras, num_frames: int, *, ease: str = "linear") -> Cameras:
    """Go the same way in another number of frames, and with another ease.

    First and last frame stay as they are, bit for bit; so does every frame that is met exactly.

    Raises:
        CameraPathError: no frames, or an unknown ease.
    """
    check_ease(ease)
    check_num_frames(num_frames)
    frame = torch.arange(num_frames, dtype=torch.float64)
    last = path.num_frames - 1
    if ease == "linear":  # multiplied first: exact where the division comes out even
        return cameras_between(path, frame * last / max(num_frames - 1, 1))
    return cameras_between(path, EASES[ease](frame / max(num_frames - 1, 1)) * last)


def ease_path(path: Cameras, ease: str) -> Cameras:
    """Go the same way in as many frames, but start or end slowly.

    Raises:
        CameraPathError: unknown ease.
    """
    return retime_path(path, path.num_frames, ease=ease)


def reverse_path(path: Cameras) -> Cameras:
    """Go the path backwards. It then starts where the path ended, not at the input view."""
    return path.frames(list(range(path.num_frames - 1, -1, -1)))


def loop_path(path: Cameras) -> Cameras:
    """Go the path and come back, in 2 n - 2 frames that repeat seamlessly."""
    return path.frames([*range(path.num_frames), *range(path.num_frames - 2, 0, -1)])


def concatenate_paths(*paths: Cameras) -> Cameras:
    """Join paths end to end: each next one is moved so that it starts where the last one ends.

    The frame at each joint comes once, so paths of 25 and 25 frames make 49.

    Raises:
        CameraPathError: no paths, or paths for images of different sizes.
    """
    if not paths:
        raise CameraPathError("There is no path to concatenate; expected at least one.")
    joined = paths[0]
    for path in paths[1:]:
        moved = rebase_path(path, joined.frames([-1])).frames(slice(1, None))
        joined = replace(
            joined,
            world_to_camera=torch.cat([joined.world_to_camera, moved.world_to_camera]),
            intrinsics=torch.cat([joined.intrinsics, moved.intrinsics]),
        )
    return joined


def rebase_path(path: Cameras, start: Cameras, *, scale: float = 1.0) -> Cameras:
    """Move a whole path, unbent, so that it starts at another camera (one frame).

    This brings a path from elsewhere to the input view. `scale` multiplies its distances, for a
    path whose world has another unit. Focal lengths keep their ratio to the first, principal
    points their offset. Frame 0 is `start`, bit for bit.

    Raises:
        CameraPathError: `start` is not one camera, image sizes differ, or `scale` is not positive.
    """
    if start.num_frames != 1:
        raise CameraPathError(f"start has {start.num_frames} cameras; expected one.")
    if (path.height, path.width) != (start.height, start.width):
        raise CameraPathError(
            f"The path is for {path.height}x{path.width} images and the camera where it should "
            f"start for {start.height}x{start.width}. Use path.resized(height, width) first."
        )
    if not 0 < scale < float("inf"):
        raise CameraPathError(f"scale is {scale}; expected a positive number.")
    poses = path.world_to_camera.cpu().double()
    relative = poses @ invert_rigid(poses[:1])
    relative[:, :3, 3] *= scale
    world_to_camera = relative @ start.world_to_camera.cpu().double()
    K, K_start = path.intrinsics.cpu().double(), start.intrinsics.cpu().double()
    intrinsics = K_start + K - K[:1]
    for axis in (0, 1):
        intrinsics[:, axis, axis] = K_start[:, axis, axis] * K[:, axis, axis] / K[0, axis, axis]
    return starting_at(start, world_to_camera, intrinsics)


def starting_at(
    start: Cameras,
    world_to_camera: Float[Tensor, "frame 4 4"],
    intrinsics: Float[Tensor, "frame 3 3"],
) -> Cameras:
    """Cameras like `start` (type, device, image size), whose frame 0 is `start` bit for bit.

    The products that made frame 0 may have rounded; the input view itself does not.
    """
    poses, start_poses = world_to_camera, start.world_to_camera
    poses = poses[1:].to(start_poses.dtype).to(start_poses.device)  # in this order: mps has no f64
    K = intrinsics[1:].to(start.intrinsics.dtype).to(start.intrinsics.device)
    return replace(
        start,
        world_to_camera=torch.cat([start_poses, poses]),
        intrinsics=torch.cat([start.intrinsics, K]),
    )


def cameras_between(path: Cameras, times: Float[Tensor, "time"]) -> Cameras:
    """Cameras at fractional frame numbers, each within [0, num_frames - 1].

    A whole number gives that frame, bit for bit.
    """
    dtype, device = path.world_to_camera.dtype, path.world_to_camera.device
    times = times.cpu().double()
    before = times.floor().long().clamp(0, max(path.num_frames - 2, 0))
    after = (before + 1).clamp_max(path.num_frames - 1)
    fraction = (times - before)[:, None]
    poses = invert_rigid(path.world_to_camera.cpu().double())
    K = path.intrinsics.cpu().double()
    position = torch.lerp(poses[before, :3, 3], poses[after, :3, 3], fraction)
    quaternion_wxyz = quaternion_wxyz_from_matrix(poses[:, :3, :3])
    rotation = matrix_from_quaternion_wxyz(
        slerp(quaternion_wxyz[before], quaternion_wxyz[after], fraction)
    )
    between = invert_rigid(rigid(rotation, position)).to(dtype).to(device)
    intrinsics = torch.lerp(K[before], K[after], fraction[..., None])
    for axis in (0, 1):
        log_focal = K[:, axis, axis].log()
        log_focal = torch.lerp(log_focal[before], log_focal[after], fraction[:, 0])
        intrinsics[:, axis, axis] = log_focal.exp()
    intrinsics = intrinsics.to(dtype).to(device)
    for whole, source in ((0.0, before), (1.0, after)):
        met = (fraction == whole)[..., None].to(device)
        source = source.to(device)
        between = torch.where(met, path.world_to_camera[source], between)
        intrinsics = torch.where(met, path.intrinsics[source], intrinsics)
    return replace(path, world_to_camera=between, intrinsics=intrinsics)


def slerp(
    start: Float[Tensor, "*#batch 4"],
    end: Float[Tensor, "*#batch 4"],
    fraction: Float[Tensor, "*#batch 1"],
) -> Float[Tensor, "*batch 4"]:
    """Rotate evenly and the shortest way from one unit quaternion to another (Shoemake 1985)."""
    end = torch.where((start * end).sum(-1, keepdim=True) < 0, -end, end)
    # Half angles by atan2 keep their digits where acos of the dot product loses them.
    angle = 2 * torch.atan2((end - start).norm(dim=-1), (end + start).norm(dim=-1))[..., None]
    near = angle < 1e-8
    sine = torch.where(near, 1.0, angle.sin())
    from_start = torch.where(near, 1 - fraction, ((1 - fraction) * angle).sin() / sine)
    from_end = torch.where(near, fraction, (fraction * angle).sin() / sine)
    return from_start * start + from_end * end
