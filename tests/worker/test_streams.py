"""Iterable datasets: each sample is given out once, in the recipe's batches, or the run says how to say so."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from trainrun.errors import TrainingError
from trainrun.marker import hookimpl
from trainrun.rundir.files import read_lines
from trainrun.worker.data import Collate, ForeignBatches, Giver, Items, Plan, Share, TrainSampler, giving
from trainrun.worker.world import World

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more processes than processors


class Count(IterableDataset[Any]):
    """Samples 0 to `length`, all of them in every copy."""

    sharded: bool | None = False
    batched: bool | None = False

    def __init__(self, length: int, *, sized: bool = False) -> None:
        self.length, self.sized = length, sized

    def __len__(self) -> int:
        if not self.sized:
            raise TypeError
        return self.length

    def __iter__(self) -> Iterator[Any]:
        for number in range(self.length):
            yield torch.tensor([number])


class Shuffled(Count):
    """The same in an order that is drawn at random, differently in each epoch."""

    def __iter__(self) -> Iterator[Any]:
        order = list(range(self.length))
        random.shuffle(order)
        for place in torch.randperm(self.length).tolist():
            yield torch.tensor([order[place]])


class Placed(Count):
    """The same with a state."""

    at = 0

    def __iter__(self) -> Iterator[Any]:
        while self.at < self.length:
            self.at += 1
            yield torch.tensor([self.at - 1])
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.at = state["at"]


def loader_of(dataset: Any, share: Share, processes: int = 0, **plan: Any) -> DataLoader[Any]:
    items = giving.items(dataset, Plan(share, **{"deals": True, "batched": False, **plan}), Collate("train", dataset))
    return DataLoader(items, batch_size=None, num_workers=processes)


def numbers(loader: Any) -> list[list[int]]:
    return [batch.flatten().tolist() for batch in loader]


def updates_of(per_rank: list[list[list[int]]], runs: int) -> list[list[int]]:
    """The samples of each update over all ranks, in order, from each rank's micro-batches."""
    iterators = [iter(batches) for batches in per_rank]
    found: list[list[int]] = []
    while update := [list(islice(batches, runs)) for batches in iterators]:
        if not any(update):
            return found
        found.append(list(chain(*chain(*update))))
    return found


Shape = tuple[int, int, int, int]
shapes = st.tuples(st.integers(1, 60), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))
"""Length, size of a micro-batch, micro-batches of an update, ranks."""


@settings(deadline=None)
@given(shapes, st.booleans(), st.sampled_from([Count, Placed]), st.booleans())
def test_each_sample_comes_once_and_in_the_order_of_the_dataset(
    shape: Shape, drop_last: bool, kind: type[Count], sized: bool
) -> None:
    length, size, runs, world = shape
    shares = [Share(rank, world, size, runs) for rank in range(world)]
    loaders = [loader_of(kind(length, sized=sized), share, drop_last=drop_last) for share in shares]
    per_rank = [numbers(loader) for loader in loaders]
    batch = world * size * runs
    samples = list(range(length - length % batch if drop_last else length))
    assert updates_of(per_rank, runs) == [samples[start : start + batch] for start in range(0, len(samples), batch)]
    for loader, batches, share in zip(loaders, per_rank, shares, strict=True):
        assert all(len(one) == size for one in batches[:-1])
        assert sum(map(len, batches)) == share.count(len(samples))
        if sized:
            assert len(loader) == len(batches)


@settings(deadline=None, max_examples=30)
@given(shapes.filter(lambda shape: shape[0] >= shape[3]))
def test_full_updates_are_those_of_a_dataset_with_a_length(shape: Shape) -> None:
    length, size, runs, world = shape
    for rank in range(world):
        sampler = TrainSampler(length, world * size * runs, size, World(rank=rank, size=world), shuffle=False)
        full = length // (world * size * runs) * runs
        batches = numbers(loader_of(Count(length), Share(rank, world, size, runs)))
        assert batches[:full] == list(islice(sampler, full))


