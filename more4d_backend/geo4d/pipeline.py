"""A video to a 4D scene: frame, encode, denoise windows, decode, align, map back.

Nothing but the fitted 8-bit frames, the latents and the decoded windows is held for the whole
video, and none of it on the device.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import get_args

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..devices import free_bytes
from ..scene import Scene4D
from ..wan.sampling import initial_noise
from ..wording import counted
from .alignment import AlignmentReport, AlignmentResult, AlignmentSettings, align_windows
from .alignment.samples import sample_bytes
from .batching import ShrinkingBatches
from .decoding import DecodingSettings, decode_windows, window_bytes
from .framing import Fit, Framing, Resolution, plan_framing
from .model import Geo4DNetworks
from .remapping import aligned_bytes, scene_bytes, scene_of_content, scene_of_source
from .sampling import DEFAULT_FPS, SamplingSettings, sample_latents
from .sizes import GEOMETRY_CHANNELS
from .video import FramedVideo, Video, frame_video
from .windows import Window, check_stride, plan_windows

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Report = Callable[[str], Progress]
"""Name of a stage -> its progress callback `(done, total)`."""

_SOURCE_LIMIT_BYTES = 2 << 30
_PICTURES_PER_ENCODING = 16
_TOKENS_AT_ONCE = 82_000
"""Latent pixels of all windows of a batch: two released windows fill a large GPU."""


_MAPS_OF_WINDOW, _MAPS_OF_PICTURE = 60, 12
"""Activations of the first level that are alive at one time, in the UNet and in a decoder."""


class ReconstructionError(ValueError):
    """Settings that cannot work, or a video too long for this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionSettings:
    """Everything that decides a reconstruction. The defaults are the published ones."""

    stride: int | None = None
    """Frames from one window's start to the next. None: a quarter of a window (4 of 16)."""

    mirrored_windows: bool | None = None
    """Sample each window a second time, with left and right exchanged, and align both: twice the
    work. None: what the weights are made for; the released ones: no."""

    fit: Fit = "crop"
    """How pictures of another shape get the network's size: crop, or pad."""

    network_hw: tuple[int, int] | None = None
    """Height and width at which the network works. None: the trained one nearest in shape."""

    resolution: Resolution = "auto"
    """Of the scene: `source` has the pixels of the video, `network` those of the network, and
    `auto` those of the video if all point maps fit 2 GiB."""

    seed: int = 0
    """Of the noise that geometry is sampled from; each window has its own."""

    condition_fps: int = DEFAULT_FPS
    """What the network is told the frame rate is; the published evaluation says 24 for all."""

    windows_per_batch: int | None = None
    """Windows that are sampled at one time. None: as many as keep the device busy. Where memory
    runs out, fewer are tried, and the log says so."""

    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    """See `SamplingSettings`."""

    decoding: DecodingSettings = field(default_factory=DecodingSettings)
    """See `DecodingSettings`."""

    alignment: AlignmentSettings = field(default_factory=AlignmentSettings)
    """See `AlignmentSettings`."""

    def __post_init__(self) -> None:
        if self.resolution not in get_args(Resolution):
            known = ", ".join(get_args(Resolution))
            raise ReconstructionError(
                f"resolution is {self.resolution!r}; expected one of {known}."
            )
        least = {"windows_per_batch": 1, "condition_fps": 1, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ReconstructionError(f"{name} is {value}; expected at least {low}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """A scene, and how it came about."""

    scene: Scene4D
    """Point maps in the camera of frame 0, with one camera per frame."""

    report: AlignmentReport
    """How well the windows agree."""

    framing: Framing
    """How the video's pixels lie in the network's."""

    num_windows: int
    """Windows that were sampled; mirrored ones count, too."""


def reconstruct(
    video: Video,
    networks: Geo4DNetworks,
    settings: ReconstructionSettings | None = None,
    *,
    report: Report | None = None,
) -> Reconstruction:
    """Reconstruct a video on the device of the networks. The scene is on the CPU.

    Deterministic in the video, the networks and the settings. Raising from a progress callback
    interrupts.

    Raises:
        FramingError, WindowPlanError, DecodingError, ReconstructionError: settings that do not fit
            the video.
        SamplingError, WindowError, AlignmentError: the networks returned nothing usable.
        DeviceMemoryError: not even one window fits the device.
        What reading the video raises.
    """
    settings = settings or ReconstructionSettings()
    report = report or _silent
    device, size = networks.device, networks.size
    stride = max(size.num_frames // 4, 1) if settings.stride is None else settings.stride
    check_stride(stride, size.num_frames)
    mirrored = settings.mirrored_windows
    if mirrored is None:
        mirrored = networks.mirrored_windows
        if mirrored:
            _log.info("Windows are seen mirrored, too: what these weights are made for.")
    plan = partial(plan_windows, stride=stride, length=size.num_frames, mirrored=mirrored)
    settings = replace(
        settings,
        sampling=settings.sampling.for_networks(networks),
        alignment=settings.alignment.for_weights(networks.camera_weight),
    )
    # 1. Every frame at the network's size, and which windows will see it.
    aligned_here = settings.alignment if device.type in ("cpu", "mps") else None
    framed = frame_video(
        video,
        lambda source_hw: _planned(source_hw, settings, networks),
        device,
        report("read"),
        # Hours of frames would fill the memory before they are all read.
        lambda frames, framing: _check_memory(plan(frames), framing, "network", aligned_here),
    )
    windows = plan(framed.num_frames)
    _check_memory(windows, framed.framing, _resolution(settings, framed), aligned_here)
    # 2. Networks: each frame is encoded once a side, each window sampled and decoded once.
    video_latents = encode_video(networks, framed, report("encode"), mirrored=mirrored)
    latents = sample_windows(networks, video_latents, windows, settings, report("sample"))
    needed = replace(
        settings.decoding, disparity=settings.alignment.disparity, rays=settings.alignment.rays
    )
    predictions = decode_windows(
        networks, latents, windows, framed.framing, needed, report("decode")
    )
    # 3. One world out of all windows.
    aligned = align_windows(
        predictions,
        framed.colors(slice(None)),
        framed.fps,
        settings=settings.alignment,
        device=device,
        progress=report("align"),
    )
    # 4. The pixels of the video.
    return Reconstruction(
        scene=_mapped_back(aligned, framed, video, settings, device, report("map back")),
        report=aligned.report,
        framing=framed.framing,
        num_windows=len(windows),
    )


def work_bytes(networks: Geo4DNetworks, network_hw: tuple[int, int]) -> int:
    """Estimate the device memory that one window takes besides the weights."""
    size, item = networks.size, networks.dtype.itemsize
    pixels = network_hw[0] * network_hw[1]
    window = size.num_frames * pixels // size.vae.reduction**2 * size.unet.model_channels
    pictures = networks.vae.pictures_per_call * pixels * size.vae.channels
    return item * max(_MAPS_OF_WINDOW * window, _MAPS_OF_PICTURE * pictures)


@torch.no_grad()
def encode_video(
    networks: Geo4DNetworks,
    framed: FramedVideo,
    progress: Progress | None = None,
    *,
    mirrored: bool = False,
) -> Float[Tensor, "side frame 4 latent_height latent_width"]:
    """Encode each frame once a side, on the device of the networks. Latents stay there.

    There is one side, or with `mirrored` a second one, of the frames' mirror images.

    Raises:
        DeviceMemoryError: not even one picture fits the device.
    """
    batches = ShrinkingBatches(
        _PICTURES_PER_ENCODING,
        "pictures to encode",
        networks.device,
        "Use a smaller network size.",
    )

    def encode(part: slice) -> Tensor:
        pictures = rearrange(framed.frames[part].to(networks.device), "f h w c -> f c h w")
        pictures = pictures.float() / 127.5 - 1
        sides = [pictures, pictures.flip(-1)] if mirrored else [pictures]
        encoded = torch.stack([networks.vae.encode(side) for side in sides])
        if progress is not None:
            progress(part.stop, framed.num_frames)
        return encoded

    return torch.cat(batches.run(framed.num_frames, encode), dim=1)


def sample_windows(
    networks: Geo4DNetworks,
    video_latents: Float[Tensor, "side frame 4 latent_height latent_width"],
    windows: Sequence[Window],
    settings: ReconstructionSettings | None = None,
    progress: Progress | None = None,
) -> Float[Tensor, "window 16 place latent_height latent_width"]:
    """Sample the geometry of all windows, several at a time; latents come to the CPU.

    Each window has its own noise, so what it becomes does not depend on its batch. Where windows
    are mirrored, the video needs its second side.

    Raises:
        SamplingError: the network returned NaN.
        DeviceMemoryError: not even one window fits the device.
    """
    settings = settings or ReconstructionSettings()
    latent_hw = (video_latents.shape[-2], video_latents.shape[-1])
    length = networks.size.num_frames
    batches = ShrinkingBatches(
        settings.windows_per_batch or _windows_at_once(length, latent_hw),
        "windows",
        networks.device,
        "Use a smaller network size.",
    )

    def sample(part: slice) -> Tensor:
        seen = [video_latents[int(window.mirrored), window.frames] for window in windows[part]]
        videos = rearrange(torch.stack(seen), "n f c h w -> n c f h w")
        shape = (GEOMETRY_CHANNELS, length, *latent_hw)
        noise = torch.stack([_noise(shape, settings.seed, w) for w in windows[part]])
        sampled = sample_latents(
            networks, videos, noise, fps=settings.condition_fps, settings=settings.sampling
        )
        if progress is not None:
            progress(part.stop, len(windows))
        return sampled.cpu()

    return torch.cat(batches.run(len(windows), sample))


def _noise(shape: tuple[int, ...], seed: int, window: Window) -> Tensor:
    # Of seed and place alone: a longer video, or another batch, changes no window.
    place = [window.start, 1] if window.mirrored else [window.start]
    drawn = np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)[0]
    return initial_noise(shape, torch.Generator().manual_seed(int(drawn >> np.uint64(1))), "cpu")


def _windows_at_once(length: int, latent_hw: tuple[int, int]) -> int:
    return max(1, _TOKENS_AT_ONCE // (length * latent_hw[0] * latent_hw[1]))


def _planned(
    source_hw: tuple[int, int], settings: ReconstructionSettings, networks: Geo4DNetworks
) -> Framing:
    """Choose the network's size; refuse one that cannot work while one picture has been read."""
    framing = plan_framing(
        source_hw, networks.size, fit=settings.fit, network_hw=settings.network_hw
    )
    height, width = framing.network_hw
    cell = networks.size.vae.reduction
    settings.decoding.for_latents((height // cell, width // cell), networks.size.vae)
    free = free_bytes(torch.device("cpu"))
    work = work_bytes(networks, framing.network_hw)
    # A GPU says when it is full; a host ends the process.
    if networks.device.type == "cpu" and work > free:
        raise ReconstructionError(
            f"A window of {height} x {width} takes about {_gib(work)} of memory and {_gib(free)} "
            "are free. Use a smaller network size (network_hw)."
        )
    return framing


def _check_memory(
    windows: Sequence[Window],
    framing: Framing,
    resolution: Resolution,
    aligned_here: AlignmentSettings | None,
) -> None:
    """Refuse, before the networks run, what would not fit the host's memory.

    `aligned_here`: settings of an alignment that does not have a device of its own.
    """
    free = free_bytes(torch.device("cpu"))
    frames = windows[-1].stop
    # Windows and what they become are alive to the end; the samples until pixels are mapped back.
    held = sum(window_bytes(w.num_frames, framing.network_hw) for w in windows)
    sampled = 0
    if aligned_here is not None:
        sizes = (sample_bytes(w.num_frames, framing.network_hw, aligned_here) for w in windows)
        sampled = sum(sizes)
    aligned = aligned_bytes(frames, framing.network_hw)
    content = scene_bytes(frames, framing.content_hw)
    fewer = "no mirrored windows, " if windows[-1].mirrored else ""
    if held + aligned + max(content, sampled) > free:
        raise ReconstructionError(
            f"{counted(frames, 'frame')} need too much memory: {counted(len(windows), 'window')} "
            f"take {_gib(held)}, their alignment and scene take "
            f"{_gib(aligned + max(content, sampled))}, and {_gib(free)} are free. Use {fewer}a "
            "larger stride, a smaller network size, or fewer frames (frame_step, max_frames)."
        )
    source = scene_bytes(frames, framing.source_hw)
    if resolution == "source" and held + aligned + source > free:
        raise ReconstructionError(
            f"A scene of {counted(frames, 'frame')} at the video's own size takes {_gib(source)} "
            f"of memory, what it is made from {_gib(held + aligned)}, and {_gib(free)} are free. "
            "Use resolution network, or fewer frames."
        )


def _resolution(settings: ReconstructionSettings, framed: FramedVideo) -> Resolution:
    if settings.resolution != "auto":
        return settings.resolution
    needed = scene_bytes(framed.num_frames, framed.framing.source_hw)
    return "source" if needed <= _SOURCE_LIMIT_BYTES else "network"


def _mapped_back(
    aligned: AlignmentResult,
    framed: FramedVideo,
    video: Video,
    settings: ReconstructionSettings,
    device: torch.device,
    progress: Progress,
) -> Scene4D:
    framing, resolution = framed.framing, _resolution(settings, framed)
    if settings.resolution == "auto":
        _log.info(
            "The scene has the pixels of the %s: at the video's own %dx%d it takes %s.",
            "video" if resolution == "source" else "network",
            *framing.source_hw,
            _gib(scene_bytes(framed.num_frames, framing.source_hw)),
        )
    if resolution == "source":
        scene, depth = aligned.scene, aligned.depth
        return scene_of_source(scene, depth, framing, video, device=device, progress=progress)
    content = scene_of_content(aligned.scene, aligned.depth, framing)
    progress(framed.num_frames, framed.num_frames)
    return content


def _silent(_stage: str) -> Progress:
    return lambda _done, _total: None


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
