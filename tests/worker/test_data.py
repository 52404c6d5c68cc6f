from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainrun.errors import TrainingError
from trainrun.worker.data import (
    EvaluationSampler,
    ForeignBatches,
    SampleCounter,
    SampledBatches,
    SampledLoader,
    TrainSampler,
    Update,
    evaluation_batches,
)
from trainrun.worker.world import World

Samplers = list[TrainSampler]


def samplers(length: int, batch: int, micro: int, ranks: int, **options: Any) -> Samplers:
    return [TrainSampler(length, batch, micro, World(rank=rank, size=ranks), **options) for rank in range(ranks)]


def by_update(sampler: TrainSampler) -> list[tuple[Update, list[list[int]]]]:
    """Each update with the indices that count, micro-batch by micro-batch."""
    batches = iter(list(sampler))
    found = []
    for update in list(sampler.updates()):
        rows = [next(batches) for _ in update.sizes]
        assert all(len(row) == max(1, size) for row, size in zip(rows, update.sizes, strict=True))
        found.append((update, [row[:size] for row, size in zip(rows, update.sizes, strict=True)]))
    assert next(batches, None) is None
    return found


def global_batches(all_ranks: Samplers) -> list[list[int]]:
    """The samples of each update, over all ranks."""
    per_rank = [by_update(sampler) for sampler in all_ranks]
    return [
        sorted(index for _, rows in parts for row in rows for index in row) for parts in zip(*per_rank, strict=True)
    ]


shapes = st.fixed_dictionaries(
    {"length": st.integers(1, 90), "batch": st.integers(1, 24), "micro": st.integers(1, 9), "ranks": st.integers(1, 5)}
).filter(lambda shape: shape["length"] >= shape["ranks"])


@settings(deadline=None)
@given(shapes, st.booleans(), st.integers(0, 3))
def test_each_sample_is_seen_once_an_epoch_over_all_ranks(shape: dict[str, int], shuffle: bool, seed: int) -> None:
    batches = global_batches(samplers(**shape, shuffle=shuffle, seed=seed))
    assert sorted(index for batch in batches for index in batch) == list(range(shape["length"]))
    assert [len(batch) for batch in batches[:-1]] == [shape["batch"]] * (len(batches) - 1)


