"""DataLoaders of the task on several ranks: each sample is given out once, or an error says how to say so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)
from torchdata.stateful_dataloader import StatefulDataLoader

from trainrun.errors import TrainingError
from trainrun.marker import hookimpl
from trainrun.worker.data import EvaluationSampler, ForeignBatches, Giver, SampledLoader, TrainSampler
from trainrun.worker.data.digest import number
from trainrun.worker.world import World

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 calls it


class Numbers(Dataset[int]):
    def __init__(self, length: int = 20, first: int = 0) -> None:
        self.length, self.first = length, first

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return self.first + index


class Lists(Numbers):
    """Is asked for a whole batch at once."""

    def __getitem__(self, index: Any) -> Any:
        return torch.tensor(index)


def given_on(ranks: int, build: Callable[[int], Any]) -> list[Any]:
    """What each rank is given for the loader that it builds; ranks are threads, which take turns at the generators."""
    barrier, turn = threading.Barrier(ranks, timeout=60), threading.Lock()
    told: list[object] = [None] * ranks

    def job(rank: int) -> Any:
        def gather(value: object) -> list[object]:
            told[rank] = value
            turn.release()
            barrier.wait()
            found = list(told)
            barrier.wait()  # before another call overwrites what was told
            turn.acquire()
            return found

        with turn:
            return Giver(World(rank=rank, size=ranks), 5, gather).given(build(rank), "split 'train'", 1)

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(job, range(ranks)))


def batches_of(loader: Any) -> list[list[int]]:
    return [batch.tolist() if isinstance(batch, torch.Tensor) else [batch] for batch in loader]


def samples(loaders: list[Any]) -> list[int]:
    return list(chain(*chain(*map(batches_of, loaders))))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 25), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.booleans())
def test_each_sample_comes_once(length: int, size: int, ranks: int, shuffle: bool, drop_last: bool) -> None:
    def build(rank: int) -> Any:
        return DataLoader(Numbers(length), batch_size=size, shuffle=shuffle, drop_last=drop_last)

    loaders = given_on(ranks, build)
    found = samples(loaders)
    used = length - length % size if drop_last else length
    assert len(found) == len(set(found)) == used
    assert [len(loader) for loader in loaders] == [len(list(loader)) for loader in loaders]
    if not shuffle:
        one = list(DataLoader(Numbers(length), batch_size=size, drop_last=drop_last))
        assert [batches_of(loader) for loader in loaders] == [batches_of(one[rank::ranks]) for rank in range(ranks)]


def test_what_the_loader_is_made_with_is_kept() -> None:
    def collate(samples: list[int]) -> Any:
        return torch.tensor([-sample for sample in samples])

    def begin(number: int) -> None: ...

    generator = torch.Generator().manual_seed(3)
    one, _ = given_on(2, lambda rank: DataLoader(
        Numbers(), batch_size=4, collate_fn=collate, num_workers=1, prefetch_factor=3, timeout=50,
        worker_init_fn=begin, generator=generator, persistent_workers=True, pin_memory=True,
    ))  # fmt: skip
    assert (one.collate_fn, one.num_workers, one.prefetch_factor, one.timeout) == (collate, 1, 3, 50)
    assert (one.worker_init_fn, one.persistent_workers, one.pin_memory) == (begin, True, True)
    assert one.generator is generator
    plain = given_on(2, lambda rank: DataLoader(Numbers(), batch_size=4, collate_fn=collate))
    assert batches_of(plain[0])[0] == [0, -1, -2, -3]


@pytest.mark.parametrize("sampler", [
    lambda: RandomSampler(Numbers()),
    lambda: SubsetRandomSampler(range(4, 18)),
    lambda: RandomSampler(Numbers(), generator=torch.Generator().manual_seed(4)),
    lambda: RandomSampler(Numbers(), num_samples=14),
], ids=["random", "subset", "generator", "fewer"])  # fmt: skip
@pytest.mark.parametrize("size", [3, None])
def test_samplers_of_torch_are_dealt_out_in_one_order(sampler: Callable[[], Any], size: int | None) -> None:
    def build(rank: int) -> Any:
        torch.manual_seed(rank)
        return DataLoader(Numbers(), batch_size=size, sampler=sampler())

    orders = []
    for epoch in (1, 2, 1):
        loaders = given_on(2, build)
        readers = [ForeignBatches(loader, 6, 1, World(), None, seed=3) for loader in loaders]
        found = [[reader.fetch() for _ in reader.begin(epoch)] for reader in readers]
        orders.append([number for rank in found for batch in rank for number in batches_of([batch])[0]])
    assert len(orders[0]) == len(set(orders[0])) == len(sampler())
    assert orders[0] == orders[2] != orders[1]


def test_a_sampler_with_replacement_is_dealt_out_too() -> None:
    weights = [1.0] * 10 + [0.0] * 10
    loaders = given_on(2, lambda rank: DataLoader(
        Numbers(), batch_size=3, sampler=WeightedRandomSampler(weights, 15)))  # fmt: skip
    assert len(samples(loaders)) == 15
    assert max(samples(loaders)) < 10


def test_lists_of_indices_are_dealt_out_whole() -> None:
    def build(rank: int) -> Any:
        return DataLoader(Lists(), batch_size=None, sampler=BatchSampler(SequentialSampler(Numbers()), 6, False))

    assert [batches_of(loader) for loader in given_on(2, build)] == [
        [list(range(6)), list(range(12, 18))], [list(range(6, 12)), [18, 19]]
    ]  # fmt: skip


class Evens(Sampler[int]):
    """A sampler of the task's own."""

    def __iter__(self) -> Iterator[int]:
        yield from range(0, 20, 2)

    def __len__(self) -> int:
        return 10


