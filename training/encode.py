"""Encode a data set once, so that trainers need not do it in every epoch.

    python -m training.encode strag own --data.train D/train --data.encoded D/encoded/strag
    python -m training.encode vism tiny --data.train procedural --data.max-samples 3000 \
        --data.encoded runs/tiny/encoded/vism --run.minutes 3
    accelerate launch --multi_gpu --num_processes 8 -m training.encode strag own ...

The recipe and its settings are those of the trainer, which is then given the same `data.encoded`.
Every sample is encoded once, with `run.batch_size` at a time, until all are or `run.minutes` are
over; a last batch that is not full is left out. Holes for 4D-ViSM are drawn from `run.seed`. Ranks
share the samples, and each writes files of its own.
"""

import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from more4d_backend.wan.rms_norm import fuse_norms
from more4d_backend.wan.whole_clip import run_whole_clips

from . import networks
from .data.encoded import EncodedBatch, EncodedWriter
from .data.loader import TrainingLoader
from .data.samples import TrainingBatch
from .data.sources import training_samples
from .recipes import StragConfig, VismConfig
from .run.checkpoints import plain
from .run.command_line import exit_with, parse_config
from .run.settings import SettingsError
from .run.sharding import RANKS_WAIT, check_same_config, check_shared_folder
from .train_strag import StragGiven
from .train_vism import VismGiven

_log = logging.getLogger(__name__)

_SAMPLES_PER_FILE = 512


@torch.no_grad()
def encode(config: StragConfig | VismConfig) -> Path:
    """Encode what `data.train` names into `data.encoded`, and return that folder.

    Raises:
        SettingsError: `data.encoded` is not set, or already holds files; there is no VAE; there are
            fewer samples than one batch of all ranks; or ranks differ in settings or folders.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    folder = config.data.encoded
    if folder is None or any(folder.glob("*")):
        raise SettingsError(
            f"data.encoded is {folder}; expected an empty or a new folder for the encoded samples."
        )
    _check_vaes(config)
    ranks = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=RANKS_WAIT)
    check_same_config(ranks, plain(config))
    check_shared_folder(ranks, folder)
    device = torch.device(ranks.device or "cpu")
    torch.backends.cudnn.benchmark = True  # all clips have one size
    given: StragGiven | VismGiven
    if isinstance(config, StragConfig):
        given, novel = StragGiven.load(config, device), False
    else:
        given, novel = VismGiven.load(config, device), config.holes.novel > 0
    if config.size == "tiny":  # whose clips fit into memory whole
        fuse_norms(run_whole_clips(given.vae))
        if isinstance(given, StragGiven):
            fuse_norms(run_whole_clips(given.motion_vae.vae))
    drawn = replace(config, data=replace(config.data, encoded=None))
    dataset = training_samples(drawn.data, device, novel_views=novel)
    _check_count(len(dataset), config.run.batch_size * ranks.num_processes)  # type: ignore[arg-type]
    loader = TrainingLoader.of_run(dataset, drawn, ranks.process_index, ranks.num_processes)
    writer = EncodedWriter(
        folder, given.about, samples_per_file=_SAMPLES_PER_FILE, rank=ranks.process_index
    )
    generator = torch.Generator(device).manual_seed(config.run.seed + ranks.process_index)
    start = time.perf_counter()
    for batch in _once(loader, len(dataset)):  # type: ignore[arg-type]
        batch = batch.to(device)
        writer.add(_encoded(given, batch, generator).compact())
        seconds = time.perf_counter() - start
        if writer.num_samples % (16 * batch.num_samples) == 0:
            _log.info("%d samples in %.0f s", writer.num_samples, seconds)
        if config.run.minutes is not None and seconds > 60 * config.run.minutes:
            break
    writer.flush()
    _log.info("%s: %d samples of rank %d", folder, writer.num_samples, ranks.process_index)
    ranks.wait_for_everyone()
    return folder


def _check_count(count: int, batch_of_all: int) -> None:
    if count < batch_of_all:
        raise SettingsError(
            f"There are {count} samples, and a batch of all ranks has {batch_of_all}. Lower "
            "run.batch_size, or start fewer processes."
        )
    if left := count % batch_of_all:
        _log.warning(
            "%d of %d samples are left out: they do not fill a batch of all ranks (%d).",
            *(left, count, batch_of_all),
        )


def _check_vaes(config: StragConfig | VismConfig) -> None:
    """Latents of a random VAE look like any others, and training on them would be for nothing."""
    fields = ("wan_vae", "motion_vae") if isinstance(config, StragConfig) else ("wan_vae",)
    missing = networks.fields_without_file(config.weights, config.size, *fields)
    if missing:
        raise SettingsError(
            f"There is no file for weights.{' and weights.'.join(missing)}, and this installation "
            "has no embedded one. Name the file, or set weights.from_scratch to encode with random "
            "networks on purpose."
        )


def _encoded(
    given: StragGiven | VismGiven, batch: TrainingBatch, generator: torch.Generator
) -> EncodedBatch:
    """The VAE's noise is left out: its mode is what is generated best."""
    if isinstance(given, StragGiven):
        return given.encode(batch)
    return given.encode(batch, given.holes(batch, generator))


def _once(loader: TrainingLoader, count: int) -> Iterator[TrainingBatch]:
    """Yield this rank's part of all samples; last batches that are not full are left out."""
    batches = iter(loader)
    for _ in range(count // (loader.batch_size * loader.num_ranks)):
        batch = next(batches)
        assert isinstance(batch, TrainingBatch)
        yield batch


def main() -> int:
    """Run the command line."""
    from accelerate import PartialState

    kinds = {"strag": StragConfig, "vism": VismConfig}
    if len(sys.argv) < 2 or sys.argv[1] not in kinds:
        raise SystemExit(__doc__)
    trainer = sys.argv[1]
    prog = f"python -m training.encode {trainer}"
    folder = encode(parse_config(trainer, kinds[trainer], sys.argv[2:], prog=prog))
    if PartialState().is_main_process:
        print(folder)
    return 0


if __name__ == "__main__":
    exit_with(main)