@settings(deadline=None)
@given(shapes)
def test_drop_last_keeps_whole_batches_only(shape: dict[str, int]) -> None:
    if shape["length"] < shape["batch"]:
        with pytest.raises(TrainingError, match="drop_last"):
            samplers(**shape, drop_last=True)
        return
    batches = global_batches(samplers(**shape, drop_last=True))
    assert [len(batch) for batch in batches] == [shape["batch"]] * (shape["length"] // shape["batch"])
    seen = [index for batch in batches for index in batch]
    assert len(seen) == len(set(seen))


@settings(deadline=None)
@given(shapes)
def test_ranks_have_equally_many_micro_batches_and_right_weights(shape: dict[str, int]) -> None:
    ranks = shape["ranks"]
    for updates in zip(*(sampler.updates() for sampler in samplers(**shape)), strict=True):
        assert len({len(update.weights) for update in updates}) == 1
        assert len({update.samples for update in updates}) == 1
        samples = updates[0].samples
        assert samples == sum(size for update in updates for size in update.sizes)
        assert all(0 <= size <= shape["micro"] for update in updates for size in update.sizes)
        assert sum(weight for update in updates for weight in update.weights) / ranks == pytest.approx(1)
        for update in updates:
            assert update.weights == tuple(size * ranks / samples for size in update.sizes)


@settings(deadline=None)
@given(shapes, st.data())
def test_any_number_of_ranks_goes_on_from_any_update(shape: dict[str, int], data: st.DataObject) -> None:
    epoch, ranks = data.draw(st.integers(1, 3)), shape["ranks"]
    whole = samplers(**shape, seed=4)
    for sampler in whole:
        sampler.epoch = epoch
    expected = global_batches(whole)
    done = data.draw(st.integers(0, len(expected) - 1))
    others = data.draw(st.integers(1, min(6, shape["length"])))
    for number in (ranks, others):
        rest = samplers(**{**shape, "ranks": number}, seed=4)
        for sampler in rest:
            sampler.load_state_dict({"epoch": epoch, "position": done * shape["batch"]})
        assert rest[0].state_dict() == {"epoch": epoch, "position": done * shape["batch"]}
        assert global_batches(rest) == expected[done:]
    same = samplers(**shape, seed=4)
    for before, after in zip(whole, same, strict=True):
        after.load_state_dict({"epoch": epoch, "position": done * shape["batch"]})
        assert by_update(after) == by_update(before)[done:], "each rank goes on with just its own samples"


def test_epochs_and_seeds_differ_in_order() -> None:
    def order(epoch: int, seed: int) -> list[int]:
        (sampler,) = samplers(64, 64, 64, 1, seed=seed)
        sampler.epoch = epoch
        return next(iter(sampler))

    orders = {tuple(order(epoch, seed)) for epoch in (1, 2, 3) for seed in (0, 1, 2)}
    assert len(orders) == 9
    assert order(2, 1) == order(2, 1)


def test_without_shuffling_samples_come_in_order_in_every_epoch() -> None:
    (sampler,) = samplers(7, 3, 3, 1, shuffle=False)
    for epoch in (1, 2):
        sampler.epoch = epoch
        assert list(sampler) == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(sampler) == 3


def test_a_dataset_shorter_than_the_world_is_refused() -> None:
    with pytest.raises(TrainingError, match="3 samples for 4 workers"):
        samplers(3, 4, 1, 4)


def test_our_own_loader_begins_each_epoch_anew() -> None:
    (sampler,) = samplers(10, 4, 2, 1, shuffle=False)
    loader = torch.utils.data.DataLoader(list(range(10)), batch_sampler=sampler)
    batches = SampledBatches(SampledLoader(loader, sampler))
    assert batches.updates_in(2) == 6
    sampler.load_state_dict({"epoch": 1, "position": 8})
    seen = [[batches.fetch().tolist() for _ in update.sizes] for update in batches.begin(1)]
    assert seen == [[[8, 9]]]
    seen = [[batches.fetch().tolist() for _ in update.sizes] for update in batches.begin(2)]
    assert seen == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9]]]


# --- loaders that plugins bring ---


class Unsized:
    """A loader that does not know its length; notes the epochs that it is told."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def in_step(loaders: list[Any], micro: int, epoch: int = 1) -> list[list[tuple[Update, list[Any]]]]:
    """Go through an epoch on all ranks at once."""

    def walk(rank: int, gather: Callable[[int], list[int]]) -> list[tuple[Update, list[Any]]]:
        batches = ForeignBatches(loaders[rank], 4, micro, World(rank=rank, size=len(loaders)), gather)
        return [(update, [batches.fetch() for _ in update.sizes]) for update in batches.begin(epoch)]

    return Gathering(len(loaders)).run(walk)


class Gathering:
    """Runs each rank in a thread; they meet at every gather."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.cells = [0] * size
        self.barrier = threading.Barrier(size, timeout=20)

    def run(self, walk: Callable[[int, Callable[[int], list[int]]], Any]) -> list[Any]:
        def gather(rank: int) -> Callable[[int], list[int]]:
            def ask(value: int) -> list[int]:
                self.cells[rank] = value
                self.barrier.wait()
                answer = list(self.cells)
                self.barrier.wait()
                return answer

            return ask

        def guarded(rank: int) -> Any:
            try:
                return walk(rank, gather(rank))
            except BaseException:
                self.barrier.abort()
                raise

        with ThreadPoolExecutor(self.size) as pool:
            futures = [pool.submit(guarded, rank) for rank in range(self.size)]
        failures = [error for future in futures if isinstance(error := future.exception(), TrainingError)]
        if failures:
            raise failures[0]
        return [future.result() for future in futures]


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 3), st.booleans())
def test_foreign_loaders_of_unequal_length(lengths: list[int], micro: int, sized: bool) -> None:
    data = [[f"{rank}.{place}" for place in range(length)] for rank, length in enumerate(lengths)]
    found = in_step(data if sized else [Unsized(batches) for batches in data], micro)
    assert len({len(updates) for updates in found}) == 1
    for rank, updates in enumerate(found):
        counted = [
            batch for update, rows in updates for batch, weight in zip(rows, update.weights, strict=True) if weight
        ]
        assert counted == data[rank], "each batch counts once"
        padding = [
            batch for update, rows in updates for batch, weight in zip(rows, update.weights, strict=True) if not weight
        ]
        assert set(padding) <= {data[rank][-1]}
    for updates in zip(*([update for update, _ in updates] for updates in found), strict=True):
        assert len({len(update.weights) for update in updates}) == 1
        assert sum(weight for update in updates for weight in update.weights) / len(lengths) == pytest.approx(1)
        assert len({weight for update in updates for weight in update.weights if weight}) == 1


