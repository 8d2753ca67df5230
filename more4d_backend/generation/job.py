"""The whole job as a numbered story: depth, motion, camera paths, renders, completed videos."""

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..camera_files import load_cameras, save_cameras
from ..camera_paths import PathSettings
from ..camera_paths.sources import (
    camera_source_files,
    check_source,
    path_from,
    source_label,
)
from ..depth import DepthProvider, lift_prediction
from ..devices import describe
from ..files import replacing
from ..files.contact_sheet import contact_sheet
from ..files.depth_maps import load_depth, save_depth_exr
from ..files.images import load_image, save_image, to_bytes
from ..files.videos import load_mask_video, load_video, save_mask_video, save_video
from ..rendering import RenderSettings, hole_mask, render
from ..scene_files import load_scene, save_scene
from ..strag.pipeline import StragSettings
from ..vism.pipeline import VismPipeline, VismSettings
from ..wan.fitting import extended_to_multiple
from ..wan.latents import PIXELS_PER_TOKEN, check_video_size
from ..wan.pipeline import WanPipeline
from ..wan.sampling import Progress
from ..wan.text import check_prompt
from ..wan.windows import plan_windows
from .models import Models
from .run_record import RunRecord, only_run_in

SCENE_FILE = "scene.safetensors"
SHEET_FILE = "contact-sheet.png"
_IMAGE, _DEPTH, _CAMERA = "image.png", "depth.exr", "camera.npz"
_MAX_SEED = 2**63

