"""Train the denoiser of Geo4D: points, then several sizes, then rays and disparity.

    accelerate launch --num_processes 4 -m training.train_geo4d released \
        --weights start.safetensors --data.point-odyssey D/pointodyssey --data.tartanair D/tartanair
    python -m training.train_geo4d tiny --weights tiny_vae.safetensors
    python -m training.train_geo4d tiny --run.num-steps 3 --run.precision fp32 ...    # CPU

The VAE is taken as given: `train_geo4d_points` trains its point decoder. Where there is no pair of
checkpoints to begin with, `train_tiny_geo4d` trains everything from nothing, at the small size.
Writes `geo4d.safetensors` to the output folder. Settings: `--help` after a recipe's name.
"""

import logging
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from more4d_backend.files import replacing
from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.sampling import NUM_TRAIN_TIMESTEPS
from more4d_backend.geo4d.sizes import GEO4D_SIZES, RELEASED_NUM_STEPS
from more4d_backend.weights.geo4d import geo4d_header, load_geo4d, save_geo4d
from more4d_backend.weights.kinds import WeightKind

from .geo4d.clips import GeometryBatch
from .geo4d.loader import ClipLoader
from .geo4d.objectives import DenoiserObjective, geometry_latents, video_latents
from .geo4d.recipes import Geo4DConfig, parse_geo4d_config
from .run.command_line import train_and_exit
from .run.convolution_layout import set_layout
from .run.export import Export
from .run.loop import TrainingRun
from .run.settings import EXPORT_DTYPES

_log = logging.getLogger(__name__)

FILE_NAME = "geo4d.safetensors"
GIVEN = "geo4d_given.safetensors"
"""What a run split over ranks does not hold, for the file that is gathered from it."""


def train(config: Geo4DConfig) -> Path:
    """Train, and return the path of the weights."""
    # 1. The run: devices, seeds, what to continue.
    run = TrainingRun(config)  # pyright: ignore[reportArgumentType] (data of its own kind)

    # 2. The data.
    dataset = config.data.dataset(config.run.seed)
    loader = ClipLoader(dataset, config, rank=run.rank, num_ranks=run.num_ranks)

    # 3. The networks; the VAE only encodes.
    networks = networks_to_train(config)
    networks.num_steps = RELEASED_NUM_STEPS  # trained at all timesteps, whatever it begins with
    networks.vae.eval().requires_grad_(False).to(run.device)
    networks.unet.gradient_checkpointing = config.run.gradient_checkpointing
    objective = DenoiserObjective(networks, exported(config, networks)).train()
    prepare(run, networks, objective, loader)

    # 4. The loop.
    for batch in run.batches():
        clean, video = _latents(run, networks, batch)  # pyright: ignore[reportArgumentType]
        generator = run.generator()
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        times = torch.randint(
            NUM_TRAIN_TIMESTEPS, (len(clean),), generator=generator, device=clean.device
        )
        weights = config.stage_at(run.step).weights
        run.update(
            batch,
            lambda c=clean, v=video, n=noise, t=times, w=weights: run.objective(c, v, n, t, w),
        )

    # 5. The weights.
    path = write_trained(run, networks)
    run.close()
    return path


def networks_to_train(config: Geo4DConfig) -> Geo4DNetworks:
    """Load what the config begins with, in float32, or make it from the run's seed."""
    if config.weights is not None:
        return load_geo4d(config.weights, dtype=torch.float32)
    _log.warning("No weights were named: the networks begin with random values.")
    with torch.random.fork_rng():
        torch.manual_seed(config.run.seed)
        return Geo4DNetworks(GEO4D_SIZES[config.size])


def exported(config: Geo4DConfig, networks: Geo4DNetworks) -> Export:
    """Return how a run that is split over ranks writes the networks."""
    return Export(
        kind=WeightKind.GEO4D.value,
        prefix="",
        file=FILE_NAME,
        dtype=EXPORT_DTYPES[config.run.export_precision],
        profile="own",
        given=GIVEN,
        metadata=geo4d_header(networks),
    )


def prepare(
    run: TrainingRun, networks: Geo4DNetworks, objective: nn.Module, loader: ClipLoader
) -> None:
    """Prepare a run; split over ranks, write what `training.gather` will not find in checkpoints.

    Raises:
        CheckpointError, SettingsError: see `TrainingRun.prepare`.
        OutputError: the output folder cannot be written.
    """
    if run.is_sharded:
        # Engines cut parameters as they lie in memory.
        set_layout(objective, channels_last=False)
        held = objective.state_dict().keys()
        given = {n: t.contiguous() for n, t in networks.state_dict().items() if n not in held}
        if run.is_main:
            with replacing(run.output / GIVEN) as temporary:
                save_file(given, temporary)
    run.prepare(objective, loader)


def write_trained(run: TrainingRun, networks: Geo4DNetworks) -> Path:
    """Write the networks with what was trained, or its running mean, in its place; all ranks call.

    Raises:
        KeyError: something was trained that is no part of the networks.
    """
    if run.is_sharded:
        return run.write_weights()
    path = run.output / FILE_NAME
    if not run.is_main:
        return path
    with run.averaged():
        trained = {name: t.detach().clone() for name, t in run.module.state_dict().items()}
    whole = networks.state_dict()
    strangers = trained.keys() - whole.keys()
    if strangers:
        raise KeyError(f"{sorted(strangers)[:5]} are no part of the networks.")
    networks.load_state_dict(whole | trained)
    dtype = torch.bfloat16 if run.settings.export_precision == "bf16" else torch.float32
    save_geo4d(networks, path, dtype=dtype, metadata={"more4d_profile": "own"})
    _log.info("Wrote %s", path)
    return path


@torch.no_grad()
def _latents(
    run: TrainingRun, networks: Geo4DNetworks, batch: GeometryBatch
) -> tuple[Tensor, Tensor]:
    # By torch: accelerate's own is none under the engines.
    bf16 = run.settings.precision == "bf16"
    with torch.autocast(run.device.type, torch.bfloat16, enabled=bf16):
        clean = geometry_latents(networks.vae, batch.images())
        video = video_latents(networks.vae, batch.pictures())
    return clean.float(), video.float()


if __name__ == "__main__":
    train_and_exit(lambda: parse_geo4d_config("geo4d"), train)