def test_a_full_update_holds_the_batch_size() -> None:
    ((full, _), (partial, _)) = in_step([["a", "b", "c"]], 2)[0]
    assert (full.samples, full.weights, full.sizes) == (4, (0.5, 0.5), (1, 1))
    assert (partial.samples, partial.weights) == (2, (1.0,))


def test_foreign_loaders_are_told_the_epoch_and_start_anew() -> None:
    loader = Unsized(["a"])
    batches = ForeignBatches(loader, 1, 1, World(), None)
    for epoch in (1, 2):
        assert [batches.fetch() for _ in batches.begin(epoch)] == ["a"]
    assert loader.epochs == [1, 2]
    assert batches.updates_in(1) is None
    assert ForeignBatches(["a", "b", "c"], 1, 2, World(), None).updates_in(2) == 4


@pytest.mark.parametrize("wrap", [list, Unsized])
def test_an_empty_foreign_loader(wrap: Any) -> None:
    assert in_step([wrap([]), wrap([])], 1) == [[], []]
    with pytest.raises(TrainingError, match="rank 1 gave no batch at all"):
        in_step([wrap(["a"]), wrap([])], 1)


# --- evaluation ---


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5))
def test_evaluation_counts_each_sample_once_with_equally_many_batches(length: int, batch: int, ranks: int) -> None:
    found = [EvaluationSampler(length, batch, World(rank=rank, size=ranks)) for rank in range(ranks)]
    batches = [list(sampler) for sampler in found]
    sizes = [list(sampler.sizes()) for sampler in found]
    assert {len(rows) for rows in batches} == {ceil(ceil(length / ranks) / batch)} == {len(found[0])}
    counted = Counter(
        index
        for rows, counts in zip(batches, sizes, strict=True)
        for row, count in zip(rows, counts, strict=True)
        for index in row[:count]
    )
    assert counted == Counter(range(length))
    assert all(row for rows in batches for row in rows), "a padding batch holds a sample too"


def test_a_split_without_samples_is_refused() -> None:
    with pytest.raises(TrainingError, match="no samples"):
        EvaluationSampler(0, 1, World())


def test_foreign_evaluation_loaders_are_padded() -> None:
    loaders = [[torch.zeros(2, 1), torch.ones(3, 1)], [torch.zeros(4, 1)]]
    counter = SampleCounter("eval", "", lambda sentence: None)

    def walk(rank: int, gather: Callable[[int], list[int]]) -> list[int]:
        return [size for _, size in evaluation_batches(loaders[rank], gather, counter)]

    assert Gathering(2).run(walk) == [[2, 3], [4, 0]]
    assert [size for _, size in evaluation_batches(loaders[0], None, counter)] == [2, 3]
    with pytest.raises(TrainingError, match="no batch at all on one rank"):
        Gathering(2).run(lambda rank, gather: list(evaluation_batches([[1], []][rank], gather, counter)))


def test_a_batch_of_unknown_size_counts_like_the_one_before_it() -> None:
    said: list[str] = []
    counter = SampleCounter("eval", "", said.append)
    loader = ["text", torch.zeros(3), {"a": torch.zeros(2), "b": torch.zeros(4)}, torch.zeros(0, 2), "text"]
    assert [size for _, size in evaluation_batches(loader, None, counter)] == [1, 3, 3, 0, 3]
    assert len(said) == 1
