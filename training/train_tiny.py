"""Train the embedded parts that the three trainers take as given: VAEs, depth, and first the text.

    python -m training.train_tiny draw --output runs/tiny --count 8000
    python -m training.train_tiny vae --output runs/tiny --minutes 10 --compile
    python -m training.train_tiny vae --start runs/tiny --seed 2 --output runs/longer --minutes 10
    python -m training.train_tiny depth --output runs/tiny --minutes 3
    python -m training.train_tiny text --output runs/tiny
    python -m training.train_tiny embed --name strag --source S.safetensors --recipe "..."

`draw` draws pictures on the CPU's cores, once for everything that learns from them; the others read
them. `vae` learns colours, depth pictures and motion together, with one encoder and two decoders:
from colours alone the encoder would keep little of what a motion map holds. It writes `wan_vae` and
`motion_vae` as embedded files, and `motion_vae_start.safetensors` in full precision, with which
`train_motion_vae` can go on.
"""

import copy
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from einops import rearrange
from torch import Tensor

from more4d_backend.devices.state import detect_device
from more4d_backend.strag.profile import OWN
from more4d_backend.tiny import relative_path
from more4d_backend.tiny.depth_network import DepthNetwork
from more4d_backend.tiny.writing import (
    copy_embedded,
    fold_statistics,
    measured_statistics,
    write_embedded,
)
from more4d_backend.wan.latents import decode_video, encode_video
from more4d_backend.wan.rms_norm import fuse_norms
from more4d_backend.wan.whole_clip import run_whole_clips
from more4d_backend.weights.kinds import WeightKind
from more4d_backend.weights.model_loading import load_motion_vae, load_wan_vae

from .data.samples import SampleSize, stack_samples
from .data.sources import VALIDATION_SEED
from .procedural.dataset import PROCEDURAL_RECIPES
from .procedural.pictures import Pictures, PictureSamples, draw_pictures
from .run.averaging import ParameterAverage
from .run.command_line import exit_with
from .run.convolution_layout import use_fastest_layout
from .run.export import export_weights
from .run.settings import SettingsError
from .targets import normalized_motion
from .tiny.clip_pool import ClipPool
from .tiny.loop import SEEDS_APART, Losses, TinyTraining, train_tiny
from .tiny.text import train_text
from .tiny.vaes import TinyVaes

_log = logging.getLogger(__name__)

_SPLIT_SHARE = 0.35
"""Of the training: after it each decoder learns by itself, and from the absolute error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Crops:
    """Parts of clips that an update of the VAEs is made on."""

    size: SampleSize
    num_pictures: int
    num_motions: int


_SHORT = _Crops(size=SampleSize(num_frames=9, height=64, width=64), num_pictures=12, num_motions=24)
"""Few frames, because the edges of a motion map stay where they are."""
_LONG = _Crops(size=SampleSize(num_frames=49, height=64, width=64), num_pictures=3, num_motions=5)
_WHOLE = _Crops(
    size=SampleSize(num_frames=49, height=128, width=176), num_pictures=3, num_motions=3
)
_LONG_SHARE = 0.55
"""Of the training: after it half of the updates are on long clips. Layers in time that have met
only short ones fail beyond their length: R 0.19 on 9 frames was 2.1 on 49."""
_WHOLE_SHARE = 0.92
"""Of the training: after it all updates are on whole clips."""
_START_NAME = "motion_vae_start.safetensors"


RECIPES = {
    "vae": TinyTraining(
        part="vae",
        steps=50_000,
        batch_size=10,
        learning_rate=1.5e-3,
        pool_size=1000,
        must_fall=("R", 0.9, 1500),
    ),
    "depth": TinyTraining(
        part="depth", steps=6000, batch_size=32, learning_rate=2e-3, pool_size=16_000
    ),
    "text": TinyTraining(
        part="text",
        steps=3000,
        batch_size=64,
        learning_rate=2e-3,
        pool_size=20_000,
        must_fall=("motion", 1.0, 2000),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What pictures are drawn."""

    output: Path = Path("runs/tiny")
    """They go to `pictures/` in it."""

    count: int = 8000
    """How many."""

    per_file: int = 4000
    """How many in each file."""

    seed: int = 1
    """Of the training that they are for."""

    workers: int = 16
    """Processes."""


