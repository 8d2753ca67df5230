"""Train the embedded parts that the three trainers take as given: RGB VAE and depth network.

    python -m training.train_tiny vae --output runs/tiny
    python -m training.train_tiny depth --output runs/tiny
    python -m training.train_tiny vae --output /tmp/v --steps 2 --device cpu --precision fp32

`vae` learns colours, depth pictures and motion together, with one encoder and two decoders: from
colours alone the encoder would keep little of what a motion map holds. It writes
`wan_vae.safetensors` as embedded, and `motion_vae.safetensors` for `train_motion_vae` to go on
with. Everything is drawn from procedural seeds; no sample is stored.
"""

import copy
import logging
import math

import torch

from more4d_backend.strag.profile import OWN
from more4d_backend.tiny.depth_network import DepthNetwork
from more4d_backend.tiny.writing import fold_statistics, measured_statistics, write_embedded
from more4d_backend.wan.latents import decode_video, encode_video
from more4d_backend.wan.whole_clip import run_whole_clips
from more4d_backend.weights.kinds import WeightKind

from .averaging import ParameterAverage
from .clip_pool import ClipPool
from .export import export_weights
from .pictures import draw_pictures
from .procedural import PROCEDURAL_RECIPES
from .samples import SampleSize
from .tiny_loop import SEEDS_APART, Losses, TinyTraining, train_tiny
from .tiny_vaes import TinyVaes

_log = logging.getLogger(__name__)

_WHOLE_SHARE = 0.06
"""Of the updates: the last ones, on whole clips."""


RECIPES = {
    "vae": TinyTraining(part="vae", steps=5200, batch_size=10, learning_rate=1e-3, pool_size=1500),
    "depth": TinyTraining(
        part="depth", steps=6000, batch_size=32, learning_rate=2e-3, pool_size=16_000
    ),
}


def train_vaes(training: TinyTraining) -> None:
    """Train both VAEs on parts of a pool of clips, and write them with their statistics folded in.

    Most updates are on small and short parts, because what is hard is the edges of motion, which
    are everywhere; the last ones are on whole clips.
    """
    torch.manual_seed(training.seed)
    model = TinyVaes().to(training.device)
    generator = torch.Generator(training.device).manual_seed(training.seed)
    count = math.ceil(training.pool_size / training.batch_size)
    pool = ClipPool.filled(training.batches(first=0, count=count), OWN.motion)
    _log.info("Drew %d clips", len(pool.motion))
    split_step = training.steps // 2
    small_steps = round(training.steps * (1 - _WHOLE_SHARE))
    small = SampleSize(num_frames=17, height=64, width=64)
    whole = SampleSize(num_frames=pool.motion.shape[2], height=pool.motion.shape[3],
                       width=pool.motion.shape[4])  # fmt: skip

    def losses(step: int, average: ParameterAverage) -> Losses:
        if step == split_step:
            model.split_decoders(average)
        size, counts = (small, (8, 12)) if step < small_steps else (whole, (2, 4))
        return model.losses(
            pool.picture_crops(counts[0], size, generator),
            pool.motion_crops(counts[1], size, generator),
            decoder="shared" if step < split_step else "own",
            squared=step < split_step,
        )

    for vae in (model.rgb, model.motion.vae):
        run_whole_clips(vae, compiled=training.compile)
    average = train_tiny(model, losses, training, generator)
    for vae in (model.rgb, model.motion.vae):
        run_whole_clips(vae)
    with torch.no_grad(), average.in_use(), training.autocast():
        _log.info("On other samples: %s", _measured(model.eval(), training))
        _fold_statistics(model, pool)
        _write_vaes(model, training)


def _measured(model: TinyVaes, training: TinyTraining) -> str:
    """Errors on whole clips that were not trained on."""
    pool = ClipPool.filled(training.batches(first=SEEDS_APART // 2, count=2), OWN.motion)
    motion, errors = pool.motion.float(), []
    for clip in motion[:, None]:
        errors.append((model.motion.decode(model.motion.encode(clip)) - clip).abs().sum())
    relative = torch.stack(errors).sum() / motion.abs().sum()
    colours = pool.video[:16].float() / 127.5 - 1
    decoded = [decode_video(model.rgb, encode_video(model.rgb, clip)) for clip in colours[:, None]]
    psnr = -10 * ((torch.cat(decoded) - colours) / 2).square().mean().log10()
    return f"R {relative:.3f}, colours {psnr:.2f} dB"


def _fold_statistics(model: TinyVaes, pool: ClipPool) -> None:
    pictures, motions = [], []
    for number in range(min(64, len(pool.motion))):
        clip = pool.video[number, None].float() / 127.5 - 1
        depth = pool.depth_picture[number, None].float()
        # Videos, and pictures held still as 4D-STraG is given them.
        for seen in (clip, clip[:, :, :1].expand_as(clip), depth.expand_as(clip)):
            pictures.append(encode_video(model.rgb, seen))
        motions.append(model.motion.encode(pool.motion[number, None].float()))
    # One encoder, but two scales of what it says.
    model.motion.vae.quant_conv = copy.deepcopy(model.rgb.quant_conv)
    for name, vae, latents in (("RGB", model.rgb, pictures), ("motion", model.motion.vae, motions)):
        mean, std = measured_statistics(latents)
        _log.info("%s latents: mean %s, std %s", name, mean.tolist(), std.tolist())
        fold_statistics(vae, mean, std)


def _write_vaes(model: TinyVaes, training: TinyTraining) -> None:
    recipe = f"training.train_tiny vae --steps {training.steps} --seed {training.seed}"
    write_embedded("wan_vae", model.rgb, folder=training.output, recipe=recipe)
    path = training.output / "motion_vae_start.safetensors"
    state, kind = model.motion.state_dict(), WeightKind.MOTION_VAE
    export_weights(state, kind, path, dtype=torch.float32, profile=OWN.name)


def train_depth(training: TinyTraining) -> None:
    """Train the depth network on a pool of pictures of frame 0, mirrored half of the time."""
    torch.manual_seed(training.seed)
    model = DepthNetwork().to(training.device)
    generator = torch.Generator(training.device).manual_seed(training.seed)
    settings = PROCEDURAL_RECIPES["tiny"]()
    pool = draw_pictures(
        settings,
        first_seed=training.seed * SEEDS_APART,
        count=training.pool_size,
        num_workers=training.workers,
    ).to(training.device)
    images, depths, focals = pool.images, pool.depth, pool.log_focal

    def losses(_step: int, _average: ParameterAverage) -> Losses:
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
    recipe = f"training.train_tiny depth --steps {training.steps} --seed {training.seed}"
    with average.in_use():
        write_embedded("depth", model, folder=training.output, recipe=recipe)


if __name__ == "__main__":
    import tyro

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    told = tyro.extras.overridable_config_cli({n: (n, r) for n, r in RECIPES.items()})
    {"vae": train_vaes, "depth": train_depth}[told.part](told)
