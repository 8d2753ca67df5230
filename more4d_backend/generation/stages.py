"""The stages of one image's job; each is reused where nothing that it depends on has changed."""

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from ..camera_files import load_cameras, save_cameras
from ..camera_paths.sources import camera_source_files, path_from, source_label
from ..depth import lift_prediction
from ..devices import describe
from ..files import replacing
from ..files.contact_sheet import contact_sheet
from ..files.depth_maps import load_depth, save_depth_exr
from ..files.images import load_image, save_image, to_bytes
from ..files.videos import load_mask_video, load_video, save_mask_video, save_video
from ..rendering import hole_mask, render
from ..scene_files import load_scene, save_scene
from ..strag.pipeline import StragPipeline
from ..vism.pipeline import VismPipeline
from ..wan.fitting import extended_to_multiple
from ..wan.latents import PIXELS_PER_TOKEN
from ..wan.pipeline import WanPipeline
from ..wan.sampling import Progress
from .kept_networks import KeptDepth, KeptPipeline
from .models import Models
from .run_record import RunRecord
from .settings import CameraOutputs, Item, Report, check_settings

SCENE_FILE = "scene.safetensors"
SHEET_FILE = "contact-sheet.png"
_IMAGE, _DEPTH, _CAMERA = "image.png", "depth.exr", "camera.npz"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """An image on its way through the stages."""

    item: Item
    """The image, and what is asked for."""

    models: Models
    """What tells one network's weights from another's."""

    record: RunRecord
    """What was done, in the image's folder."""

    on_stage: Report
    """See `Report`."""

    @classmethod
    def of(cls, item: Item, models: Models, on_stage: Report) -> "Run":
        """Begin nothing yet."""
        about = {"generation": item.settings, "depth": item.depth.name, "models": models}
        record = RunRecord(item.folder, about, name=item.name)
        return cls(item=item, models=models, record=record, on_stage=on_stage)

    def report(self, stage: str) -> Progress | None:
        """Return the progress callback of a stage that begins."""
        return self.on_stage(f"{self.item.name}, {stage}" if self.item.name else stage)


def open_run(run: Run, locks: ExitStack) -> None:
    """Check what is asked for; keep other processes out of the folder until `locks` are closed."""
    check_settings(run.item.settings)
    locks.enter_context(run.record.opened())


def lift(run: Run, kept: KeptDepth) -> None:
    """Find the depth and the camera of the image."""
    folder, depth, max_depth = run.item.folder, run.item.depth, run.item.settings.strag.max_depth
    image = run.item.load_image()

    def make() -> None:
        prediction = kept.provider(depth).predict(image)
        lifted = lift_prediction(image, prediction, fov_rad=depth.fov_rad, max_depth=max_depth)
        save_image(folder / _IMAGE, image)
        save_depth_exr(folder / _DEPTH, prediction.depth)
        save_cameras(folder / _CAMERA, lifted.cameras)

    digest = hashlib.sha256(to_bytes(image).numpy().tobytes()).hexdigest()
    details = {
        "image_sha256": digest,
        "image_hw": list(image.shape[:2]),
        "depth": depth.name,
        "fov_rad": depth.fov_rad,
        "max_depth": max_depth,
    }
    run.record.stage("depth", details, depth.files, (_IMAGE, _DEPTH, _CAMERA), make)


def generate_scene(run: Run, kept: KeptPipeline[StragPipeline]) -> None:
    """Generate the motion."""
    folder, settings = run.item.folder, run.item.settings
    strag = settings.strag

    def make() -> dict[str, str]:
        generator = torch.Generator().manual_seed(settings.seed)
        with kept.using(strag.num_frames, strag.size_hw) as pipeline:
            scene = pipeline.generate(
                load_image(folder / _IMAGE),
                load_depth(folder / _DEPTH),
                load_cameras(folder / _CAMERA),
                settings.prompt,
                settings=strag,
                generator=generator,
                progress=run.report("motion"),
            )
            chosen = _plan_of(pipeline)
        save_scene(folder / SCENE_FILE, scene)
        return chosen

    details = {
        "prompt": settings.prompt,
        "seed": settings.seed,
        "strag": strag,
        "models": run.models.strag_settings(),
    }
    inputs = [folder / _IMAGE, folder / _DEPTH, folder / _CAMERA]
    weights = run.models.strag_sha256()
    run.record.stage("scene", details, inputs, (SCENE_FILE,), make, weights=weights)


