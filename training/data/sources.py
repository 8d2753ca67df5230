"""Where training samples come from: folders of shards, or seeds.

`data.train` and `data.validation` name a folder of shards, or say `procedural`: samples are then
made as they are needed and nothing is stored. `data.train` may also be a folder of drawn pictures
(`training.procedural.pictures`), and `data.encoded` stands for what was encoded before
(`training.data.encoded`).
All are data sets by number, so one loader gives them to ranks and workers, and continues after a
stop.
"""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from ..procedural.dataset import PROCEDURAL_RECIPES, ProceduralDataset
from ..procedural.pictures import Pictures, PictureSamples
from ..run.settings import DataSettings, SettingsError
from .encoded import EncodedSamples
from .shards import ShardDataset

_log = logging.getLogger(__name__)

PROCEDURAL = "procedural"
"""In place of a folder: from seeds."""

VALIDATION_SEED = 800_000_000
"""Training takes seeds below, validation those from here on; evaluation begins at 900 000 000."""

_EPOCH = 1_000_000
"""Seeds after which training begins again with the first, unless `data.max_samples` says other."""


def is_procedural(source: Path) -> bool:
    """Whether samples come from seeds instead of from a folder."""
    return source == Path(PROCEDURAL)


def training_samples(
    settings: DataSettings, device: torch.device, *, novel_views: bool
) -> ShardDataset | ProceduralDataset | PictureSamples | EncodedSamples:
    """Open what `data.train` names, or `data.encoded` in its place.

    Procedural samples have their second video only where `novel_views` asks for it, because it
    takes as long as the first. `device` casts their rays, unless the settings say the CPU.

    Raises:
        FileFormatError, SampleError: the folder cannot be used.
        SettingsError: the seeds reach those of validation.
    """
    if settings.encoded is not None:
        return EncodedSamples(settings.encoded, device if settings.encoded_on_device else None)
    if (pictures := sorted(settings.train.glob("*.safetensors"))) and not is_procedural(
        settings.train
    ):
        return PictureSamples(Pictures.load(pictures).to(device))
    if not is_procedural(settings.train):
        return ShardDataset(settings.train, settings.size, settings.max_samples)
    first, count = settings.procedural.first_seed, settings.max_samples or _EPOCH
    if first < 0 or first + count > VALIDATION_SEED:
        raise SettingsError(
            f"data.procedural.first_seed is {first} with {count} samples; expected at least 0 and "
            f"the last seed below {VALIDATION_SEED}, where those of validation begin."
        )
    dataset = _procedural(settings, first, count, device, novel_views=novel_views)
    where = f"{settings.num_workers} processes" if settings.num_workers else "this process"
    _log.info(
        "Samples are made from the seeds %d to %d, of recipe %s, on %s by %s",
        *(first, first + count - 1, settings.procedural.recipe, dataset.device, where),
    )
    return dataset


def validation_samples(
    settings: DataSettings, device: torch.device
) -> ShardDataset | ProceduralDataset | None:
    """Open what `data.validation` names; None where it names nothing.

    Raises:
        FileFormatError, SampleError: the folder cannot be used.
    """
    if settings.validation is None:
        return None
    if not is_procedural(settings.validation):
        return ShardDataset(settings.validation, settings.size)
    count = settings.num_validation_samples
    return _procedural(settings, VALIDATION_SEED, count, device, novel_views=True)


def _procedural(
    settings: DataSettings, first: int, count: int, device: torch.device, *, novel_views: bool
) -> ProceduralDataset:
    drawn = replace(PROCEDURAL_RECIPES[settings.procedural.recipe](), size=settings.size)
    return ProceduralDataset(
        drawn if novel_views else replace(drawn, novel_paths=()),
        num_samples=count,
        first_seed=first,
        device=device if settings.procedural.on_device else "cpu",
    )