def saying(part: Any, sharded: bool) -> Any:
    part.sharded = sharded
    return part


@pytest.mark.parametrize("build", [
    lambda rank: DataLoader(Numbers(), batch_size=2, sampler=DistributedSampler(Numbers(), 2, rank)),
    lambda rank: DataLoader(Numbers(), batch_sampler=BatchSampler(DistributedSampler(Numbers(), 2, rank), 2, False)),
    lambda rank: DataLoader(saying(Numbers(10, first=rank * 10), True), batch_size=2),
    lambda rank: DataLoader(Numbers(), sampler=saying(SubsetRandomSampler(range(rank, 20, 2)), True)),
    lambda rank: saying(DataLoader(Numbers(10, first=rank * 10)), True),
    lambda rank: [[1, 2]],
    lambda rank: StatefulDataLoader(Numbers(), sampler=DistributedSampler(Numbers(), 2, rank)),
], ids=range(7))  # fmt: skip
def test_shares_are_left_alone(build: Callable[[int], Any]) -> None:
    made: dict[int, Any] = {}

    def remember(rank: int) -> Any:
        made[rank] = build(rank)
        return made[rank]

    for rank, loader in enumerate(given_on(2, remember)):
        assert loader is made[rank]


def test_samplers_of_the_task_that_all_ranks_have_are_dealt_out_if_they_say_so() -> None:
    loaders = given_on(2, lambda rank: DataLoader(Numbers(), batch_size=3, sampler=saying(Evens(), False)))
    assert [batches_of(loader) for loader in loaders] == [[[0, 2, 4], [12, 14, 16]], [[6, 8, 10], [18]]]


def test_listed_batches_are_dealt_out() -> None:
    loaders = given_on(2, lambda rank: DataLoader(Numbers(), batch_sampler=[[0, 1], [2], [5, 3]]))
    assert [batches_of(loader) for loader in loaders] == [[[0, 1], [5, 3]], [[2]]]


def test_one_worker_keeps_its_loader() -> None:
    for loader in DataLoader(Numbers()), DataLoader(Numbers(), sampler=Evens()), DataLoader(Numbers(), shuffle=True):
        assert Giver(World(), 0, None).given(loader, "here", 1) is loader


@pytest.mark.parametrize("build", [
    lambda rank: DataLoader(Numbers(), sampler=Evens()),
    lambda rank: DataLoader(Numbers(10, first=rank * 10)),
    lambda rank: DataLoader(Numbers(10 + rank)),
    lambda rank: DataLoader(Numbers(), sampler=SubsetRandomSampler(range(rank, 20, 2))),
    lambda rank: DataLoader(Numbers(), shuffle=True, generator=torch.Generator().manual_seed(rank)),
    lambda rank: DataLoader([lambda: 1, lambda: 2]),  # cannot be compared
], ids=["own sampler", "share of data", "lengths", "share of indices", "seeds", "opaque"])  # fmt: skip
def test_what_may_be_a_share_or_not_is_an_error_on_all_ranks(build: Callable[[int], Any]) -> None:
    for rank in range(2):
        with pytest.raises(TrainingError) as caught:
            given_on(2, build)
        told = str(caught.value)
        assert told.startswith("split 'train': build_dataloader returned a DataLoader with a "), rank
        assert "DistributedSampler" in told
        assert "`sharded = True`" in told
        assert "`sharded = False`" in told


def test_other_loaders_over_all_of_the_data_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"returned a StatefulDataLoader over data that all workers have; .*plain"):
        given_on(2, lambda rank: saying(StatefulDataLoader(Numbers()), False))


def test_reading_some_samples_first_moves_no_generator() -> None:
    class Draws(Numbers):
        def __getitem__(self, index: int) -> float:
            return torch.rand(1).item()

    state = torch.get_rng_state()
    given_on(2, lambda rank: DataLoader(Draws(), shuffle=True))
    assert torch.equal(torch.get_rng_state(), state)


# --- in a training ---