def draw(drawing: Drawing) -> None:
    """Draw pictures into files; those already there are kept."""
    for first in range(0, drawing.count, drawing.per_file):
        count = min(drawing.per_file, drawing.count - first)
        path = drawing.output / "pictures" / f"{drawing.seed:03d}-{first:07d}-{count}.safetensors"
        if path.exists():
            _log.info("%s is there already and is kept", path)
            continue
        start = time.perf_counter()
        pictures = draw_pictures(
            PROCEDURAL_RECIPES["tiny"](),
            first_seed=drawing.seed * SEEDS_APART + first,
            count=count,
            num_workers=drawing.workers,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures.save(path)
        _log.info("%s: %d pictures in %.0f s", path, count, time.perf_counter() - start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """What one of the three trainers wrote, and where it belongs."""

    name: Literal["strag", "text_encoder", "vism", "vism_lora", "motion_vae"]
    """Of the embedded file."""

    source: Path
    """The trainer's file."""

    recipe: str
    """The command that made it, with its seed; written into the file."""

    output: Path = Path("runs/tiny")
    """Folder, laid out as that of the embedded files."""


def train_vaes(training: TinyTraining) -> None:
    """Train both VAEs on parts of a pool of clips, and write them with their statistics folded in.

    Most updates are on small and short parts, because what is hard is the edges of motion, which
    are everywhere; then long parts come in between, and the last updates are on whole clips. A
    training that goes on from another one has long parts from the start.
    """
    torch.manual_seed(training.seed)
    model = (_continued(training.start) if training.start else TinyVaes()).to(training.device)
    generator = torch.Generator(training.device).manual_seed(training.seed)
    pool = ClipPool.filled(_pictures(training), training.batches(), OWN.motion)
    held_out = _held_out(training)
    _log.info("%d scenes and %d videos to learn from", len(pool.motion), len(pool.video))
    is_compiled = training.compile
    long_share = 0.0 if training.start else _LONG_SHARE

    def losses(progress: float, average: ParameterAverage) -> Losses:
        nonlocal is_compiled
        if progress >= _SPLIT_SHARE and not model.is_split:
            model.split_decoders(average)
        if progress >= long_share and is_compiled:
            is_compiled = False  # to compile for each other size takes as long as it would save
            _run_whole_clips(model)
        return _crop_losses(model, pool, generator, _crops(progress, long_share, generator))

    _run_whole_clips(model)
    if not training.compile:  # the compiler joins them itself
        for vae in (model.rgb, model.motion.vae):
            fuse_norms(vae)
    if generator.device.type == "cuda":
        trial = torch.Generator(training.device).manual_seed(0)
        with training.autocast():
            use_fastest_layout(model, lambda: _crop_losses(model, pool, trial, _SHORT)["loss"])
    _run_whole_clips(model, compiled=training.compile)
    average = train_tiny(model, losses, training, generator)
    _run_whole_clips(model)
    with torch.no_grad(), average.in_use():
        with training.autocast():
            _fold_statistics(model.eval(), pool)
        _write_vaes(model, training)
        training.unfinished.unlink()
        # Another autocast: one keeps the weights it has cast, also those changed since.
        with training.autocast():
            _log.info("On other samples: %s", _measured(model, held_out))


def _continued(folder: Path) -> TinyVaes:
    rgb = load_wan_vae(folder / relative_path("wan_vae"), dtype=torch.float32)
    motion = load_motion_vae(folder / _START_NAME, OWN.latents, dtype=torch.float32)
    return TinyVaes.continued(rgb, motion)


def _crops(progress: float, long_share: float, generator: torch.Generator) -> _Crops:
    if progress < long_share:
        return _SHORT
    if progress >= _WHOLE_SHARE:
        return _WHOLE
    is_long = torch.rand((), generator=generator, device=generator.device) < 0.5
    return _LONG if is_long else _SHORT


def _crop_losses(
    model: TinyVaes, pool: ClipPool, generator: torch.Generator, crops: _Crops
) -> Losses:
    return model.losses(
        pool.picture_crops(crops.num_pictures, crops.size, generator),
        pool.motion_crops(crops.num_motions, crops.size, generator),
    )


def _run_whole_clips(model: TinyVaes, *, compiled: bool = False) -> None:
    for vae in (model.rgb, model.motion.vae):
        run_whole_clips(vae, compiled=compiled)


def _pictures(training: TinyTraining) -> Pictures:
    files = sorted((training.output / "pictures").glob("*.safetensors"))
    return Pictures.load(files).to(training.device)


def _held_out(training: TinyTraining) -> list[tuple[Tensor, Tensor]]:
    """Motion and still clips of scenes that are not trained on."""
    settings = PROCEDURAL_RECIPES["tiny"]()
    pictures = draw_pictures(settings, first_seed=VALIDATION_SEED, count=16).to(training.device)
    scenes, clips = PictureSamples(pictures), []
    for number in range(len(scenes)):
        batch = stack_samples([scenes[number]])
        still = rearrange(batch.video[:, :5], "b f h w c -> b c f h w").float() / 127.5 - 1
        clips.append((normalized_motion(batch, OWN.motion), still))
    return clips


def _measured(model: TinyVaes, clips: list[tuple[Tensor, Tensor]]) -> str:
    sums, squares = torch.zeros(2), []
    for motion, still in clips:
        decoded = model.motion.decode(model.motion.encode(motion))
        sums += torch.stack([(decoded - motion).abs().sum(), motion.abs().sum()]).cpu()
        seen = decode_video(model.rgb, encode_video(model.rgb, still))
        squares.append(((seen - still) / 2).square().mean())
    psnr = -10 * torch.stack(squares).mean().log10()
    return f"R {sums[0] / sums[1]:.3f}, colours of stills {psnr:.2f} dB"


def _fold_statistics(model: TinyVaes, pool: ClipPool) -> None:
    pictures, motions = [], []
    for number in range(min(64, len(pool.motion), len(pool.video))):
        clip = pool.video[number, None].float() / 127.5 - 1
        still = pool.image[number, None].float() / 127.5 - 1
        depth = pool.depth_picture[number, None].float()
        # Videos, and pictures held still as 4D-STraG is given them.
        for seen in (clip, still.expand_as(clip), depth.expand_as(clip)):
            pictures.append(encode_video(model.rgb, seen))
        motions.append(model.motion.encode(pool.motion[number, None].float()))
    # One encoder, but two scales of what it says.
    model.motion.vae.quant_conv = copy.deepcopy(model.rgb.quant_conv)
    for name, vae, latents in (("RGB", model.rgb, pictures), ("motion", model.motion.vae, motions)):
        mean, std = measured_statistics(latents)
        _log.info("%s latents: mean %s, std %s", name, mean.tolist(), std.tolist())
        fold_statistics(vae, mean, std)


def _write_vaes(model: TinyVaes, training: TinyTraining) -> None:
    write_embedded("wan_vae", model.rgb, folder=training.output, recipe=training.recipe)
    write_embedded("motion_vae", model.motion, folder=training.output, recipe=training.recipe)
    path = training.output / _START_NAME
    state, kind = model.motion.state_dict(), WeightKind.MOTION_VAE
    export_weights(state, kind, path, dtype=torch.float32, profile=OWN.name)


def train_depth(training: TinyTraining) -> None:
    """Train the depth network on a pool of pictures of frame 0, mirrored half of the time."""
    if training.start:
        raise SettingsError("--start is given; the depth network is trained from nothing alone.")
    torch.manual_seed(training.seed)
    model = DepthNetwork().to(training.device)
    generator = torch.Generator(training.device).manual_seed(training.seed)
    pool = _pictures(training)
    images, depths, focals = pool.images, pool.depth, pool.log_focal
    _log.info("%d pictures to learn from", len(pool))

    def losses(_progress: float, _average: ParameterAverage) -> Losses:
        chosen = torch.randint(
            len(images), (training.batch_size,), generator=generator, device=images.device
        )
        image = images[chosen].float() / 255
        true_depth = depths[chosen].float().log()
        if torch.rand(1, generator=generator, device=images.device) < 0.5:
            image, true_depth = image.flip(-1), true_depth.flip(-1)
        depth, focal = model(image)
        error = depth - true_depth
        # Depth is judged after one scale per picture; the scale itself is learned a little.
        shape = (error - error.flatten(1).median(1).values[:, None, None]).abs().mean()
        field = (focal - focals[chosen]).abs().mean()
        return {"loss": shape + 0.1 * error.abs().mean() + field, "shape": shape, "focal": field}

    average = train_tiny(model, losses, training, generator)
    with average.in_use():
        write_embedded("depth", model, folder=training.output, recipe=training.recipe)
    training.unfinished.unlink()


def _main() -> int:
    import tyro
    from tyro.conf import subcommand

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    told = tyro.cli(
        Annotated[Drawing, subcommand("draw")]
        | Annotated[TinyTraining, subcommand("vae", default=RECIPES["vae"])]
        | Annotated[TinyTraining, subcommand("depth", default=RECIPES["depth"])]
        | Annotated[TinyTraining, subcommand("text", default=RECIPES["text"])]
        | Annotated[Embedding, subcommand("embed")]
    )
    if isinstance(told, Drawing):
        draw(told)
    elif isinstance(told, Embedding):
        copy_embedded(told.name, told.source, folder=told.output, recipe=told.recipe)
    else:
        detect_device(told.device)
        {"vae": train_vaes, "depth": train_depth, "text": train_text}[told.part](told)
    return 0


if __name__ == "__main__":
    exit_with(_main)
