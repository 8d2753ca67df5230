"""`reconstruct`: a video to a 4D scene, by Geo4D."""

import logging
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from ..geo4d.framing import Fit, Resolution
from ..geo4d.sampling import DEFAULT_FPS, Rescale, SamplingSettings
from ..wording import counted
from .console import Progress, print_table, progress_bar

if TYPE_CHECKING:
    from ..geo4d.model import Geo4DNetworks
    from ..geo4d.pipeline import ReconstructionSettings

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WindowOptions:
    """How the video is cut into windows, sampled and put together."""

    stride: int | None = None
    """Frames from one window's start to the next, 1 to 16. Default: 4, the best published; 8 takes
    half the time."""

    mirrored_windows: bool | None = None
    """Let the networks see each window mirrored, too, and align both: twice the work, and with the
    embedded weights better cameras. Default: what the weights are made for, which is no for the
    released ones and yes for the embedded ones."""

    fit: Fit = "crop"
    """How a video of another shape gets the network's size: crop, or pad."""

    network_hw: tuple[int, int] | None = None
    """Height and width at which the network works. Default: the trained one nearest in shape."""

    resolution: Resolution = "auto"
    """Of the scene. source: the video's pixels. network: the network's. auto: the video's, if all
    its points fit 2 GiB."""

    num_steps: int | None = None
    """Denoising steps. Default: what the weights are made for, which is 5 for the released ones."""

    rescale: Rescale = "corrected"
    """How sampling ends. released: as the published code does it."""

    sky_tolerance: float = 0.10
    """How near to the sky's code a point counts as sky; the released demo takes 0.35."""

    modalities: Literal["all", "points", "disparity"] = "all"
    """What the alignment uses: point maps, disparity and ray maps, or one of them."""

    alignment_weights: Literal["own", "paper"] = "own"
    """How its terms weigh. paper: as published, whose smoothness takes some of the motion out of
    the cameras; the more, the longer the video."""

    ray_reduction: int | None = None
    """Decode ray maps with 1, 2 or 4 times fewer pixels along each side. Default: 4 at full size,
    where cameras do not suffer; 1 for smaller networks than the released one."""

    disparity_reduction: int | None = None
    """The same for disparity. Default: 2 at full size, and likewise; with 1 depth is smoother and
    takes longer."""

    condition_fps: int = DEFAULT_FPS
    """What the network is told the frame rate is; the published evaluation says 24 for all."""

    windows_per_batch: int | None = None
    """Windows sampled at one time. Default: as many as keep the device busy."""

    seed: int = 0
    """Of the noise that geometry is sampled from."""

    def settings(self) -> "ReconstructionSettings":
        """Join them."""
        from ..geo4d.alignment import AlignmentSettings
        from ..geo4d.decoding import DecodingSettings
        from ..geo4d.modalities import ModalitySettings
        from ..geo4d.pipeline import ReconstructionSettings

        alignments = {
            "all": AlignmentSettings,
            "points": AlignmentSettings.points_only,
            "disparity": AlignmentSettings.disparity_only,
        }
        alignment = alignments[self.modalities]()
        if self.alignment_weights == "paper":
            alignment = alignment.with_paper_weights()
        return ReconstructionSettings(
            stride=self.stride,
            mirrored_windows=self.mirrored_windows,
            fit=self.fit,
            network_hw=self.network_hw,
            resolution=self.resolution,
            seed=self.seed,
            condition_fps=self.condition_fps,
            windows_per_batch=self.windows_per_batch,
            sampling=SamplingSettings(num_steps=self.num_steps, rescale=self.rescale),
            decoding=DecodingSettings(
                ray_reduction=self.ray_reduction,
                disparity_reduction=self.disparity_reduction,
                modalities=ModalitySettings(sky_tolerance=self.sky_tolerance),
            ),
            alignment=alignment,
        )


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """Reconstruct the moving scene and the cameras of a video.

    Writes one scene file: a point map, a camera and a confidence for every frame. `render`, `view`,
    `info` and `convert` take it.
    """

    source: Positional[Path]
    """A video."""

    weights: Path | None = None
    """Geo4D weights (.safetensors), converted or trained. Default: the small embedded ones, which
    know procedural videos only."""

    windows: OmitArgPrefixes[WindowOptions] = field(default_factory=WindowOptions)

    max_frames: int | None = None
    """Take at most so many frames."""

    frame_step: int = 1
    """Take every n-th frame."""

    device: str | None = None
    """cpu, cuda, cuda:1 or mps. Default: the best there is."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of computation. auto: bfloat16 where the device has it."""

    compile_blocks: bool = False
    """Compile the networks' blocks: minutes slower to start, faster per window."""

    output: Annotated[Path, arg(aliases=["-o"])] = Path("scene.safetensors")
    """Scene file (.safetensors) to write."""

    def run(self) -> int:
        """Reconstruct and save."""
        from ..files import check_folder
        from ..geo4d.pipeline import reconstruct
        from ..geo4d.speed import compilation_told
        from ..geo4d.video import VideoFile
        from ..scene_files import check_scene_name, save_scene

        check_scene_name(self.output)
        check_folder(self.output.parent)
        settings = self.windows.settings()
        video = VideoFile(self.source, max_frames=self.max_frames, frame_step=self.frame_step)
        if self.source.is_dir():
            raise IsADirectoryError(21, "a folder", str(self.source))
        if not self.source.is_file():
            raise FileNotFoundError(2, "no such file", str(self.source))
        networks = self._networks()
        stages = _Stages()
        with stages, compilation_told() if self.compile_blocks else nullcontext():
            result = reconstruct(video, networks, settings, report=stages.begin)
        save_scene(self.output, result.scene)
        print_table("time", ["stage", "seconds"], stages.rows())
        LOGGER.info(
            "Wrote %s: %s from %s.",
            self.output,
            counted(result.scene.num_frames, "frame"),
            counted(result.num_windows, "window"),
        )
        return 0

    def _networks(self) -> "Geo4DNetworks":
        import torch

        from ..devices import detect_device
        from ..geo4d.weight_choice import choose_weights
        from ..weights.geo4d import load_geo4d

        choice = choose_weights(self.weights)
        (LOGGER.warning if choice.embedded else LOGGER.info)("%s", choice.reason)
        dtype = None if self.dtype == "auto" else getattr(torch, self.dtype)
        state = detect_device(self.device, dtype)
        LOGGER.info("Computing on %s in %s.", state.device, str(state.dtype).split(".")[-1])
        networks = load_geo4d(choice.path, dtype=state.dtype, device=state.device)
        if self.compile_blocks:
            from ..geo4d.speed import compile_networks

            compile_networks(networks)
        return networks


class _Stages:
    """One bar and one time for each stage."""

    def __init__(self) -> None:
        self._bars = ExitStack()
        self._started: list[tuple[str, float]] = []

    def begin(self, name: str) -> Progress:
        """Begin the next stage."""
        self._bars.close()
        self._started.append((name, time.perf_counter()))
        return self._bars.enter_context(progress_bar(name))

    def __enter__(self) -> "_Stages":
        return self

    def __exit__(self, *_error: object) -> None:
        self._bars.close()
        self._started.append(("", time.perf_counter()))

    def rows(self) -> list[list[str]]:
        """Return name and seconds of each stage."""
        return [
            [name, f"{end - start:.1f}"]
            for (name, start), (_, end) in zip(self._started[:-1], self._started[1:], strict=True)
        ]
