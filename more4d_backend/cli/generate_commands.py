"""`generate`: images to 4D scenes and videos, one image or many."""

import csv
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from ..devices import DeviceRequest, MemoryMode
from ..files import FileFormatError
from ..fitting import Fit
from ..generation import (
    FileModels,
    GenerationSettings,
    Models,
    find_files,
    image_to_4d_video,
)
from ..sampling import Progress, Sampler, SamplingSettings
from ..strag.pipeline import StragSettings
from ..strag.profile import OWN, RELEASED
from ..vism.lora import RELEASED_WEIGHT
from ..vism.pipeline import VismSettings
from .console import progress_bar
from .depth_options import DepthOptions
from .render_commands import PathOptions

LOGGER = logging.getLogger(__name__)

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How motion and filled holes are sampled."""

    num_frames: int = 49
    """Frames of the scene, 4k + 1; the released weights know 49."""

    size_hw: tuple[int, int] = (368, 512)
    """Height and width at which the networks work; multiples of 16."""

    fit: Fit = "crop"
    """How a photo of other proportions gets that size: crop, or pad."""

    num_steps: int = 50
    """Denoising steps of each network."""

    guidance_scale: float = 6.0
    """1 is none and halves the work; larger follows the prompt more."""

    sampler: Sampler = "euler"
    """The released one is euler; unipc and dpm++ need about half the steps."""

    negative_prompt: str = ""
    """What guidance moves away from."""

    paste_known_pixels: bool = False
    """Put the rendered pixels back over the completed video, with a feathered seam."""

    complete: bool = True
    """Fill the holes; --no-complete stops at the renders."""

    def settings(self, prompt: str, cameras: PathOptions) -> GenerationSettings:
        """Join all settings of a generation."""
        sampling = SamplingSettings(
            num_steps=self.num_steps, guidance_scale=self.guidance_scale, sampler=self.sampler
        )
        return GenerationSettings(
            prompt=prompt,
            cameras=cameras.sources,
            seed=cameras.seed,
            strag=StragSettings(
                num_frames=self.num_frames,
                size_hw=self.size_hw,
                fit=self.fit,
                negative_prompt=self.negative_prompt,
                sampling=sampling,
            ),
            vism=VismSettings(
                sampling=sampling,
                negative_prompt=self.negative_prompt,
                paste_known_pixels=self.paste_known_pixels,
            ),
            path=cameras.settings(),
            complete=self.complete,
        )


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which weights, and where they compute."""

    weights: UseAppendAction[tuple[str, ...]] = ()
    """NAME=FILE, several times: strag, motion-vae, wan-vae, fun-inp, vism-lora, umt5,
    umt5-tokenizer, clip. What is not named is looked for among the downloads."""

    weights_folder: Path | None = None
    """Where `download --folder` put the files. Default: the Hugging Face cache."""

    profile: Literal["released", "own"] = "released"
    """How the STraG weights were trained: the published ones, or by our trainer."""

    lora_weight: float = RELEASED_WEIGHT
    """How strongly the ViSM LoRA acts."""

    device: str | None = None
    """cpu, cuda, cuda:1 or mps. Default: the best there is."""

    memory_mode: MemoryMode | None = None
    """resident, model-offload, block-offload or fp8. Default: the fastest exact one that fits."""

    compile_blocks: bool = False
    """Compile the transformers' blocks: a minute slower to start, faster per step."""

    def load(self, *, complete: bool) -> Models:
        """Find the files; networks are loaded when their stage comes."""
        from ..generation.models import STRAG_WEIGHTS, VISM_WEIGHTS

        given: dict[str, Path] = {}
        for entry in self.weights:
            name, separator, path = entry.partition("=")
            if not separator or name not in (*STRAG_WEIGHTS, *VISM_WEIGHTS):
                known = ", ".join(dict.fromkeys((*STRAG_WEIGHTS, *VISM_WEIGHTS)))
                raise ValueError(f"--weights is {entry!r}; expected NAME=FILE, NAME from {known}.")
            given[name] = Path(path)
        needed = (*STRAG_WEIGHTS, *(VISM_WEIGHTS if complete else ()))
        return FileModels(
            files=find_files(given, self.weights_folder, tuple(dict.fromkeys(needed))),
            profile={"released": RELEASED, "own": OWN}[self.profile],
            lora_weight=self.lora_weight,
            compile_blocks=self.compile_blocks,
            request=DeviceRequest(device=self.device, memory_mode=self.memory_mode),
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
        models = self.models.load(complete=self.sampling.complete)
        if len(jobs) == 1 and self.source.suffix.lower() in _IMAGE_SUFFIXES:
            self._generate(jobs[0], models, self.output)
            return 0
        failed: list[str] = []
        for job in jobs:
            try:
                self._generate(job, models, self.output / job.image.stem)
            except Exception as e:  # a batch goes on; every failure is listed and counted
                LOGGER.exception("%s failed.", job.image)
                failed.append(f"{job.image}: {e}")
        for line in failed:
            LOGGER.error("%s", line)
        LOGGER.info("%d of %d done.", len(jobs) - len(failed), len(jobs))
        return 1 if failed else 0

    def _jobs(self) -> list[Job]:
        if self.source.suffix.lower() == ".csv":
            return _read_csv(self.source, self.prompt)
        if self.prompt is None:
            raise ValueError("--prompt is missing: say what moves in the photo, and where to.")
        if self.source.is_dir():
            images = sorted(p for p in self.source.iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES)
            if not images:
                raise FileFormatError(f"{self.source} holds no picture ({_IMAGE_SUFFIXES}).")
            return [Job(image=path, prompt=self.prompt) for path in images]
        return [Job(image=self.source, prompt=self.prompt)]

    def _generate(self, job: Job, models: Models, folder: Path) -> None:
        from ..image_files import load_image

        options = self.depth_options
        if job.depth is not None:
            options = replace(options, depth=job.depth)
        outputs = image_to_4d_video(
            load_image(job.image),
            options.source(self.models.device or "cpu"),
            models,
            self.sampling.settings(job.prompt, self.cameras),
            folder,
            report=_bars(),
        )
        for output in outputs:
            LOGGER.info("Wrote %s.", output.completed or output.rendered)


def _bars() -> Callable[[str], Progress]:
    """One bar at a time: a stage's bar goes when the next stage's comes."""
    open_bars = ExitStack()

    def report(label: str) -> Progress:
        open_bars.close()
        return open_bars.enter_context(progress_bar(label))

    return report


def _read_csv(path: Path, prompt: str | None) -> list[Job]:
    """Read the columns image, prompt and (optional) depth; paths are relative to the file."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
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
    stems = [job.image.stem for job in jobs]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise FileFormatError(f"{path} has several images named {', '.join(twice)}: they would "
                              "share a folder. Rename them.")  # fmt: skip
    return jobs