@pytest.mark.parametrize("dataset", [Count(29), Shuffled(29)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_loader_processes_change_nothing(dataset: Any, drop_last: bool) -> None:
    share = Share(1, 2, 2, 2)
    expected = numbers(loader_of(dataset, share, drop_last=drop_last))
    for processes in (1, 2, 3):
        assert numbers(loader_of(dataset, share, processes, drop_last=drop_last)) == expected


def test_a_random_order_is_that_of_all_ranks_and_another_one_in_each_epoch() -> None:
    epochs = []
    for epoch in (1, 2, 1):
        per_rank = []
        for rank in range(2):
            random.seed(rank)
            torch.manual_seed(rank)
            loader = loader_of(Shuffled(24), Share(rank, 2, 3, 2))
            assert isinstance(loader.dataset, Items)
            loader.dataset.set_epoch(epoch)
            before = random.getstate(), torch.get_rng_state()
            batches = iter(loader)
            per_rank.append([next(batches).flatten().tolist()])
            random.random()  # what training draws between two batches
            per_rank[-1] += numbers(batches)
            random.setstate(before[0])
        epochs.append(list(chain(*updates_of(per_rank, 2))))
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(24))
    assert epochs[0] == epochs[2] != epochs[1]


def test_reading_leaves_the_generators_of_training_alone() -> None:
    loader = loader_of(Shuffled(8), Share(0, 2, 2, 1))
    batches = iter(loader)
    states = random.getstate(), torch.get_rng_state()
    list(batches)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


@pytest.mark.parametrize("kind", [Count, Shuffled, Placed])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("processes", [0, 2])
def test_a_resume_continues_with_the_next_sample(kind: type[Count], drop_last: bool, processes: int) -> None:
    def foreign() -> ForeignBatches:
        loader = loader_of(kind(22), Share(0, 2, 2, 2), processes, drop_last=drop_last)
        return ForeignBatches(loader, 8, 2, World(), None, seed=3, warn=pytest.fail)

    def run(data: ForeignBatches, updates: int | None, epoch: int = 1) -> list[Any]:
        seen = []
        for number, update in enumerate(data.begin(epoch), 1):
            seen.append([data.fetch().flatten().tolist() for _ in update.weights])
            data.use(update)
            if number == updates:
                break
        return seen

    whole = foreign()
    expected = run(whole, None) + run(whole, None, 2)
    for updates in (1, 2):
        first = foreign()
        seen = run(first, updates)
        second = foreign()
        second.load_state_dict(first.state_dict())
        epoch = first.state_dict()["epoch"]
        seen += run(second, None, epoch)
        assert seen + (run(second, None, 2) if epoch == 1 else []) == expected


# --- what a dataset yields ---


X, Y = torch.zeros(4, 3), torch.zeros(4, 1)


@pytest.mark.parametrize(("item", "batched"), [
    ((torch.zeros(3), torch.zeros(1)), False), ((torch.zeros(3), 1), False), ((X[0], torch.tensor(1)), False),
    ({"ids": torch.zeros(16), "labels": torch.zeros(16)}, False), ((torch.zeros(3, 8, 8), 2), False),
    ("text", False), ({"text": "abcd", "label": 1}, False), ((torch.zeros(3, 8), torch.zeros(5)), False),
    ((X, Y), True), ({"x": X, "y": Y[:, 0]}, True), ([X], True),
], ids=repr)  # fmt: skip
def test_the_first_item_tells(item: Any, batched: bool) -> None:
    said: list[str] = []
    plan = Plan(Share(0, 1, 4, 1), where="split 'train'", warn=said.append)
    plan.settle(item)
    assert plan.batched is batched
    assert [line.split(";")[1][:32] for line in said] == [" say on the dataset which it is:"] * batched


@pytest.mark.parametrize("item", [
    (torch.zeros(8, 3), torch.zeros(8, 1)), torch.zeros(16, 2), X[0].new_zeros(4), (torch.zeros(4), torch.zeros(4)),
    (X, 1), ["a", "b", "c", "d"],
], ids=repr)  # fmt: skip
def test_an_item_that_may_be_either_is_refused(item: Any) -> None:
    with pytest.raises(TrainingError, match=r"(?s)^here: .*`batched = True`.*`batched = False`"):
        Plan(Share(0, 1, 4, 1), where="here").settle(item)


@pytest.mark.parametrize("batched", [True, False])
def test_what_the_dataset_says_counts(batched: bool) -> None:
    plan = Plan(Share(0, 1, 4, 1), batched=batched, warn=pytest.fail)
    for item in (X, Y), (torch.zeros(3), 1), torch.zeros(8, 2):
        plan.settle(item)
    assert plan.batched is batched


def test_whole_batches_are_dealt_out_too() -> None:
    batches = [torch.tensor([number]) for number in range(7)]

    class Batches(Count):
        def __iter__(self) -> Iterator[Any]:
            yield from batches

    per_rank = [numbers(loader_of(Batches(7, sized=True), Share(rank, 2, 5, 2), batched=True)) for rank in range(2)]
    assert per_rank == [[[0], [1], [4], [5]], [[2], [3], [6]]]
    assert [len(loader_of(Batches(7, sized=True), Share(rank, 2, 5, 2), batched=True)) for rank in range(2)] == [4, 3]


# --- in a training ---


class Rows(IterableDataset[Any]):
    """Row 9's kind: whole micro-batches, sharded by rank in the constructor, not by loader process."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[Any]:
        for number in range(self.rank, 10, self.world):
            yield torch.full((4, 3), float(number)), torch.zeros(4, 1)


class BySelf(Rows):
    sharded, batched = True, True

    def __iter__(self) -> Iterator[Any]:
        process = get_worker_info()
        start, step = (0, 1) if process is None else (process.id, process.num_workers)
        yield from islice(super().__iter__(), start, None, step)


class Whole(Rows):
    sharded, batched = False, True

    def __init__(self, *_: int) -> None:
        super().__init__(0, 1)


class Samples(IterableDataset[Any]):
    """Samples with a label, all in every copy, that say no more than whether they are all."""

    sharded = False

    def __iter__(self) -> Iterator[Any]:
        for number in range(10):
            yield torch.full((3,), float(number)), torch.tensor(float(number))


def task_over(regression: Any, make: Callable[..., Any], loader: Callable[[Any], Any] = lambda _: None) -> Any:
    class Task(regression):  # type: ignore[misc]
        seen: ClassVar[list[Any]] = []

        @hookimpl
        def build_dataset(self, run: Any) -> Any:
            return make(run.world.rank, run.world.size) if make in (Rows, BySelf, Whole) else make()

        @hookimpl
        def build_dataloader(self, dataset: Any) -> Any:
            return loader(dataset)

        @hookimpl
        def training_step(self, model: Any, batch: Any) -> Any:
            self.seen.append(batch[0][:, 0].int().tolist())
            return model(batch[0]).mean()

        @hookimpl
        def evaluation_step(self, batch: Any) -> Any:
            return {"number": batch[0].mean()}

        @classmethod
        def report(cls) -> Any:
            return cls.seen

    return Task


EPOCH = {"train": {"epochs": 1, "batch_size": 4}, "evaluate": {"splits": []}}


def warnings_of(run: Any) -> list[str]:
    return [event["reason"] for event in read_lines(run.paths.events)[0] if event["event"] == "warning"]


def test_batches_of_a_dataset_that_says_nothing_are_taken_as_they_are_by_one_reader(
    training: Any, regression: Any
) -> None:
    task = task_over(regression, Rows)
    run = training(task, report=task.report, **EPOCH)
    assert run.reports == [[[number] * 4 for number in range(10)]]
    (warning,) = warnings_of(run)
    assert "4 rows in all its parts" in warning
    assert "`batched = True`" in warning


@pytest.mark.parametrize("make", [Rows, lambda: Rows(0, 1)])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 0), (2, 2)])
def test_several_readers_of_a_dataset_that_says_nothing_are_an_error(
    training: Any, regression: Any, make: Any, ranks: int, workers: int
) -> None:
    if ranks == 1:
        with pytest.raises(TrainingError) as caught:
            training(task_over(regression, make), data={"workers": workers}, **EPOCH)
        told = str(caught.value)
    else:
        told = str(training(task_over(regression, make), ranks=2, data={"workers": workers}, **EPOCH).ranks[0])
    assert f"split 'train': the dataset, Rows, is iterable, and {ranks * max(1, workers)} copies of it would be" in told
    assert "`sharded = False` if all samples" in told
    assert "`sharded = True` if only the share of its worker" in told


@pytest.mark.parametrize("make", [BySelf, Whole])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (2, 2)])
def test_what_is_said_to_be_a_share_or_all_is_given_out_once(
    training: Any, regression: Any, make: Any, ranks: int, workers: int
) -> None:
    task = task_over(regression, make)
    run = training(task, ranks=ranks, report=task.report, data={"workers": workers}, **EPOCH)
    seen = sorted(chain(*run.reports))
    # A rank that has run out repeats its last batch, with weight zero.
    assert [seen[place] for place in range(len(seen)) if seen[place] not in seen[:place]] == [
        [number] * 4 for number in range(10)
    ]
    assert len(seen) == 10
    assert warnings_of(run) == []


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (2, 2)])
@pytest.mark.parametrize("own", [False, True])
def test_samples_are_batched_by_the_recipe_and_evaluated_once(
    training: Any, regression: Any, ranks: int, workers: int, own: bool
) -> None:
    def loader(dataset: Any) -> Any:
        return DataLoader(dataset, batch_size=4 // ranks, num_workers=workers) if own else None

    task = task_over(regression, Samples, loader)
    train = {"train": {"epochs": 1, "batch_size": 4}, "optimizer": {"name": "sgd", "lr": 0.0}}
    run = training(task, ranks=ranks, report=task.report, data={"workers": workers}, **train)
    updates = [list(dict.fromkeys(chain(*update))) for update in zip(*run.reports, strict=True)]
    padding = [[6, 7]] if ranks == 2 else []  # a rank that has run out repeats its last batch, with weight zero
    assert updates == [[0, 1, 2, 3], [4, 5, 6, 7], list(chain([8, 9], *padding))]
    assert run.series("eval/number") == {3: 4.5}
    assert warnings_of(run)[1:] == []


def test_one_reader_needs_no_word(training: Any, regression: Any) -> None:
    class Plain:
        """No IterableDataset, and one that says nothing."""

        def __iter__(self) -> Iterator[Any]:
            for number in range(6):
                yield {"x": torch.full((3,), float(number)), "y": number}

    class Task(task_over(regression, Plain)):  # type: ignore[misc]
        @hookimpl
        def training_step(self, model: Any, batch: Any) -> Any:
            self.seen.append(batch["y"].tolist())
            return model(batch["x"]).mean()

    run = training(Task, report=Task.report, data={"drop_last": True}, **EPOCH)
    assert run.reports == [[[0, 1, 2, 3]]]


def test_what_is_no_dataset_is_named(training: Any, regression: Any) -> None:
    with pytest.raises(TrainingError, match=r"build_dataset returned a object for split 'train', which has neither"):
        training(task_over(regression, object), **EPOCH)


# --- DataLoaders of the task over iterable datasets ---


class Batches(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from range(10)


@pytest.mark.parametrize("processes", [0, 2, 3])
@pytest.mark.parametrize(("size", "drop_last"), [(None, False), (3, False), (3, True)])
def test_a_loader_over_all_of_a_stream_is_dealt_out(processes: int, size: int | None, drop_last: bool) -> None:
    dataset = Batches()
    dataset.sharded = False  # type: ignore[attr-defined]
    loader = DataLoader(dataset, batch_size=size, num_workers=processes, drop_last=drop_last)
    shares = [list(Giver(World(rank=rank, size=2), 0, None).given(loader, "here", 1)) for rank in range(2)]
    plain = [[value.tolist() if size else value for value in share] for share in shares]
    if size is None:
        assert plain == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    else:
        assert plain == [[[0, 1, 2], [6, 7, 8]], [[3, 4, 5], *([] if drop_last else [[9]])]]


def test_a_loader_over_a_stream_that_says_nothing() -> None:
    one, two = Giver(World(), 0, None), Giver(World(rank=1, size=2), 0, None)
    alone = DataLoader(Batches(), batch_size=2)
    assert one.given(alone, "here", 1) is alone
    with pytest.raises(TrainingError, match=r"^here: the dataset, Batches, is iterable, and 2 copies"):
        two.given(alone, "here", 1)
    with pytest.raises(TrainingError, match=r"and 2 copies .* \(workers: 1, loader processes of each: 2"):
        one.given(DataLoader(Batches(), num_workers=2), "here", 1)
    alone.sharded = True
    assert two.given(alone, "here", 1) is alone
