"""The place in the data, as training itself moves it on."""

from __future__ import annotations

import os
import random
import re
import signal
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, get_worker_info

from trainrun.errors import TrainingError
from trainrun.worker.data import Reseeded, SampledBatches, SampledLoader, TrainSampler, compare, fingerprint
from trainrun.worker.world import World

SAMPLES, BATCH = 23, 4


def batches(workers: int = 0) -> SampledBatches:
    sampler = TrainSampler(SAMPLES, BATCH, 2, World(), seed=3)
    loader: DataLoader[Any] = DataLoader(range(SAMPLES), batch_sampler=sampler, num_workers=workers)  # type: ignore[arg-type]
    return SampledBatches(SampledLoader(loader, sampler))


def take(data: SampledBatches, epoch: int, updates: int) -> list[list[int]]:
    """Make some updates of an epoch; the samples of each."""
    made = []
    for update, _ in zip(data.begin(epoch), range(updates), strict=False):
        made.append([sample for _ in update.weights for sample in data.fetch().tolist()])
        data.use(update)
    return made


@pytest.mark.parametrize("done", range(7))
def test_another_loader_goes_on_where_the_first_one_was(done: int) -> None:
    whole = take(batches(), 1, 99) + take(batches(), 2, 99)
    first = batches()
    begun = take(first, 1, done)
    place = first.state_dict()
    second = batches()
    second.load_state_dict(place)
    rest = take(second, place["epoch"], 99)
    if place["epoch"] == 1:
        rest += take(second, 2, 99)
    assert begun + rest == whole


def test_the_end_of_an_epoch_is_the_beginning_of_the_next() -> None:
    data = batches()
    take(data, 1, 99)
    assert data.state_dict() == {"epoch": 2, "position": 0}


def test_a_loader_that_runs_ahead_does_not_count() -> None:
    data = batches(workers=1)
    take(data, 1, 2)
    assert data.state_dict() == {"epoch": 1, "position": 2 * BATCH}


# --- any number of ranks, any number of resumes ---


def ranks_of(size: int, shape: dict[str, int]) -> list[SampledBatches]:
    found = []
    for rank in range(size):
        sampler = TrainSampler(shape["length"], shape["batch"], shape["micro"], World(rank=rank, size=size), seed=5)
        loader: DataLoader[Any] = DataLoader(range(shape["length"]), batch_sampler=sampler)  # type: ignore[arg-type]
        found.append(SampledBatches(SampledLoader(loader, sampler)))
    return found


def leg(size: int, shape: dict[str, int], place: dict[str, Any], updates: int) -> tuple[list[list[int]], Any]:
    """Resume with `size` ranks at a place, make some updates; the samples of each over all ranks, and the new place."""
    ranks = ranks_of(size, shape)
    made: list[list[int]] = []
    for data in ranks:
        data.load_state_dict(place)
        assert data.resumed == (place["position"] > 0)
        for number, update in zip(range(updates), data.begin(place["epoch"]), strict=False):
            rows = [data.fetch().tolist()[:size] for size in update.sizes]
            made += [[]] if number == len(made) else []
            made[number] += [sample for row in rows for sample in row]
            data.use(update)
    places = [data.state_dict() for data in ranks]
    assert all(found == places[0] for found in places), "the place is the same on all ranks"
    return [sorted(samples) for samples in made], places[0]


shapes = st.fixed_dictionaries({"length": st.integers(4, 60), "batch": st.integers(1, 16), "micro": st.integers(1, 5)})


@settings(deadline=None, max_examples=60)
@given(shapes, st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5))
def test_resumes_with_other_numbers_of_ranks_see_each_sample_once(
    shape: dict[str, int], legs: list[tuple[int, int]]
) -> None:
    whole, _ = leg(1, shape, {"epoch": 2, "position": 0}, 1000)
    seen: list[list[int]] = []
    place: dict[str, Any] = {"epoch": 2, "position": 0}
    for size, updates in [*legs, (2, 1000)]:
        if place["epoch"] == 2:
            made, place = leg(size, shape, place, updates)
            seen += made
    assert seen == whole
    assert sorted(sample for samples in seen for sample in samples) == list(range(shape["length"]))
    assert place == {"epoch": 3, "position": 0}


def test_a_place_in_another_loader_s_data_is_refused() -> None:
    with pytest.raises(TrainingError, match="that of a loader that the task or a plugin made"):
        batches().load_state_dict({"kind": "own", "epoch": 1})


def test_a_dataset_that_changed_is_told() -> None:
    old = fingerprint(list(range(10)))
    assert old == {"type": "builtins.list", "length": 10}
    assert fingerprint(iter(())) == {"type": "builtins.tuple_iterator", "length": None}
    assert compare(old, old) is compare({}, old) is None
    sentence = compare(old, fingerprint(range(11)))
    assert sentence is not None
    assert "its class was builtins.list and is builtins.range" in sentence
    assert "its number of samples was 10 and is 11" in sentence


# --- data that cannot be read ---


class Broken(Dataset[int]):
    """Sample 13 raises, or kills the process that loads it."""

    def __init__(self, kills: bool) -> None:
        self.kills = kills

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> int:
        if index == 13 and not self.kills:
            raise KeyError("no such row")
        if index == 13 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


@pytest.mark.parametrize(("workers", "kills"), [(0, False), (2, False), (2, True)])
def test_samples_that_cannot_be_read_are_named(workers: int, kills: bool) -> None:
    sampler = TrainSampler(SAMPLES, BATCH, 2, World(), shuffle=False)
    data = SampledBatches(SampledLoader(DataLoader(Broken(kills), batch_sampler=sampler, num_workers=workers), sampler))
    with pytest.raises(TrainingError) as raised:
        take(data, 1, 99)
    message = str(raised.value)
    assert raised.value.__cause__ is not None
    if kills:
        assert "one of the processes that load ahead" in message
        found = re.search(r"dataset indices (\d+), \d+ or one of the (\d+) micro-batches after them", message)
        assert found is not None, message
        waited_for, ahead = int(found[1]), int(found[2])
        # How far the processes were ahead is chance; the batch that killed one is among those that are named.
        assert waited_for <= 12 <= waited_for + ahead * (BATCH // 2), message
    else:
        assert "(epoch 1, micro-batch 1 after 12 samples of the epoch, dataset indices 12, 13)" in message
        assert "no such row" in message


class Augmented:
    """Samples with noise from each of the generators that a dataset may draw from."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([float(index), random.random(), torch.rand(()).item()])


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_draw_the_same_after_a_resume(processes: int) -> None:
    def batches(count: int) -> SampledBatches:
        sampler = TrainSampler(24, 4, 4, World(), seed=3)
        generator = torch.Generator().manual_seed(3)
        data: Any = Reseeded(Augmented())
        return SampledBatches(
            SampledLoader(DataLoader(data, batch_sampler=sampler, num_workers=count, generator=generator), sampler)
        )

    def train(source: SampledBatches, epoch: int, most: int) -> list[Any]:
        found = []
        for update in source.begin(epoch):
            if len(found) == most:
                break
            found.append(source.fetch().tolist())
            source.use(update)
        return found

    straight, resumed = batches(2), batches(processes)
    first = train(straight, 1, 6)
    second = train(straight, 2, 3)
    place = straight.state_dict()
    rest = train(batches_at(batches(2), place), 2, 6)
    assert train(batches_at(resumed, place), 2, 6) == rest
    whole = batches(2)
    train(whole, 1, 6)
    assert train(whole, 2, 6) == second + rest
    assert first != second


def batches_at(source: SampledBatches, place: Any) -> SampledBatches:
    source.load_state_dict(place)
    return source
