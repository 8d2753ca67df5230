"""Procedural videos whose camera turns and travels, with exact depth and cameras.

    python -m training.procedural.clips VIDEO.mp4 --seed 900000000 --num-frames 48

The scenes are those of `procedural_scenes`; only the camera is another one. As everywhere, a seed
means one clip: all is drawn on the CPU in float64, then rays are cast on any device.
"""

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from more4d_backend.geometry import rigid
from more4d_backend.scene import Cameras
from more4d_backend.synthetic import SKY
from more4d_backend.synthetic.actors import Dice

from ..data.samples import SampleSize
from ..geo4d.clips import FARTHEST_M, GeometryClip
from .scenes import ProceduralScene, draw_scene
from .settings import ProceduralSettings

_log = logging.getLogger(__name__)

_SCENE_FRAMES = 49
"""The motions of actors are drawn to fill so many frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSettings:
    """What is drawn. Ranges are uniform."""

    size_hw: tuple[int, int] = (96, 128)
    """Pixels."""

    num_frames: int = 16
    """Of a clip."""

    turn_deg: tuple[float, float] = (1.0, 3.0)
    """The camera turns by this much from every frame to the next."""

    turn_frames: tuple[int, int] = (6, 14)
    """After so many frames it turns back."""

    lead_frames: int = 24
    """The camera has been under way for up to so many frames before the first one that is seen, as
    it has been where a window begins in the middle of a video: it may turn back soon, and more than
    once, and the horizon need not be level."""

    pitch_share: float = 0.35
    """Most of that turn that goes up or down; the rest is to the left or right."""

    orbit: tuple[float, float] = (0.0, 1.0)
    """1: the camera circles around what it looked at in frame 0. 0: it turns on the spot."""

    sway: float = 0.15
    """Largest amplitude of its travel besides, in every direction, in distances to the scene. With
    the orbit the camera is 0.12 of that distance away from the middle of its path (root mean square
    over 32 frames, median of 60 clips). From 0.2 on cameras meet objects."""

    fov_deg: tuple[float, float] = (45.0, 65.0)
    """Field of view across the longer side."""

    frame_steps: tuple[int, ...] = (1, 2)
    """Frames of the actors' time from one frame to the next."""

    samples: int = 2
    """Colours average samples x samples rays per pixel."""

    def scene_settings(self) -> ProceduralSettings:
        """Return what scenes are drawn from."""
        height, width = (-(-size // 16) * 16 for size in self.size_hw)
        return ProceduralSettings(
            size=SampleSize(num_frames=_SCENE_FRAMES, height=height, width=width),
            fov_deg=self.fov_deg,
            moving_camera_share=0.0,
            novel_paths=(),
            samples=self.samples,
        )


def procedural_clip(
    seed: int, settings: ClipSettings, *, device: torch.device | str = "cpu"
) -> GeometryClip:
    """Make the clip of a seed; its tensors stay on `device`.

    Raises:
        SettingsError: no scene fits the settings.
    """
    scene = draw_scene(seed, settings.scene_settings())
    # Dice of its own, so that the camera does not hang on how many draws the scene took.
    dice = Dice(seed ^ 0x5EED_CA3E)
    lead = dice.below(settings.lead_frames + 1)
    path = _cameras(scene, dice, settings, lead + settings.num_frames)
    in_scene = path.frames(slice(lead, None))
    step = settings.frame_steps[dice.below(len(settings.frame_steps))]
    times = torch.arange(settings.num_frames) * step / scene.world.fps
    view = scene.world.view(in_scene.to(device), times, samples=settings.samples)
    return GeometryClip(
        name=f"procedural-clip-{seed:09d}",
        video=(view.rgb * 255).round().to(torch.uint8),
        depth=view.depth,
        # The dome of the sky has a depth, but nobody could tell it from a picture.
        valid=(view.object_index != SKY) & (view.depth <= FARTHEST_M),
        cameras=_from_the_first(in_scene).to(device),
    )


def _from_the_first(cameras: Cameras) -> Cameras:
    """The same cameras in a world in which the first one is the identity."""
    poses = cameras.world_to_camera.double()
    poses = poses @ torch.linalg.inv(poses[0])
    poses[0] = torch.eye(4)  # exactly
    return replace(cameras, world_to_camera=poses.float())


def _cameras(scene: ProceduralScene, dice: Dice, settings: ClipSettings, frames: int) -> Cameras:
    """Cameras that turn, turn back, and travel; that of frame 0 is the identity."""
    rate = math.radians(dice.between(*settings.turn_deg))
    tilt = settings.pitch_share * dice.between(-1, 1)
    yaw = _there_and_back(dice, frames, settings.turn_frames) * rate * math.sqrt(1 - tilt**2)
    pitch = _there_and_back(dice, frames, settings.turn_frames) * rate * tilt
    rotation = _turned(yaw, pitch)
    distance = scene.path_settings.pivot_distance
    assert distance is not None  # draw_scene sets it
    pivot = yaw.new_tensor([0.0, 0.0, distance])
    center = dice.between(*settings.orbit) * (pivot - rotation @ pivot)
    center = center + distance * settings.sway * _sway(dice, frames)
    camera_to_world = rigid(rotation, center)
    height, width = settings.size_hw
    still = scene.world.cameras(1, height, width)
    return Cameras(
        world_to_camera=torch.linalg.inv(camera_to_world).float(),
        intrinsics=still.intrinsics.expand(frames, 3, 3),
        height=height,
        width=width,
    )


def _there_and_back(dice: Dice, frames: int, span: tuple[int, int]) -> Float[Tensor, " frame"]:
    """One step per frame, up or down, that changes its direction from time to time."""
    steps: list[float] = []
    direction = 1.0 if dice.below(2) else -1.0
    while len(steps) < frames - 1:
        steps += [direction] * (span[0] + dice.below(span[1] - span[0] + 1))
        direction = -direction
    return torch.tensor([0.0, *steps[: frames - 1]], dtype=torch.float64).cumsum(0)


def _sway(dice: Dice, frames: int) -> Float[Tensor, "frame 3"]:
    """Slow waves that begin at 0."""
    time = torch.arange(frames, dtype=torch.float64)
    waves = []
    for _ in range(3):
        period, phase = dice.between(14, 30), dice.between(0, 2 * math.pi)
        wave = torch.sin(2 * math.pi * time / period + phase)
        waves.append(dice.between(-1, 1) * (wave - wave[0]))
    return torch.stack(waves, dim=-1)


def _turned(
    yaw_rad: Float[Tensor, " frame"], pitch_rad: Float[Tensor, " frame"]
) -> Float[Tensor, "frame 3 3"]:
    """Camera-to-world rotations: first up or down, then to the side."""
    zero, one = torch.zeros_like(yaw_rad), torch.ones_like(yaw_rad)
    c, s = yaw_rad.cos(), yaw_rad.sin()
    to_side = torch.stack([c, zero, s, zero, one, zero, -s, zero, c], -1).unflatten(-1, (3, 3))
    c, s = pitch_rad.cos(), pitch_rad.sin()
    upwards = torch.stack([one, zero, zero, zero, c, -s, zero, s, c], -1).unflatten(-1, (3, 3))
    return to_side @ upwards


class ProceduralClips(torch.utils.data.Dataset[GeometryClip]):
    """Clips by number, made when they are asked for."""

    def __init__(
        self,
        settings: ClipSettings,
        *,
        num_clips: int = 1_000_000,
        first_seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare the clips of the seeds from `first_seed` on."""
        if num_clips < 1 or first_seed < 0:
            raise ValueError(
                f"num_clips is {num_clips} and first_seed is {first_seed}; expected at least 1 and "
                "at least 0."
            )
        self.settings, self.first_seed = settings, first_seed
        self.num_clips, self.device = num_clips, torch.device(device)

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, index: int) -> GeometryClip:
        if not 0 <= index < self.num_clips:
            raise IndexError(f"Clip {index} of {self.num_clips}.")
        return procedural_clip(self.first_seed + index, self.settings, device=self.device)


def write(
    destination: Path,
    /,
    *,
    seed: int = 900_000_000,
    num_frames: int = 48,
    size_hw: tuple[int, int] = (96, 128),
    device: str = "cpu",
) -> int:
    """Write the video of a seed, and beside it its true scene (.safetensors).

    Args:
        destination: video file (.mp4 or .mkv).
        seed: which clip; from 900 000 000 on no trainer uses them.
        num_frames: of the video.
        size_hw: its height and width.
        device: what casts the rays.
    """
    settings = replace(ClipSettings(), num_frames=num_frames, size_hw=size_hw)
    write_clip(destination, seed, settings, fps=8.0, device=device)
    _log.info("Wrote %s and its true scene.", destination)
    return 0


def write_clip(
    destination: Path,
    seed: int,
    settings: ClipSettings,
    *,
    fps: float,
    device: torch.device | str = "cpu",
) -> None:
    """Write the video of a seed (.mkv: without loss), then beside it its scene (.safetensors).

    Raises:
        OutputError: the place cannot be written.
    """
    from more4d_backend.files.videos import save_video
    from more4d_backend.scene import PointMaps, Scene4D
    from more4d_backend.scene_files import save_scene

    from ..geo4d.clips import world_positions

    clip = procedural_clip(seed, settings, device=device)
    colors = clip.video.cpu().float() / 255
    cameras = clip.cameras.to("cpu")
    positions = world_positions(clip.depth.cpu(), cameras)
    points = PointMaps(positions=positions, colors=colors, valid=clip.valid.cpu())
    save_video(destination, colors, fps, lossless=destination.suffix == ".mkv")
    scene = Scene4D(points=points, cameras=cameras, fps=fps)
    save_scene(destination.with_suffix(".safetensors"), scene)


if __name__ == "__main__":
    import tyro

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    raise SystemExit(tyro.cli(write))
