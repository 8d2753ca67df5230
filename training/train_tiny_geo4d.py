"""Train the embedded Geo4D: a small VAE and UNet on procedural clips, in minutes on one GPU.

    python -m training.train_tiny_geo4d --output runs/tiny-geo4d --minutes 8
    python -m training.train_tiny_geo4d --start runs/tiny-geo4d/more4d_tiny_geo4d.safetensors \
        --seed 2 --output runs/longer                     # goes on with other clips
    python -m training.train_tiny_geo4d --minutes None --pool-size 8 --vae-steps 2 --unet-steps 2 \
        --device cpu --precision fp32 --workers 0 --output runs/test

The stages of `train_geo4d_points` and `train_geo4d`, with their objectives, over a pool of clips
that stays on the device. The VAE is trained whole, because no stock one is this small. Latents are
computed once, of a few windows of each clip, then the UNet is trained on them. Says what
the networks get right on clips that were not trained on, and writes
`more4d_tiny_geo4d.safetensors` with the number of denoising steps that was best there;
`evaluate_geo4d` measures the whole path from video to scene.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from more4d_backend.devices.state import detect_device
from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.weights.geo4d import load_geo4d, save_geo4d
from more4d_backend.wording import counted

from .geo4d.clips import GeometryBatch
from .geo4d.pools import ClipPool, LatentPool, held_out_clips
from .geo4d.quality import MEASURED_STEPS, WindowQuality, best_num_steps, measured_quality
from .geo4d.tiny_settings import TinyGeo4DTraining
from .geo4d.tiny_unet import train_unet
from .geo4d.tiny_vae import train_vae
from .run.command_line import train_and_exit
from .run.settings import SettingsError
from .run.time_boxes import TimeBox

_log = logging.getLogger(__name__)

FILE_NAME = "more4d_tiny_geo4d.safetensors"
_PICTURES_AT_ONCE = 1024
_CONTEXT_START = 0.5
_LOOKED_AT = 8
"""Held-out clips that are measured on the way."""


def train(training: TinyGeo4DTraining) -> Path:
    """Train, and return the path of the weights.

    Raises:
        NotFiniteError: a loss is NaN or infinite.
        WeightsError, SettingsError: the file to start from is none, or of another size.
        DevicePlanError: there is no such device.
    """
    detect_device(training.device)
    torch.manual_seed(training.seed)
    networks, generator = _networks(training), _generator(training)
    training.check_clips(networks.size)
    path, ends, start = training.output / FILE_NAME, training.phase_ends, time.perf_counter()

    def box(steps: int, end: float) -> TimeBox:
        elapsed = time.perf_counter() - start
        return TimeBox(steps=steps, seconds=training.seconds_until(end, elapsed))

    # 1. Clips: some that are held out, then those to train on.
    window = networks.size.num_frames
    held_out = held_out_clips(training, window, training.evaluated_clips)
    looked_at = [_first(held_out[0], _LOOKED_AT)]
    pool = ClipPool.drawn(training, window, seconds=box(1, ends.clips).seconds)
    _log.info("Drew %d clips, %.0f s", len(pool), time.perf_counter() - start)

    # 2. The VAE; its latents have mean 0 and deviation 1.
    vae_steps = 0
    if training.start is None:
        vae_steps = train_vae(
            networks.vae, pool, training, generator, box(training.vae_steps, ends.vae)
        )
        _write(networks, path, training, f"{vae_steps} updates of the VAE, none of the UNet")
        _look(networks, looked_at, "The VAE is trained", (None,))

    # 3. Latents, once for all.
    seconds = box(1, ends.latents).seconds
    latents = LatentPool.encoded(networks.vae, pool, training, generator, seconds=seconds)
    _log.info("Encoded %d windows, %.0f s", len(latents), time.perf_counter() - start)
    del pool

    # 4. The UNet.
    def quarter() -> None:
        networks.eval()
        _write(networks, path, training, "stopped before its end")
        _look(networks, looked_at, "On the way", (1,))
        networks.unet.train()

    unet_steps = train_unet(
        networks, latents, training, generator, box(training.unet_steps, ends.unet), quarter
    )

    # 5. The file, and what it can do.
    told = f"{len(latents)} windows, {vae_steps} updates of the VAE, {unet_steps} of the UNet"
    _write(networks, path, training, told)
    _log.info("Wrote %s: %.2f MB; %s", path, path.stat().st_size / 1e6, told)
    measured = _look(networks, held_out, "At the end")
    networks.num_steps = best_num_steps(measured)
    _write(networks, path, training, told)
    _log.info(
        "The file says to denoise in %s, which had the least rotation RPE on held-out clips.",
        counted(networks.num_steps, "step"),
    )
    _log.info("Done, %.0f s", time.perf_counter() - start)
    return path


def _networks(training: TinyGeo4DTraining) -> Geo4DNetworks:
    if training.start is None:
        networks = Geo4DNetworks(GEO4D_SIZES["tiny"])
        # Frames are told apart by their own tokens alone: these have to differ from the start.
        nn.init.normal_(networks.context, std=_CONTEXT_START)
    else:
        networks = load_geo4d(training.start, dtype=torch.float32)
        if networks.size != GEO4D_SIZES["tiny"]:
            raise SettingsError(
                f"{training.start} is not of the embedded size, which is trained here."
            )
    networks.vae.pictures_per_call = _PICTURES_AT_ONCE
    networks.camera_weight = training.camera_weight
    networks.mirrored_windows = training.mirrored_windows
    return networks.to(training.device)


def _generator(training: TinyGeo4DTraining) -> torch.Generator:
    return torch.Generator(training.device).manual_seed(training.seed)


def _first(batch: GeometryBatch, count: int) -> GeometryBatch:
    return replace(
        batch,
        names=batch.names[:count],
        video=batch.video[:count],
        depth=batch.depth[:count],
        valid=batch.valid[:count],
        intrinsics=batch.intrinsics[:count],
        world_to_camera=batch.world_to_camera[:count],
    )


def _write(networks: Geo4DNetworks, path: Path, training: TinyGeo4DTraining, told: str) -> None:
    recipe = f"training.train_tiny_geo4d --seed {training.seed}: {told}"
    if training.start:
        with safe_open(training.start, "pt") as file:
            before = (file.metadata() or {}).get("more4d_recipe", "unknown")
        recipe += f"; went on from a file of recipe: {before}"
    save_geo4d(networks, path, metadata={"more4d_recipe": recipe, "more4d_profile": "own"})


def _look(
    networks: Geo4DNetworks,
    clips: list[GeometryBatch],
    when: str,
    steps_tried: Sequence[int | None] = (None, *MEASURED_STEPS),
) -> list[WindowQuality]:
    # What is asked on the way is little: it is taken from the time of the updates.
    measured = measured_quality(networks, clips, steps_tried)
    for quality in measured:
        _log.info("%s: %s", when, quality.line())
    return measured


if __name__ == "__main__":
    import tyro

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    train_and_exit(lambda: tyro.cli(TinyGeo4DTraining), train)