def camera_outputs(run: Run) -> list[CameraOutputs]:
    """Return the files of each camera path, whether they are made yet or not."""
    folder, settings = run.item.folder, run.item.settings
    return [
        CameraOutputs(
            label=label,
            rendered=folder / f"{label}-render.mkv",
            holes=folder / f"{label}-holes.mkv",
            completed=folder / f"{label}.mp4" if settings.complete else None,
        )
        for label in _labels(settings.cameras)
    ]


def render_cameras(run: Run) -> None:
    """Draw what each camera sees, and what is missing."""
    for source, output in zip(run.item.settings.cameras, camera_outputs(run), strict=True):
        _render_camera(run, source, output)


def _render_camera(run: Run, source: str, output: CameraOutputs) -> None:
    folder, settings = run.item.folder, run.item.settings

    def make() -> None:
        scene = load_scene(folder / SCENE_FILE)
        cameras = path_from(source, scene, settings=settings.path)
        progress = run.report(f"render {output.label}")
        view = render(scene, cameras, settings.render, progress=progress)
        mask = hole_mask(view.alpha, grow_px=settings.grow_holes_px)
        save_video(output.rendered, view.rgb, scene.fps, lossless=True)
        save_mask_video(output.holes, mask, scene.fps)

    details = {
        "camera": source,
        "path": settings.path,
        # Where and how many at once changes no picture.
        "render": replace(settings.render, device=None, chunk_frames=None),
        "grow_holes_px": settings.grow_holes_px,
    }
    inputs = [folder / SCENE_FILE, *camera_source_files(source)]
    made = (output.rendered.name, output.holes.name)
    run.record.stage(f"{output.label}: render", details, inputs, made, make)


def complete_cameras(run: Run, kept: KeptPipeline[VismPipeline]) -> None:
    """Fill the holes of every camera's video, where that is asked for."""
    if run.item.settings.complete:
        for index, output in enumerate(camera_outputs(run)):
            _complete_camera(run, index, output, kept)


def _complete_camera(
    run: Run, index: int, output: CameraOutputs, kept: KeptPipeline[VismPipeline]
) -> None:
    folder, settings = run.item.folder, run.item.settings
    completed, seed = f"{output.label}.mp4", settings.seed + 1 + index

    def make() -> dict[str, str]:
        rendered, fps = load_video(output.rendered)
        holes = load_mask_video(output.holes)[0] > 0.5
        # A padded photo need not have a size that the network can take: at most 15 pixels more.
        larger = extended_to_multiple(rendered, PIXELS_PER_TOKEN)
        num_frames, height, width = larger.shape[:3]
        frames_at_once = min(num_frames, settings.vism.window_frames)
        with kept.using(frames_at_once, (height, width)) as pipeline:
            video = pipeline.complete(
                larger,
                extended_to_multiple(holes, PIXELS_PER_TOKEN),
                settings.prompt,
                image=load_image(folder / _IMAGE),
                settings=settings.vism,
                generator=torch.Generator().manual_seed(seed),
                progress=run.report(f"complete {output.label}"),
            )
            chosen = _plan_of(pipeline)
        video = video[:, : rendered.shape[1], : rendered.shape[2]]
        save_video(folder / completed, video, fps)
        return chosen

    details = {
        "prompt": settings.prompt,
        "seed": seed,
        "vism": settings.vism,
        "models": run.models.vism_settings(),
    }
    inputs = [output.rendered, output.holes, folder / _IMAGE]
    weights = run.models.vism_sha256()
    run.record.stage(
        f"{output.label}: complete", details, inputs, (completed,), make, weights=weights
    )


def _plan_of(pipeline: WanPipeline) -> dict[str, str]:
    return {} if pipeline.placement is None else {"plan": describe(pipeline.placement.plan)}


def write_sheet(run: Run) -> None:
    """Draw one picture of all cameras; the run is finished."""
    rows = {}
    for output in camera_outputs(run):
        rows[f"{output.label}: rendered"] = load_video(output.rendered)[0]
        rows[f"{output.label}: hole mask"] = load_video(output.holes)[0]
        if output.completed is not None:
            rows[f"{output.label}: completed"] = load_video(output.completed)[0]
    with replacing(run.item.folder / SHEET_FILE) as temporary:
        contact_sheet(rows).save(temporary)
    run.record.finish()


def _labels(cameras: tuple[str, ...]) -> list[str]:
    """One file name per camera; a second one of the same name gets a number."""
    labels: list[str] = []
    for source in cameras:
        label = source_label(source)
        same = sum(known == label or known.startswith(f"{label}-") for known in labels)
        labels.append(f"{label}-{same + 1}" if label in labels else label)
    return labels
