"""`generate`: images to 4D scenes and videos, one image or many."""

import csv
import io
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from ..devices import Attention, DeviceRequest, MemoryMode
from ..files import FileFormatError, decoding
from ..files.strict_json import read_text
from ..generation import (
    FileModels,
    GenerationSettings,
    ModelChoice,
    Models,
    choose_models,
    image_to_4d_video,
)
from ..generation.model_choice import WEIGHT_NAMES, GenerationDefaults
from ..generation.run_record import stage_table
from ..rendering import RenderSettings
from ..strag.pipeline import StragSettings
from ..strag.profile import OWN, RELEASED
from ..vism.pipeline import VismSettings
from ..wan.fitting import Fit
from ..wan.sampling import Progress, Sampler, SamplingSettings
from .console import print_table, progress_bar
from .depth_options import DepthOptions
from .render_commands import PathOptions

LOGGER = logging.getLogger(__name__)

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm")
_LIMIT_CSV_BYTES = 64 * 2**20
_SWITCH = {"auto": None, "on": True, "off": False}
_PROFILES = {"released": RELEASED, "own": OWN}


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How motion and filled holes are sampled."""

    num_frames: int = 49
    """Frames of the scene, 4k + 1; the released weights know 49."""

    size_hw: tuple[int, int] | None = None
    """Height and width at which the networks work; multiples of 16. Default: 368 512; with the
    embedded weights 128 176."""

    fit: Fit = "crop"
    """How a photo of other proportions gets that size: crop, or pad."""

    num_steps: int | None = None
    """Denoising steps of each network. Default: 50; with the embedded weights 20."""

    guidance_scale: float | None = None
    """1 is none and halves the work; larger follows the prompt more. Default: 6; with the embedded
    weights 1.5."""

    sampler: Sampler = "euler"
    """The released one is euler; unipc and dpm++ need about half the steps."""

    guided_fraction: float = 1.0
    """Guide only this leading part of the steps (CFG-skip): 0.7 saves 15 % of the time.
    benchmarks/step_cache.py measures the error."""

    negative_prompt: str = ""
    """What guidance moves away from."""

    motion_perception: bool = True
    """Guide the motion by features of the photo; --no-motion-perception to see what they do."""

    snap_to_edges: Literal["auto", "on", "off"] = "auto"
    """Sharpen the motion along the edges of photo and depth; auto: as the weights' profile says."""

    fps: float = 8.0
    """Frames per second of the scene and its videos; the released data has 8."""

    window_frames: int = 49
    """Frames whose holes are filled at one time, 4k + 1; longer videos are filled in windows."""

    overlap_frames: int = 9
    """Frames that a window shares with the one before it."""

    paste_known_pixels: bool = False
    """Put the rendered pixels back over the completed video, with a feathered seam."""

    feather_px: int = 8
    """Width of that seam."""

    complete: bool = True
    """Fill the holes; --no-complete stops at the renders."""

    def settings(
        self,
        prompt: str,
        cameras: PathOptions,
        depth: DepthOptions,
        device: str,
        defaults: GenerationDefaults,
    ) -> GenerationSettings:
        """Join all settings of a generation; what was not said is as the weights need it."""
        steps, scale = self.num_steps, self.guidance_scale
        sampling = SamplingSettings(
            num_steps=defaults.num_steps if steps is None else steps,
            guidance_scale=defaults.guidance_scale if scale is None else scale,
            sampler=self.sampler,
            guided_fraction=self.guided_fraction,
        )
        return GenerationSettings(
            prompt=prompt,
            cameras=cameras.sources,
            seed=cameras.seed,
            strag=StragSettings(
                num_frames=self.num_frames,
                size_hw=self.size_hw or defaults.size_hw,
                fit=self.fit,
                max_depth=depth.max_depth,
                drop_edges=depth.drop_edges,
                negative_prompt=self.negative_prompt,
                motion_perception=self.motion_perception,
                snap_to_edges=_SWITCH[self.snap_to_edges],
                fps=self.fps,
                sampling=sampling,
            ),
            vism=VismSettings(
                sampling=sampling,
                negative_prompt=self.negative_prompt,
                window_frames=self.window_frames,
                overlap_frames=self.overlap_frames,
                paste_known_pixels=self.paste_known_pixels,
                feather_px=self.feather_px,
            ),
            path=cameras.settings(),
            render=RenderSettings(device=device),
            complete=self.complete,
        )


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which weights, and where they compute."""

    model: Literal["released", "embedded"] | None = None
    """released: what is named or was downloaded. embedded: the small weights that come along, which
    know procedural scenes only. Default: released if any is named or all are downloaded."""

    weights: UseAppendAction[tuple[str, ...]] = ()
    """NAME=FILE, several times: strag, motion-vae, wan-vae, fun-inp, vism-lora, umt5,
    umt5-tokenizer, clip; text-encoder with --model embedded. What is not named is looked for among
    the downloads, or embedded."""

    weights_folder: Path | None = None
    """Where `download --folder` put the files. Default: the Hugging Face cache."""

    profile: Literal["released", "own"] | None = None
    """How the STraG weights were trained: the published ones, or by our trainer. Default: released;
    with the embedded weights own."""

    lora_weight: float | None = None
    """How strongly the ViSM LoRA acts. Default: 0.55; with the embedded weights 1."""

    device: str | None = None
    """cpu, cuda, cuda:1 or mps. Default: the best there is."""

    memory_mode: MemoryMode | None = None
    """resident, model-offload, block-offload or fp8. Default: the fastest exact one that fits."""

    vae_tiling: Literal["auto", "on", "off"] = "auto"
    """Encode and decode videos in tiles: less memory, slower, and seams may show."""

    sequential_cfg: Literal["auto", "on", "off"] = "auto"
    """Run the two halves of guidance one after the other: less memory, a bit slower."""

    attention: Attention | Literal["measure"] = "native"
    """Attention kernel. measure: time torch's own at the run's size, and take the fastest."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of computation. auto: bfloat16 where the device has it."""

    compile_blocks: bool = False
    """Compile the transformers' blocks: a minute slower to start, faster per step."""

    step_cache: float | None = None
    """Skip most of a step when its first block says nearly the same as in the step before:
    0.05 skips few steps, 0.2 many. Changes the result; benchmarks/step_cache.py says how much."""

    def choose(self, *, complete: bool) -> ModelChoice:
        """Find the files."""
        given: dict[str, Path] = {}
        for entry in self.weights:
            name, separator, path = entry.partition("=")
            if not separator or name not in WEIGHT_NAMES:
                known = ", ".join(WEIGHT_NAMES)
                raise ValueError(f"--weights is {entry!r}; expected NAME=FILE, NAME from {known}.")
            given[name] = Path(path)
        return choose_models(given, folder=self.weights_folder, model=self.model, complete=complete)

    def load(self, choice: ModelChoice) -> Models:
        """Check the files; networks are loaded when their stage comes."""
        defaults, weight = choice.defaults, self.lora_weight
        models = FileModels(
            files=choice.files,
            origin=choice.reason,
            profile=_PROFILES[self.profile] if self.profile else defaults.profile,
            lora_weight=defaults.lora_weight if weight is None else weight,
            compile_blocks=self.compile_blocks,
            step_cache=self.step_cache,
            measure_attention=self.attention == "measure",
            request=self.request(),
        )
        models.check()
        log = LOGGER.warning if choice.name == "embedded" else LOGGER.info
        log("%s", choice.reason)
        return models

    def request(self) -> DeviceRequest:
        """Return where and how to compute."""
        import torch

        return DeviceRequest(
            device=self.device,
            dtype=None if self.dtype == "auto" else getattr(torch, self.dtype),
            memory_mode=self.memory_mode,
            attention="native" if self.attention == "measure" else self.attention,
            vae_tiling=_SWITCH[self.vae_tiling],
            sequential_cfg=_SWITCH[self.sequential_cfg],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One image of a batch."""

    image: Path
    """The picture."""

    prompt: str
    """What happens in it."""

    depth: str | None = None
    """Depth file of this picture, where the batch has one per picture."""


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Generate a moving scene from a photo, and films of it along camera paths.

    Writes scene.safetensors, per camera the rendered video, the hole mask and the completed video,
    contact-sheet.png and run.json. Run again into the same folder, it redoes only what changed.

    A folder of images, or a CSV file with the columns image, prompt and (optional) depth, makes one
    subfolder per image; items that fail are listed at the end, and the others are finished.
    """

    source: Positional[Path]
    """A photo, a folder of photos, or a CSV file."""

    prompt: str | None = None
    """What the photo shows and what moves in it, in which direction. A CSV file has its own."""

    depth_options: OmitArgPrefixes[DepthOptions] = field(default_factory=DepthOptions)
    cameras: OmitArgPrefixes[PathOptions] = field(default_factory=PathOptions)
    sampling: OmitArgPrefixes[SamplingOptions] = field(default_factory=SamplingOptions)
    models: OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)

    output: Annotated[Path, arg(aliases=["-o"])] = Path("out")
    """Folder to write to."""

    def run(self) -> int:
        """Generate all items; 1 if some failed."""
        self.cameras.check()
        jobs = self._jobs()
        choice = self.models.choose(complete=self.sampling.complete)
        models = self.models.load(choice)
        if not self._is_batch:
            self._generate(jobs[0], models, choice, self.output)
            return 0
        failed: list[str] = []
        for job in jobs:
            try:
                self._generate(job, models, choice, self.output / job.image.stem)
            except Exception as e:  # a batch goes on; every failure is listed and counted
                LOGGER.exception("%s failed.", job.image)
                failed.append(f"{job.image}: {e}")
        for line in failed:
            LOGGER.error("%s", line)
        LOGGER.info("%d of %d done.", len(jobs) - len(failed), len(jobs))
        return 1 if failed else 0

    @property
    def _is_batch(self) -> bool:
        return self.source.is_dir() or self.source.suffix.lower() == ".csv"

    def _jobs(self) -> list[Job]:
        if not self.source.exists():
            raise FileFormatError(f"{self.source} is not there; expected a photo, folder or CSV.")
        if self.source.suffix.lower() == ".csv":
            return _with_own_folders(_read_csv(self.source, self.prompt), self.source)
        if self.prompt is None:
            raise ValueError("--prompt is missing: say what moves in the photo, and where to.")
        if self.source.is_dir():
            images = sorted(p for p in self.source.iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES)
            if not images:
                raise FileFormatError(
                    f"{self.source} holds no picture ({', '.join(_IMAGE_SUFFIXES)})."
                )
            jobs = [Job(image=path, prompt=self.prompt) for path in images]
            return _with_own_folders(jobs, self.source)
        return [Job(image=self.source, prompt=self.prompt)]

    def _generate(self, job: Job, models: Models, choice: ModelChoice, folder: Path) -> None:
        from ..devices import detect_device
        from ..files.images import load_image

        options = self.depth_options
        if job.depth is not None:
            options = replace(options, depth=job.depth)
        elif options.depth is None and choice.name == "embedded":
            LOGGER.info("No depth was given: the embedded depth network (tiny) is used.")
            options = replace(options, depth="tiny")
        device = str(detect_device(self.models.device).device)
        outputs = image_to_4d_video(
            load_image(job.image),
            options.source(device),
            models,
            self.sampling.settings(job.prompt, self.cameras, options, device, choice.defaults),
            folder,
            report=_bars(),
        )
        for output in outputs:
            LOGGER.info("Wrote %s.", output.completed or output.rendered)
        print_table(f"{folder}: time and memory", *stage_table(folder))


