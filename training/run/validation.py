"""What every trainer's validation shares: fixed samples, fixed noise, pictures in a folder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from more4d_backend.files import replacing
from more4d_backend.files.contact_sheet import contact_sheet
from more4d_backend.files.videos import save_video

from ..data.samples import TrainingBatch, stack_samples
from ..data.shards import ShardDataset
from ..data.sources import validation_samples
from .loop import TrainingRun
from .settings import DataSettings

NOISE_LEVELS = (0.2, 0.5, 0.8, 0.95)
"""Noise levels at which validation losses are measured, always with the same noise."""


class ValidationSet:
    """The first samples of the validation data, one by one, the same every time."""

    def __init__(self, settings: DataSettings, every: int, device: torch.device) -> None:
        """Open the data, if the settings name some and validation every so many steps.

        Raises:
            FileFormatError, SampleError: the folder cannot be used.
        """
        self._dataset = validation_samples(settings, device) if every > 0 else None
        self._made: dict[int, TrainingBatch] = {}
        self._wanted = settings.num_validation_samples

    def __len__(self) -> int:
        return 0 if self._dataset is None else min(self._wanted, len(self._dataset))

    def samples(self, device: torch.device) -> Iterator[TrainingBatch]:
        """Yield batches of one sample."""
        for index in range(len(self)):
            yield self._sample(index).to(device)

    def _sample(self, index: int) -> TrainingBatch:
        assert self._dataset is not None
        if isinstance(self._dataset, ShardDataset):
            return stack_samples([self._dataset[index]])
        if index not in self._made:  # to make it takes longer than to read it
            self._made[index] = stack_samples([self._dataset[index]]).to("cpu")
        return self._made[index]


def fixed_generator(index: int, device: torch.device) -> torch.Generator:
    """Return a generator that depends on the sample's number alone."""
    return torch.Generator(device).manual_seed(1_000_000 + index)


def mean_metrics(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average metrics over samples, under `validation/`; a NaN makes the mean NaN."""
    return {
        f"validation/{name}": sum(m[name] for m in metrics) / len(metrics) for name in metrics[0]
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSample:
    """What a validation shows of one sample."""

    name: str
    """The sample's."""

    about: str = ""
    """Written beside the name."""

    fps: float
    """Of the videos."""

    videos: Mapping[str, Float[Tensor, "frame height width 3"]]
    """By label; of one length and size, sRGB in [0, 1]."""


def show(run: TrainingRun, samples: Sequence[ShownSample]) -> None:
    """Write what a validation saw, on rank 0, and hand it to the tracker.

    `validation/step-<step>.png` of the run has a row of frames for each video; in the folder
    `validation/step-<step>/` is one mp4 for each sample, its videos side by side.
    """
    if not run.is_main:
        return
    rows = {
        f"{sample.name}, {label}{f': {sample.about}' if sample.about else ''}": video
        for sample in samples
        for label, video in sample.videos.items()
    }
    folder = run.output / "validation"
    folder.mkdir(parents=True, exist_ok=True)
    sheet = contact_sheet({label: video.clamp(0, 1).cpu() for label, video in rows.items()})
    with replacing(folder / f"step-{run.step:08d}.png") as temporary:
        sheet.save(temporary)
    run.show_picture("validation/frames", sheet)
    of_step = folder / f"step-{run.step:08d}"
    of_step.mkdir(exist_ok=True)
    for sample in samples:
        beside = torch.cat([video.clamp(0, 1).cpu() for video in sample.videos.values()], dim=2)
        save_video(of_step / f"{sample.name}.mp4", beside, sample.fps)
        run.show_video(f"validation/{sample.name}", beside, sample.fps)


def motion_picture(
    motion: Float[Tensor, "3 frame height width"], like: Float[Tensor, "3 frame height width"]
) -> Float[Tensor, "frame height width 3"]:
    """Show motion as colours: grey is none, full colour the largest of `like`."""
    largest = like.abs().amax().clamp_min(1e-6)
    return (0.5 + 0.5 * motion / largest).permute(1, 2, 3, 0)
