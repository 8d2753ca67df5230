from collections import Counter
from dataclasses import replace

import pytest
import torch

from training.data.loader import LoaderState, RankBatches, SampleOrder, TrainingLoader
from training.data.samples import SampleError
from training.data.shards import ShardDataset, write_shard


def _numbers(order: SampleOrder, rank: int, num_ranks: int, batch_size: int, batches: int):
    of_rank = RankBatches(
        order=order, batch_size=batch_size, rank=rank, num_ranks=num_ranks, start=0
    )
    return [batch for batch, _ in zip(of_rank, range(batches), strict=False)]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_sample_is_given_once_per_epoch_over_all_ranks(num_ranks, batch_size):
    num_samples, epochs = 24, 4
    batches = epochs * num_samples // (num_ranks * batch_size)
    order = SampleOrder(num_samples, seed=5)
    per_rank = [_numbers(order, r, num_ranks, batch_size, batches) for r in range(num_ranks)]
    # Step by step, as ranks run in lockstep: each run of 24 is one whole epoch.
    given = [n for step in zip(*per_rank, strict=True) for batch in step for n in batch]
    for epoch in range(epochs):
        part = given[epoch * num_samples : (epoch + 1) * num_samples]
        assert sorted(part) == list(range(num_samples))


def test_nothing_is_lost_where_an_epoch_does_not_fill_its_last_batch():
    order = SampleOrder(10, seed=0)
    ranks = [_numbers(order, rank, 3, 4, 5) for rank in range(3)]  # 60 = 6 epochs of 10
    given = Counter(n for rank in ranks for batch in rank for n in batch)
    assert given == dict.fromkeys(range(10), 6)
    assert {len(rank) for rank in ranks} == {5}


def test_epochs_and_seeds_differ_in_their_order():
    order = SampleOrder(50, seed=0)
    first, second = ([order[e * 50 + i] for i in range(50)] for e in range(2))
    other = SampleOrder(50, seed=1)
    assert first != second
    assert first != [other[i] for i in range(50)]
    assert first == [order[i] for i in range(50)]


@pytest.fixture
def dataset(make_sample, tmp_path) -> ShardDataset:
    for shard in range(2):
        write_shard(tmp_path / f"{shard}.tar", [make_sample(shard * 6 + i) for i in range(6)])
    return ShardDataset(tmp_path)


@pytest.mark.parametrize(("num_ranks", "num_workers"), [(1, 0), (2, 2), (4, 0), (12, 0)])
def test_files_are_read_once_per_epoch_also_by_more_ranks_than_shards(
    num_ranks, num_workers, dataset
):
    names = []
    for rank in range(num_ranks):
        loader = TrainingLoader(
            dataset,
            batch_size=1,
            seed=3,
            rank=rank,
            num_ranks=num_ranks,
            num_workers=num_workers,
        )
        batches = iter(loader)
        for _ in range(12 // num_ranks):
            names += next(batches).names
    assert sorted(names) == [f"random-{i:04d}" for i in range(12)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_continues_at_the_batch_after_the_last_one_handed_out(num_workers, dataset):
    def loader() -> TrainingLoader:
        return TrainingLoader(dataset, batch_size=5, seed=1, num_workers=num_workers)

    straight = iter(loader())
    expected = [next(straight).names for _ in range(7)]
    first = loader()
    batches = iter(first)
    got = [next(batches).names for _ in range(3)]
    second = loader()
    second.resume(first.state)
    got += [batch.names for _, batch in zip(range(4), second, strict=False)]
    assert got == expected
    assert second.state == LoaderState(seed=1, num_samples=12, position=35)
    assert second.state.epoch == 2


def test_the_place_holds_for_another_number_of_ranks(dataset):
    one = TrainingLoader(dataset, batch_size=4, seed=1)
    batches = iter(one)
    read = [*next(batches).names]
    for rank in range(2):
        loader = TrainingLoader(dataset, batch_size=4, seed=1, rank=rank, num_ranks=2)
        loader.resume(one.state)
        read += next(iter(loader)).names
    assert sorted(read) == [f"random-{i:04d}" for i in range(12)]


def test_reading_leaves_the_trainers_random_state_alone(dataset):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(TrainingLoader(dataset, batch_size=2, seed=1)))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_place_of_another_data_set_is_refused(dataset):
    loader = TrainingLoader(dataset, batch_size=4, seed=1)
    with pytest.raises(SampleError, match="made with 13 samples shuffled by seed 1; here are 12"):
        loader.resume(replace(loader.state, num_samples=13))


def test_fewer_samples_than_ranks_are_refused(dataset):
    with pytest.raises(SampleError, match="12 samples for 13 ranks"):
        TrainingLoader(dataset, batch_size=1, seed=0, rank=0, num_ranks=13)


def test_a_spoiled_sample_is_named_across_the_worker(dataset):
    from training.data import shards

    def broken(entry):
        raise SampleError(f"Sample {entry.about.name} has motion that is NaN or infinite.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_read", broken)
        with pytest.raises(SampleError, match=r"Sample random-00\d\d has motion that is NaN"):
            next(iter(TrainingLoader(dataset, batch_size=2, seed=0, num_workers=1)))
