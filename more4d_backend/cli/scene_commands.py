"""`lift`, `convert`, `info`, `synthetic`: scenes made, written and looked into."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from tyro.conf import OmitArgPrefixes, Positional, arg

from ..scene import PointTracks, Scene4D
from .console import print_table
from .depth_options import DepthOptions

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Lift:
    """Lift a photo and its depth to a scene of one frame."""

    image: Positional[Path]
    """The photo."""

    depth_options: OmitArgPrefixes[DepthOptions] = field(default_factory=DepthOptions)

    device: str = "cpu"
    """Where a depth network runs: cpu, cuda or mps."""

    output: Annotated[Path, arg(aliases=["-o"])] = Path("scene.safetensors")
    """Scene file (.safetensors) to write."""

    def run(self) -> int:
        """Lift and save."""
        from ..devices import detect_device
        from ..scene_files import check_scene_name, save_scene

        check_scene_name(self.output)
        device = str(detect_device(self.device).device)
        save_scene(self.output, self.depth_options.lift(self.image, device=device))
        LOGGER.info("Wrote %s.", self.output)
        return 0


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a scene in another format: PLY, Gaussian PLY, USD, TAPVid-3D npz, or ours.

    more4d: a whole scene in one .safetensors, to be read back. tapvid3d: tracks with the keys of
    TAPVid-3D, .npz. ply: coloured points; a folder with one file per frame, or one .ply of a scene
    of one frame. gaussians: 3D Gaussians for splat viewers, likewise. usd: animated points and
    camera, .usd .usdc .usda (needs usd-core).
    """

    source: Positional[Path]
    """Scene to read: ours (.safetensors), a PLY, or a TAPVid-3D .npz."""

    output: Positional[Path]
    """File or folder to write."""

    to: str | None = None
    """more4d, tapvid3d, ply, gaussians or usd. Default: told by the ending of the output."""

    def run(self) -> int:
        """Read and write."""
        from ..scene_files.formats import export_scene, import_scene

        export_scene(self.output, import_scene(self.source), self.to)
        LOGGER.info("Wrote %s.", self.output)
        return 0


@dataclass(frozen=True, kw_only=True)
class Info:
    """Say what is in a scene."""

    source: Positional[Path]
    """Scene to read: ours (.safetensors), a PLY, or a TAPVid-3D .npz."""

    def run(self) -> int:
        """Print a table."""
        from ..scene_files.formats import import_scene

        print_table(str(self.source), ["what", "value"], describe_scene(import_scene(self.source)))
        return 0


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Write a photo, its depth, its intrinsics and its true motion from a synthetic world."""

    seed: int = 0
    """Chooses the world."""

    num_frames: int = 25
    """Frames of the true scene."""

    size_hw: tuple[int, int] = (368, 512)
    """Height and width in pixels."""

    output: Annotated[Path, arg(aliases=["-o"])] = Path("out")
    """Folder for photo.png, depth.png (millimetres), intrinsics.npy, scene.safetensors."""

    def run(self) -> int:
        """Make the world and write what its camera sees."""
        from ..files import replacing
        from ..files.depth_maps import save_depth_png16
        from ..files.images import save_image
        from ..scene_files import save_scene
        from ..synthetic import make_world

        world = make_world(self.seed)
        cameras = world.cameras(self.num_frames, *self.size_hw)
        view = world.view(cameras.frames(slice(0, 1)), samples=3)
        save_image(self.output / "photo.png", view.rgb[0])
        save_depth_png16(self.output / "depth.png", view.depth[0])
        with replacing(self.output / "intrinsics.npy") as temporary:
            np.save(temporary, cameras.intrinsics[0].numpy())
        save_scene(self.output / "scene.safetensors", world.scene(cameras))
        LOGGER.info("Wrote %s: %s.", self.output, ", ".join(thing.name for thing in world.objects))
        return 0


def describe_scene(scene: Scene4D) -> list[list[str]]:
    """Rows of `info`: what the scene consists of, and its size in numbers."""
    from ..camera_paths import scene_scale

    points, cameras = scene.points, scene.cameras
    is_tracks = isinstance(points, PointTracks)
    usable = points.visibility if is_tracks else points.valid
    positions = points.positions[usable]
    low, high = (positions.amin(0), positions.amax(0)) if len(positions) else (None, None)
    rows = [
        ["points", "tracks (identity over time)" if is_tracks else "point maps (one per pixel)"],
        ["frames", f"{scene.num_frames} at {scene.fps:g} per second"],
        ["points a frame", f"{usable[0].numel()}, {100 * usable.float().mean():.1f} % usable"],
        ["source cameras", f"{cameras.height}x{cameras.width} (height x width)"],
        ["focal length", f"{cameras.intrinsics[0, 0, 0]:.1f} px"],
        ["camera moves", "yes" if _moves(cameras.world_to_camera) else "no"],
        ["median depth", f"{scene_scale(scene):.4g}"],
    ]
    if low is not None and high is not None:
        box = " to ".join(
            "(" + ", ".join(f"{v:.3g}" for v in p.tolist()) + ")" for p in (low, high)
        )
        rows.append(["box of all points", box])
    if isinstance(points, PointTracks):
        rows.append(["largest motion", f"{points.motion.norm(dim=-1)[usable].max():.4g}"])
        rows.append(["pixel grid", "none" if points.grid_hw is None else str(points.grid_hw)])
    return rows


def _moves(world_to_camera: torch.Tensor) -> bool:
    return not torch.allclose(world_to_camera, world_to_camera[:1], atol=1e-6)