Report = Callable[[str], Progress | None]
"""Gives the progress callback of a stage that begins; raising from it interrupts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthSource:
    """Where the depth of the image comes from."""

    provider: DepthProvider
    """A file, or a network."""

    name: str
    """Tells this provider and its weights from others, so that its result can be reused."""

    files: tuple[Path, ...] = ()
    """Files that decide the depth: the depth file, the intrinsics."""

    fov_rad: float | None = None
    """Horizontal field of view, where the provider knows none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """Everything that decides the result, but for the image, its depth and the weights."""

    prompt: str
    """What the scene shows and what moves in it, in which direction."""

    cameras: tuple[str, ...] = ("orbit-left",)
    """Camera paths by name, keyframe files or camera files."""

    seed: int = 0
    """Of the motion; each camera's completion takes the next number."""

    strag: StragSettings = field(default_factory=StragSettings)
    """How motion is generated."""

    vism: VismSettings = field(default_factory=VismSettings)
    """How holes are filled."""

    path: PathSettings = field(default_factory=PathSettings)
    """How far and how evenly cameras move."""

    render: RenderSettings = field(default_factory=RenderSettings)
    """How the scene is drawn."""

    grow_holes_px: int = 1
    """Holes are grown by this, so that no half-covered pixel counts as known."""

    complete: bool = True
    """Fill the holes; False stops at the renders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraOutputs:
    """Files of one camera path."""

    label: str
    """Name of the path."""

    rendered: Path
    """Video of the scene, without loss."""

    holes: Path
    """Hole mask, white = to be filled, without loss."""

    completed: Path | None
    """Video with the holes filled; None where that was not asked for."""


def image_to_4d_video(
    image: Float[Tensor, "height width 3"],
    depth: DepthSource,
    models: Models,
    settings: GenerationSettings,
    folder: Path,
    *,
    report: Report = lambda _: None,
) -> list[CameraOutputs]:
    """Make a moving scene of an image (sRGB in [0, 1]) and films of it; write all into `folder`.

    Writes scene.safetensors, per camera the rendered video, the hole mask and the completed
    video, contact-sheet.png and run.json. A stage whose inputs have not changed since an earlier
    run into the same folder is reused.

    Raises:
        PromptError, CameraPathError: refused before anything is made.
        ValueError, OSError, MemoryError: a stage cannot be done; earlier stages stay reusable.
    """
    # 1. Refuse what cannot work before anything slow starts.
    _check(settings)
    with only_run_in(folder):
        about = {"generation": settings, "depth": depth.name, "models": models}
        return _run_stages(RunRecord(folder, about), image, depth, models, settings, report)


def _check(settings: GenerationSettings) -> None:
    check_prompt(settings.prompt)
    for source in settings.cameras:
        check_source(source)
    strag, vism = settings.strag, settings.vism
    check_video_size(strag.num_frames, *strag.size_hw)
    plan_windows(strag.num_frames, vism.window_frames, vism.overlap_frames)
    if not 0 <= settings.seed < _MAX_SEED:
        raise ValueError(f"seed is {settings.seed}; expected 0 to {_MAX_SEED - 1}.")
    if strag.max_depth is not None and not strag.max_depth > 0:
        raise ValueError(f"max_depth is {strag.max_depth}; expected a positive number.")


def _run_stages(
    record: RunRecord,
    image: Float[Tensor, "height width 3"],
    depth: DepthSource,
    models: Models,
    settings: GenerationSettings,
    report: Report,
) -> list[CameraOutputs]:
    # 2. Depth: where the points start.
    _lift(record, image, depth, settings)
    # 3. Motion: where they go.
    _generate_scene(record, models, settings, report)
    # 4. Per camera: what is seen, and what is missing.
    outputs = [
        _render_camera(record, label, source, settings, report)
        for label, source in zip(_labels(settings.cameras), settings.cameras, strict=True)
    ]
    # 5. Fill what is missing.
    if settings.complete:
        outputs = _complete_cameras(record, outputs, models, settings, report)
    # 6. One picture of all.
    _write_sheet(record, outputs)
    return outputs


def _lift(
    record: RunRecord,
    image: Float[Tensor, "height width 3"],
    depth: DepthSource,
    settings: GenerationSettings,
) -> None:
    folder = record.folder

    def make() -> None:
        prediction = depth.provider.predict(image)
        lifted = lift_prediction(
            image, prediction, fov_rad=depth.fov_rad, max_depth=settings.strag.max_depth
        )
        save_image(folder / _IMAGE, image)
        save_depth_exr(folder / _DEPTH, prediction.depth)
        save_cameras(folder / _CAMERA, lifted.cameras)

    digest = hashlib.sha256(to_bytes(image).numpy().tobytes()).hexdigest()
    details = {
        "image_sha256": digest,
        "image_hw": list(image.shape[:2]),
        "depth": depth.name,
        "fov_rad": depth.fov_rad,
        "max_depth": settings.strag.max_depth,
    }
    record.stage("depth", details, depth.files, (_IMAGE, _DEPTH, _CAMERA), make)


def _generate_scene(
    record: RunRecord, models: Models, settings: GenerationSettings, report: Report
) -> None:
    folder, strag = record.folder, settings.strag

    def make() -> dict[str, str]:
        generator = torch.Generator().manual_seed(settings.seed)
        with models.strag(strag.num_frames, strag.size_hw) as pipeline:
            scene = pipeline.generate(
                load_image(folder / _IMAGE),
                load_depth(folder / _DEPTH),
                load_cameras(folder / _CAMERA),
                settings.prompt,
                settings=strag,
                generator=generator,
                progress=report("motion"),
            )
            chosen = _plan_of(pipeline)
        save_scene(folder / SCENE_FILE, scene)
        return chosen

    details = {
        "prompt": settings.prompt,
        "seed": settings.seed,
        "strag": strag,
        "models": models.strag_settings(),
    }
    inputs = [folder / _IMAGE, folder / _DEPTH, folder / _CAMERA]
    record.stage("scene", details, inputs, (SCENE_FILE,), make, weights=models.strag_sha256())


def _render_camera(
    record: RunRecord, label: str, source: str, settings: GenerationSettings, report: Report
) -> CameraOutputs:
    folder = record.folder
    rendered, holes = f"{label}-render.mkv", f"{label}-holes.mkv"

    def make() -> None:
        scene = load_scene(folder / SCENE_FILE)
        cameras = path_from(source, scene, settings=settings.path)
        view = render(scene, cameras, settings.render, progress=report(f"render {label}"))
        mask = hole_mask(view.alpha, grow_px=settings.grow_holes_px)
        save_video(folder / rendered, view.rgb, scene.fps, lossless=True)
        save_mask_video(folder / holes, mask, scene.fps)

    details = {
        "camera": source,
        "path": settings.path,
        # Where and how many at once changes no picture.
        "render": replace(settings.render, device=None, chunk_frames=None),
        "grow_holes_px": settings.grow_holes_px,
    }
    inputs = [folder / SCENE_FILE, *camera_source_files(source)]
    record.stage(f"{label}: render", details, inputs, (rendered, holes), make)
    return CameraOutputs(
        label=label, rendered=folder / rendered, holes=folder / holes, completed=None
    )


def _complete_cameras(
    record: RunRecord,
    outputs: list[CameraOutputs],
    models: Models,
    settings: GenerationSettings,
    report: Report,
) -> list[CameraOutputs]:
    """Fill the holes of every camera; the networks are loaded once, and only if one needs them."""
    with ExitStack() as stack:
        loaded: list[VismPipeline] = []

        def pipeline(num_frames: int, size_hw: tuple[int, int]) -> VismPipeline:
            if not loaded:
                frames = min(num_frames, settings.vism.window_frames)
                loaded.append(stack.enter_context(models.vism(frames, size_hw)))
            return loaded[0]

        return [
            _complete_camera(record, index, output, pipeline, settings, report, models)
            for index, output in enumerate(outputs)
        ]


def _complete_camera(
    record: RunRecord,
    index: int,
    output: CameraOutputs,
    pipeline: "Callable[[int, tuple[int, int]], VismPipeline]",
    settings: GenerationSettings,
    report: Report,
    models: Models,
) -> CameraOutputs:
    completed, seed = f"{output.label}.mp4", settings.seed + 1 + index

    def make() -> dict[str, str]:
        rendered, fps = load_video(output.rendered)
        holes = load_mask_video(output.holes)[0] > 0.5
        # A padded photo need not have a size that the network can take: at most 15 pixels more.
        larger = extended_to_multiple(rendered, PIXELS_PER_TOKEN)
        num_frames, height, width = larger.shape[:3]
        network = pipeline(num_frames, (height, width))
        video = network.complete(
            larger,
            extended_to_multiple(holes, PIXELS_PER_TOKEN),
            settings.prompt,
            image=load_image(record.folder / _IMAGE),
            settings=settings.vism,
            generator=torch.Generator().manual_seed(seed),
            progress=report(f"complete {output.label}"),
        )
        video = video[:, : rendered.shape[1], : rendered.shape[2]]
        save_video(record.folder / completed, video, fps)
        return _plan_of(network)

    details = {
        "prompt": settings.prompt,
        "seed": seed,
        "vism": settings.vism,
        "models": models.vism_settings(),
    }
    inputs = [output.rendered, output.holes, record.folder / _IMAGE]
    weights = models.vism_sha256()
    record.stage(f"{output.label}: complete", details, inputs, (completed,), make, weights=weights)
    return replace(output, completed=record.folder / completed)


def _plan_of(pipeline: WanPipeline) -> dict[str, str]:
    return {} if pipeline.placement is None else {"plan": describe(pipeline.placement.plan)}


def _write_sheet(record: RunRecord, outputs: list[CameraOutputs]) -> None:
    rows = {}
    for output in outputs:
        rows[f"{output.label}: rendered"] = load_video(output.rendered)[0]
        rows[f"{output.label}: hole mask"] = load_video(output.holes)[0]
        if output.completed is not None:
            rows[f"{output.label}: completed"] = load_video(output.completed)[0]
    with replacing(record.folder / SHEET_FILE) as temporary:
        contact_sheet(rows).save(temporary)


def _labels(cameras: tuple[str, ...]) -> list[str]:
    """One file name per camera; a second one of the same name gets a number."""
    labels: list[str] = []
    for source in cameras:
        label = source_label(source)
        same = sum(known == label or known.startswith(f"{label}-") for known in labels)
        labels.append(f"{label}-{same + 1}" if label in labels else label)
    return labels
