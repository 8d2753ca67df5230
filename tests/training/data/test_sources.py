import logging
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from training.data import loader as loader_module
from training.data.loader import TrainingLoader
from training.data.samples import SampleSize
from training.data.shards import ShardDataset
from training.data.sources import VALIDATION_SEED, training_samples, validation_samples
from training.procedural.dataset import ProceduralDataset
from training.recipes import strag_tiny, vism_tiny
from training.run.settings import DataSettings, ProceduralSource, SettingsError
from training.run.validation import ValidationSet
from training.train_strag import train
from training.train_vism import train as train_vism

CPU = torch.device("cpu")
SIZE = SampleSize(num_frames=5, height=32, width=32)
SEEDS = DataSettings(
    train=Path("procedural"), validation=Path("procedural"), size=SIZE, num_validation_samples=2
)


def _loader(**settings) -> TrainingLoader:
    dataset = training_samples(SEEDS, CPU, novel_views=False)
    return TrainingLoader(dataset, **({"batch_size": 2, "seed": 3} | settings))


def _names(loader: TrainingLoader, count: int) -> list[str]:
    return [name for batch, _ in zip(loader, range(count), strict=False) for name in batch.names]


def _same(a, b) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def test_a_folder_is_read_and_the_word_procedural_makes_samples(small_data):
    folder = replace(SEEDS, train=small_data / "train", validation=None)
    assert isinstance(training_samples(folder, CPU, novel_views=True), ShardDataset)
    assert validation_samples(folder, CPU) is None
    made = training_samples(SEEDS, CPU, novel_views=True)
    assert isinstance(made, ProceduralDataset)
    assert made[0].size_fhw == (5, 32, 32)


def test_the_second_video_is_made_only_where_it_is_wanted_and_changes_nothing_else():
    with_view, without = (
        training_samples(SEEDS, CPU, novel_views=wanted) for wanted in (True, False)
    )
    assert with_view.has_novel_views
    assert not without.has_novel_views
    first, second = with_view[4], without[4]
    assert first.novel_video is not None
    assert second.novel_video is None
    assert torch.equal(first.video, second.video)
    assert torch.equal(first.motion, second.motion)
    assert first.caption == second.caption


def test_ranks_get_different_seeds():
    alone = _names(_loader(batch_size=4), 2)
    ranks = [_names(_loader(rank=rank, num_ranks=2), 2) for rank in range(2)]
    assert sorted(alone) == sorted(ranks[0] + ranks[1])
    assert len(set(alone)) == 8


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stopped_run_gets_the_very_samples_that_it_would_have_got(num_workers):
    whole = [batch for batch, _ in zip(_loader(), range(4), strict=False)]
    first = _loader(num_workers=num_workers)
    parts = [batch for batch, _ in zip(first, range(2), strict=False)]
    # Zip asks for a third batch before it stops, so the place is set here as a checkpoint has it.
    second = _loader(num_workers=num_workers)
    second.resume(replace(first.state, position=4))
    parts += [batch for batch, _ in zip(second, range(2), strict=False)]
    assert all(_same(a, b) for a, b in zip(whole, parts, strict=True))


def test_workers_that_use_a_gpu_are_spawned_and_hand_over_the_same_batches(monkeypatch):
    expected = next(iter(_loader()))
    monkeypatch.setattr(loader_module, "_device_of", lambda _: torch.device("cuda"))
    assert _same(next(iter(_loader(num_workers=1))), expected)


def test_seeds_of_validation_are_never_trained_on():
    dataset = validation_samples(SEEDS, CPU)
    assert [dataset[i].name for i in range(2)] == [
        f"procedural-{VALIDATION_SEED}",
        f"procedural-{VALIDATION_SEED + 1}",
    ]
    reaching = replace(SEEDS, procedural=ProceduralSource(first_seed=VALIDATION_SEED - 999_999))
    with pytest.raises(SettingsError, match="below 800000000"):
        training_samples(reaching, CPU, novel_views=False)
    training_samples(replace(reaching, max_samples=10), CPU, novel_views=False)


def test_validation_samples_are_made_once():
    validation = ValidationSet(SEEDS, 1, CPU)
    first, again = list(validation.samples(CPU)), list(validation.samples(CPU))
    assert [batch.num_samples for batch in first] == [1, 1]
    assert all(a.video.data_ptr() == b.video.data_ptr() for a, b in zip(first, again, strict=True))


def test_the_log_says_what_makes_the_samples(caplog):
    with caplog.at_level(logging.INFO, logger="training.data.sources"):
        training_samples(replace(SEEDS, num_workers=0, max_samples=50), CPU, novel_views=False)
        training_samples(
            replace(SEEDS, num_workers=3, procedural=ProceduralSource(on_device=False)),
            torch.device("cuda:1"),
            novel_views=False,
        )
    assert "seeds 0 to 49, of recipe tiny, on cpu by this process" in caplog.text
    assert "on cpu by 3 processes" in caplog.text


def test_samples_are_made_on_the_device_that_trains():
    dataset = training_samples(SEEDS, torch.device("cuda:1"), novel_views=False)
    assert dataset.device == torch.device("cuda:1")


def test_a_training_without_any_file_resumes_to_the_last_bit(small, same_tensors, metrics_of):
    def config(num_steps: int, output: str):
        made = small(strag_tiny, num_steps, output, validate_every=4)
        return replace(
            made,
            data=replace(SEEDS, num_workers=0, num_validation_samples=1),
            run=replace(made.run, batch_size=1),
        )

    expected = train(config(4, "whole"))
    train(config(2, "parts"))
    assert same_tensors(train(config(4, "parts")), expected)
    assert metrics_of(config(4, "parts"), "loss") == metrics_of(config(4, "whole"), "loss")


def test_vism_gets_its_second_videos(small):
    config = small(vism_tiny, 1)
    assert train_vism(replace(config, data=replace(SEEDS, num_workers=0))).exists()