def _bars() -> Callable[[str], Progress]:
    """One bar at a time: a stage's bar goes when the next stage's comes."""
    open_bars = ExitStack()

    def report(label: str) -> Progress:
        open_bars.close()
        return open_bars.enter_context(progress_bar(label))

    return report


def _read_csv(path: Path, prompt: str | None) -> list[Job]:
    """Read the columns image, prompt and (optional) depth; paths are relative to the file."""
    text = read_text(path, _LIMIT_CSV_BYTES, "a CSV file")
    with decoding(path, "a CSV file"):
        rows = list(csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True))
    if not rows or "image" not in rows[0]:
        raise FileFormatError(f"{path} has no rows with a column named image.")
    jobs = []
    for number, row in enumerate(rows, start=2):
        text = row.get("prompt") or prompt
        if not row["image"] or not text:
            raise FileFormatError(f"{path}, line {number}: the image or the prompt is missing.")
        depth = row.get("depth")
        jobs.append(
            Job(
                image=path.parent / row["image"],
                prompt=text,
                depth=str(path.parent / depth) if depth else None,
            )
        )
    return jobs


def _with_own_folders(jobs: list[Job], source: Path) -> list[Job]:
    """Refuse pictures whose results would go into one folder."""
    stems = [job.image.stem for job in jobs]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise FileFormatError(
            f"{source} has several images named {', '.join(twice)}: they would share a folder. "
            "Rename them."
        )
    return jobs
