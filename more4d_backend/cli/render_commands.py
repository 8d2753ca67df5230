"""`render`: a scene, or a photo and its depth, along camera paths."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, cast

from jaxtyping import Float
from torch import Tensor
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from ..camera_paths import PathSettings
from ..camera_paths.edits import CameraPathError
from ..camera_paths.sources import check_source, path_from, source_label
from ..files import check_folder
from ..files.videos import check_fps
from ..rendering import RenderError, RenderMode, RenderSettings
from ..scene import Cameras, Scene4D
from .console import progress_bar
from .depth_options import DepthOptions

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PathOptions:
    """How the camera moves."""

    camera: UseAppendAction[tuple[str, ...]] = ()
    """A camera path by name (see `paths list`), a keyframe JSON or any camera file. Give it
    several times for several videos. Default: orbit-left."""

    amplitude: float = 1.0
    """Multiplies the distances and angles of a path."""

    angle_deg: float | None = None
    """Whole turn, in degrees, of an orbit, arc, crane or spiral."""

    ease: str | None = None
    """linear, in, out or in-out. Default: in-out; a camera file keeps its own timing."""

    loop: bool = False
    """Return to the start, so that the video repeats without a jump."""

    seed: int = 0
    """Of random choices: the movement of handheld and, in generate, the motion."""

    def check(self) -> None:
        """Refuse unknown paths and settings, and two paths of one name, before any work."""
        self.settings()
        by_label: dict[str, str] = {}
        for source in self.sources:
            check_source(source)
            label = source_label(source)
            other = by_label.setdefault(label.casefold(), source)
            if other != source:
                raise CameraPathError(
                    f"--camera {other} and --camera {source} would both be written as {label}. "
                    "Rename one of the files."
                )

    @property
    def sources(self) -> tuple[str, ...]:
        """What was asked for, or the default."""
        return self.camera or ("orbit-left",)

    def settings(self) -> PathSettings:
        """How far and how evenly."""
        return PathSettings(
            amplitude=self.amplitude,
            angle_deg=self.angle_deg,
            ease=self.ease,
            loop=self.loop,
            seed=self.seed,
        )

    def paths(self, scene: Scene4D, num_frames: int | None) -> dict[str, Cameras]:
        """Make every path, by its label."""
        if num_frames is None and scene.num_frames == 1:
            num_frames = 49
        return {
            source_label(source): path_from(source, scene, num_frames, settings=self.settings())
            for source in self.sources
        }


@dataclass(frozen=True, kw_only=True)
class Render:
    """Render a scene, or a photo and its depth, along camera paths.

    Writes per path the video (.mp4), the hole mask (.mkv, white = never seen) and, if asked, the
    depth; and one contact sheet of all.
    """

    source: Positional[Path]
    """A scene (.safetensors, .ply or TAPVid-3D .npz), or a photo, which then needs --depth."""

    depth_options: OmitArgPrefixes[DepthOptions] = field(default_factory=DepthOptions)
    paths: OmitArgPrefixes[PathOptions] = field(default_factory=PathOptions)

    num_frames: int | None = None
    """Frames of each path. Default: as many as the scene has; 49 where the scene is one frame."""

    mode: Annotated[str, arg(metavar="{nearest,splat,gaussian}")] = "splat"
    """nearest: one pixel a point. splat: each point covers its part of the surface.
    gaussian: each point is a small Gaussian (gsplat where it is installed with CUDA)."""

    size_hw: tuple[int, int] | None = None
    """Height and width of the videos. Default: those of the input view."""

    max_footprint_px: float = 16.0
    """Longest side of a point, in pixels of the video."""

    grow_px: int = 0
    """Grow the hole mask by so many pixels."""

    feather_px: int = 0
    """Soften the border of the hole mask over so many pixels."""

    min_area_px: int = 0
    """Close holes of fewer pixels than this with the colours around them."""

    draw_unseen: bool = False
    """Draw tracks also in frames where their visibility is False."""

    save_depth: bool = False
    """Write the depth of each frame as EXR, too."""

    lossless: bool = False
    """Write the video without loss (.mkv)."""

    fps: float | None = None
    """Frames per second of the videos. Default: the scene's."""

    device: str | None = None
    """cpu, cuda or mps. Default: the best there is."""

    output: Annotated[Path, arg(aliases=["-o"])] = Path("out")
    """Folder to write to."""

    def run(self) -> int:
        """Load or lift, then render and write each path."""
        self._check()
        settings = RenderSettings(
            mode=cast(RenderMode, self.mode),
            draw_unseen=self.draw_unseen,
            max_footprint_px=self.max_footprint_px,
        )
        device = self._device()
        scene = self._scene(device).to(device)
        sheet: dict[str, Float[Tensor, "frame height width channel"]] = {}
        for label, cameras in self.paths.paths(scene, self.num_frames).items():
            if self.size_hw is not None:
                cameras = cameras.resized(*self.size_hw)
            sheet |= self._render_path(label, scene, cameras, settings)
        self._write_sheet(sheet)
        return 0

    def _check(self) -> None:
        self.paths.check()
        if self.num_frames is not None and self.num_frames < 1:
            raise RenderError(f"num_frames is {self.num_frames}; expected at least 1.")
        if self.fps is not None:
            check_fps(self.fps)
        for name in ("grow_px", "feather_px", "min_area_px"):
            if getattr(self, name) < 0:
                raise RenderError(f"{name} is {getattr(self, name)}; expected 0 or more pixels.")
        check_folder(self.output)

    def _scene(self, device: str) -> Scene4D:
        from ..scene_files.formats import SCENE_SUFFIXES, import_scene

        if self.source.suffix.lower() in SCENE_SUFFIXES:
            self.depth_options.warn_without_effect(self.source)
            return import_scene(self.source)
        return self.depth_options.lift(self.source, device=device)

    def _device(self) -> str:
        from ..devices import detect_device

        device = str(detect_device(self.device).device)
        if self.device is None:
            LOGGER.info("Rendering on %s. Choose with --device.", device)
        return device

    def _render_path(
        self, label: str, scene: Scene4D, cameras: Cameras, settings: RenderSettings
    ) -> Mapping[str, Float[Tensor, "frame height width channel"]]:
        from ..files.videos import save_mask_video, save_video
        from ..rendering import fill_pinholes, hole_mask, render

        with progress_bar(label) as progress:
            view = render(scene, cameras, settings, progress=progress)
        if self.min_area_px:
            view = fill_pinholes(view, self.min_area_px)
        holes = hole_mask(
            view.alpha,
            grow_px=self.grow_px,
            feather_px=self.feather_px,
            min_area_px=self.min_area_px,
        )
        fps = scene.fps if self.fps is None else self.fps
        video = self.output / f"{label}{'.mkv' if self.lossless else '.mp4'}"
        save_video(video, view.rgb, fps, lossless=self.lossless)
        save_mask_video(self.output / f"{label}-holes.mkv", holes, fps)
        if self.save_depth:
            from ..files.depth_maps import save_depth_frames

            save_depth_frames(self.output / f"{label}-depth", view.depth)
        LOGGER.info(
            "Wrote %s (frames: %d, holes: %.1f %%).", video, view.num_frames, 100 * holes.mean()
        )
        return {label: view.rgb, f"{label}: hole mask": holes[..., None]}

    def _write_sheet(
        self, sheet: Mapping[str, Float[Tensor, "frame height width channel"]]
    ) -> None:
        from ..files import replacing
        from ..files.contact_sheet import contact_sheet

        path = self.output / "contact-sheet.png"
        with replacing(path) as temporary:
            contact_sheet(sheet).save(temporary)
        LOGGER.info("Wrote %s.", path)