def whole(regression: Any, **options: Any) -> Any:
    """A task that returns a plain loader over all of its 16 samples, as on one rank."""

    class Task(regression):  # type: ignore[misc]
        seen: ClassVar[list[Any]] = []

        @hookimpl
        def build_dataset(self) -> Any:
            return [(torch.full((3,), float(number)), torch.tensor([float(number)])) for number in range(16)]

        @hookimpl
        def build_dataloader(self, dataset: Any) -> Any:
            return DataLoader(dataset, **options)

        @hookimpl
        def training_step(self, model: Any, batch: Any) -> Any:
            self.seen.append(batch[0][:, 0].int().tolist())
            return model(batch[0]).mean()

        @hookimpl
        def evaluation_step(self, batch: Any) -> Any:
            return {"number": batch[1].mean(), "batches": (torch.tensor(1.0), 1)}

        @classmethod
        def report(cls) -> Any:
            return cls.seen

    return Task


@pytest.mark.parametrize("processes", [0, 1])
def test_two_ranks_share_a_plain_loader(training: Any, regression: Any, processes: int) -> None:
    task = whole(regression, shuffle=True, num_workers=processes)
    run = training(task, ranks=2, report=task.report, train={"epochs": 1, "batch_size": 2})
    assert run.outcome.step == 8
    assert sorted(chain(*chain(*run.reports))) == list(range(16))
    assert run.series("eval/number") == {8: 7.5}


class Batches:
    """A loader that is no `DataLoader`: every `step`-th batch, from `first` on."""

    def __init__(self, dataset: Any, first: int, step: int) -> None:
        self.batches = [default_collate(dataset[start : start + 4]) for start in range(0, len(dataset), 4)]
        self.batches = self.batches[first::step]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_ranks_that_begin_with_the_same_samples_are_told(
    training: Any, regression: Any, sized: bool, shared: bool
) -> None:
    class Own(regression):
        @hookimpl
        def build_dataloader(self, dataset: Any, world: Any) -> Any:
            loader = Batches(dataset, world.rank, world.size) if shared else Batches(dataset, 0, 1)
            return loader.batches if sized else loader

    run = training(Own, ranks=2, train={"epochs": 2, "batch_size": 8}, evaluate={"splits": []})
    assert run.outcome.state == "finished"
    told = [warning for warning in run.warnings if "ranks 0, 1 the same samples at first" in warning]
    assert len(told) == (0 if shared else 1)


def test_samples_that_are_all_alike_tell_nothing() -> None:
    assert number([torch.ones(4, 3)]) == number([["a", "b"], {"x": 3}]) == number([]) == 0
    assert number([(torch.arange(3), "a")]) == number([(torch.arange(3), "b")]) != number([(torch.arange(4), "a")])


def test_a_resume_continues_in_the_same_order(training: Any, regression: Any) -> None:
    task = whole(regression, shuffle=True, batch_size=2)

    def report() -> Any:
        seen, task.seen[:] = list(task.seen), []
        return seen

    keep = {"checkpoint": {"at_end": True}, "evaluate": {"splits": []}, "ranks": 2, "report": report}
    expected = training(task, train={"steps": 7, "batch_size": 4}, **keep).reports
    first = training(task, train={"steps": 2, "batch_size": 4}, **keep)
    second = training(task, train={"steps": 7, "batch_size": 4}, after=first.paths, **keep)
    # A resume takes the batches of the epoch again, and throws them away.
    assert [one + two for one, two in zip(first.reports, second.reports, strict=True)] == expected


# --- datasets of other lengths ---


class Few(IterableDataset[int]):
    sharded = False

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        yield from range(self.length)


def sampled(rank: int, length: int) -> SampledLoader:
    sampler = TrainSampler(length, 4, 2, World(rank=rank, size=3))
    return SampledLoader(DataLoader(Numbers(length), batch_sampler=sampler), sampler)


def distributed(rank: int, length: int) -> DataLoader[int]:
    data = Numbers(length)
    return DataLoader(data, sampler=DistributedSampler(data, num_replicas=3, rank=rank))


def evaluated(rank: int, length: int) -> SampledLoader:
    sampler = EvaluationSampler(length, 2, World(rank=rank, size=3))
    return SampledLoader(DataLoader(Numbers(length), batch_sampler=sampler), sampler)


def streamed(rank: int, length: int) -> DataLoader[int]:
    return DataLoader(Few(length), batch_size=2)


@pytest.mark.parametrize("build", [sampled, evaluated, distributed, streamed])
def test_lengths_that_differ_are_an_error_on_all_ranks(build: Callable[[int, int], Any]) -> None:
    lengths = [20, 18, 20]
    told = r"^split 'train': the dataset has not the same length on all workers: 20 samples on ranks 0, 2; 18 "
    with pytest.raises(TrainingError, match=told):
        given_on(3, lambda rank: build(rank, lengths[rank]))
    assert len(given_on(3, lambda rank: build(rank, 20))) == 3


def test_shares_may_differ_in_length() -> None:
    def build(rank: int) -> Any:
        return [sharded(Few(4)), [1], sharded(Numbers(6))][rank]

    assert len(given_on(3, build)) == 3


def sharded(dataset: Any) -> Any:
    dataset.sharded = True
    return DataLoader(dataset)
