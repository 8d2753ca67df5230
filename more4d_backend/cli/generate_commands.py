"""`generate`: images to 4D scenes and videos, one image or many."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from ..devices import Attention, DeviceRequest, MemoryMode
from ..generation import (
    CameraOutputs,
    FileModels,
    GenerationSettings,
    Item,
    ModelChoice,
    Models,
    Outcome,
    choose_models,
    image_to_4d_video,
    images_to_4d_videos,
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
from .generate_jobs import Job, find_jobs, is_batch
from .render_commands import PathOptions

LOGGER = logging.getLogger(__name__)

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


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Generate a moving scene from a photo, and films of it along camera paths.

    Writes scene.safetensors, per camera the rendered video, the hole mask and the completed video,
    contact-sheet.png and run.json. Run again into the same folder, it redoes only what changed.

    A folder of images, or a CSV file with the columns image, prompt and (optional) depth, makes one
    subfolder per image, and networks are loaded once for ten images of one size; items that fail
    are listed at the end, and the others are finished.
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
        jobs = find_jobs(self.source, self.prompt)
        choice = self.models.choose(complete=self.sampling.complete)
        models = self.models.load(choice)
        items = self._items(jobs, choice)
        if is_batch(self.source):
            return _generate_all(items, models)
        item = items[0]
        image = item.load_image()
        outputs = image_to_4d_video(
            image, item.depth, models, item.settings, item.folder, report=_bars()
        )
        _tell(item.folder, outputs)
        return 0

    def _items(self, jobs: list[Job], choice: ModelChoice) -> list[Item]:
        from ..devices import detect_device
        from ..files.images import load_image

        common = self.depth_options
        is_missing = common.depth is None and any(job.depth is None for job in jobs)
        if is_missing and choice.name == "embedded":
            LOGGER.info("No depth was given: the embedded depth network (tiny) is used.")
            common = replace(common, depth="tiny")
        device = str(detect_device(self.models.device).device)
        many, items = is_batch(self.source), []
        for job in jobs:
            options = common if job.depth is None else replace(common, depth=job.depth)
            items.append(
                Item(
                    load_image=partial(load_image, job.image),
                    depth=options.source(device),
                    settings=self.sampling.settings(
                        job.prompt, self.cameras, options, device, choice.defaults
                    ),
                    folder=self.output / job.image.stem if many else self.output,
                    name=str(job.image) if many else "",
                )
            )
        return items


def _generate_all(items: list[Item], models: Models) -> int:
    """Generate a batch; 1 if some failed."""
    failed: list[str] = []

    def done(item: Item, outcome: Outcome) -> None:
        if outcome.error is None:
            _tell(item.folder, outcome.outputs)
        else:
            failed.append(f"{item.name}: {outcome.error}")

    images_to_4d_videos(items, models, report=_bars(), done=done)
    for line in failed:
        LOGGER.error("%s", line)
    LOGGER.info("%d of %d done.", len(items) - len(failed), len(items))
    return 1 if failed else 0


def _tell(folder: Path, outputs: list[CameraOutputs]) -> None:
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
