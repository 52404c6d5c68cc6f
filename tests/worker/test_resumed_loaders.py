"""Loaders that tasks bring: a training that goes on from a checkpoint sees what an uninterrupted one sees."""

from __future__ import annotations

import io
import multiprocessing
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, RandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from trainrun.errors import TrainingError
from trainrun.worker.data import ForeignBatches, SampledLoader, TrainSampler, resumable
from trainrun.worker.world import World

LENGTH, MICRO_BATCHES, EPOCHS = 10, 2, 3

Build = Callable[[], Any]

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 calls it


def refuse(sentence: str) -> None:
    raise AssertionError(sentence)


def foreign(loader: Any, world: World | None = None, **options: Any) -> ForeignBatches:
    world = world or World()
    return ForeignBatches(loader, 4, MICRO_BATCHES, world, None, **{"seed": 3, "warn": refuse, **options})


def plain(batch: Any) -> Any:
    return batch.tolist() if isinstance(batch, torch.Tensor) else batch


class Training:
    """The loop's way through the data: draws from the generators between two batches, as a model does."""

    def __init__(self, build: Build, state: Mapping[str, Any] | None = None) -> None:
        torch.manual_seed(7)
        random.seed(7)
        self.data = foreign(build())
        self.epoch = 0
        self.seen: list[tuple[int, list[Any]]] = []
        if state is not None:
            self.data.load_state_dict(state["data"])
            self.epoch = state["data"]["epoch"] - 1
            torch.set_rng_state(state["torch"])
            version, numbers, gauss = state["random"]
            random.setstate((version, tuple(numbers), gauss))

    def run(self, updates: int | None = None, *, stop_after_asking: bool = False) -> Training:
        """Make so many updates; stop after the last one, or where the loop knows that there is another one."""
        while self.epoch < EPOCHS:
            self.epoch += 1
            for update in self.data.begin(self.epoch):
                if updates == 0:
                    return self
                torch.rand(1)
                self.seen.append((self.epoch, [plain(self.data.fetch()) for _ in update.weights]))
                torch.rand(1)
                self.data.use(update)
                updates = None if updates is None else updates - 1
                if updates == 0 and not stop_after_asking:
                    return self
        return self

    def checkpoint(self) -> dict[str, Any]:
        version, numbers, gauss = random.getstate()
        state = {"torch": torch.get_rng_state(), "random": [version, list(numbers), gauss]}
        file = io.BytesIO()
        torch.save({"data": self.data.state_dict(), **state}, file)
        file.seek(0)
        return torch.load(file, weights_only=True)


class Augmented(torch.utils.data.Dataset[float]):
    """Draws from the global generator for each sample."""

    def __len__(self) -> int:
        return 2 * LENGTH

    def __getitem__(self, index: int) -> float:
        return index + torch.rand(1).item() / 2


class Pool(IterableDataset[float]):
    """Shuffles through a pool, by both global generators. Has no length and no state."""

    def __iter__(self) -> Iterator[float]:
        pool: list[float] = []
        for sample in range(LENGTH):
            pool.append(sample + torch.rand(1).item() / 2)
            if len(pool) == 4:
                yield pool.pop(random.randrange(4))
        yield from pool


class Stream(IterableDataset[int]):
    """Has a state, and goes on over epochs: each one begins where the one before it ended."""

    def __init__(self, sized: bool = False) -> None:
        self.at = 0
        self.sized = sized

    def __len__(self) -> int:
        if not self.sized:
            raise TypeError
        return LENGTH

    def __iter__(self) -> Iterator[int]:
        for _ in range(LENGTH - self.at % LENGTH if self.at % LENGTH else LENGTH):
            self.at += 1
            yield self.at - 1

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.at = state["at"]


class TurnsBack(Stream):
    """Notices its end only when it is asked for one sample more."""

    def __iter__(self) -> Iterator[int]:
        while self.at < LENGTH:
            self.at += 1
            yield self.at - 1
        self.at = 0


class Own:
    """A loader of no known class, with its own state. The state is one live object."""

    def __init__(self) -> None:
        self.state = {"left": list(range(LENGTH))}

    def __iter__(self) -> Iterator[int]:
        if not self.state["left"]:
            self.state["left"] = list(range(LENGTH))
        while self.state["left"]:
            yield self.state["left"].pop()

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state["left"] = list(state["left"])


class ByGlobalRandom:
    """Shuffles with Python's global generator each time it is gone through."""

    def __iter__(self) -> Iterator[int]:
        order = list(range(LENGTH))
        random.shuffle(order)
        return iter(order)


def shuffled(**options: Any) -> Build:
    return lambda: DataLoader(Augmented(), batch_size=2, shuffle=True, **options)


def with_generator() -> DataLoader[float]:
    generator = torch.Generator().manual_seed(5)
    return DataLoader(Augmented(), batch_size=2, sampler=RandomSampler(Augmented(), generator=generator))


def stateful(dataset: Any, **options: Any) -> Build:
    return lambda: StatefulDataLoader(dataset(), **options)


LOADERS: dict[str, Build] = {
    "list": lambda: list(range(LENGTH)),
    "shuffled": shuffled(),
    "own-generator": with_generator,
    "shared-generator": lambda: DataLoader(
        Augmented(), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(9)
    ),
    "processes": shuffled(num_workers=2),
    "pool": lambda: DataLoader(Pool(), batch_size=None),
    "stream": lambda: DataLoader(Stream(), batch_size=None),
    "sized-stream": lambda: DataLoader(Stream(sized=True), batch_size=None),
    "batched-stream": lambda: DataLoader(Stream(), batch_size=3),
    "turns-back": lambda: DataLoader(TurnsBack(), batch_size=None),
    "sized-turns-back": lambda: DataLoader(TurnsBack(sized=True), batch_size=None),
    "own": Own,
    "python-random": ByGlobalRandom,
}
STATEFUL: dict[str, Build] = {
    "stateful": stateful(lambda: range(2 * LENGTH), batch_size=2),
    "stateful-shuffled": stateful(Augmented, batch_size=2, shuffle=True),
    "stateful-stream": stateful(Stream, batch_size=None),
    "stateful-turns-back": stateful(TurnsBack, batch_size=None),
}
IN_PROCESSES: dict[str, Build] = {
    "stateful-processes": stateful(lambda: range(2 * LENGTH), batch_size=2, shuffle=True, num_workers=2),
    "stateful-stream-processes": stateful(TurnsBack, batch_size=None, num_workers=2),
    "stateful-persistent": stateful(
        lambda: range(2 * LENGTH), batch_size=2, shuffle=True, num_workers=2, persistent_workers=True
    ),
}


@pytest.mark.parametrize("build", [pytest.param(build, id=name) for name, build in {**LOADERS, **STATEFUL}.items()])
@pytest.mark.parametrize("asking", [False, True], ids=["after-a-step", "before-a-step"])
def test_a_resumed_training_sees_the_same_batches(build: Build, asking: bool) -> None:
    straight = Training(build).run()
    several = (1, 5, 8) if isinstance(build(), DataLoader) and build().num_workers else range(len(straight.seen))
    for updates in several:
        first = Training(build).run(updates, stop_after_asking=asking)
        second = Training(build, first.checkpoint()).run()
        assert first.seen + second.seen == straight.seen, f"after {updates} updates"


@pytest.mark.parametrize("build", [pytest.param(build, id=name) for name, build in IN_PROCESSES.items()])
@pytest.mark.parametrize("updates", [1, 5, 8])
def test_a_stateful_loader_with_processes(build: Build, updates: int) -> None:
    straight = Training(build).run()
    first = Training(build).run(updates)
    second = Training(build, first.checkpoint()).run()
    assert first.seen + second.seen == straight.seen


# --- several ranks of unequal length ---


def together(walk: Callable[[int, Callable[[int], list[int]]], Any], size: int) -> list[Any]:
    """Run each rank in a thread; they meet at every gather."""
    cells, barrier = [0] * size, threading.Barrier(size, timeout=20)

    def rank_main(rank: int) -> Any:
        def gather(value: int) -> list[int]:
            cells[rank] = value
            barrier.wait()
            answer = list(cells)
            barrier.wait()
            return answer

        try:
            return walk(rank, gather)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return [future.result() for future in [pool.submit(rank_main, rank) for rank in range(size)]]


class Unsized:
    def __init__(self, batches: list[int]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[int]:
        return iter(self.batches)


def run_ranks(loaders: list[Any], states: list[Any] | None, updates: int | None) -> tuple[list[Any], list[Any]]:
    """Go through the rest of an epoch, or a few updates of it; what each rank saw, and each rank's place."""

    def walk(rank: int, gather: Callable[[int], list[int]]) -> tuple[Any, Any]:
        data = ForeignBatches(loaders[rank], 4, 2, World(rank=rank, size=len(loaders)), gather, warn=refuse)
        if states is not None:
            data.load_state_dict(states[rank])
        seen = []
        for number, update in enumerate(data.begin(1 if states is None else states[rank]["epoch"]), 1):
            seen.append([(plain(data.fetch()), weight) for weight in update.weights])
            data.use(update)
            if number == updates:
                break
        return seen, data.state_dict()

    found = together(walk, len(loaders))
    return [seen for seen, _ in found], [state for _, state in found]


class Numbered(IterableDataset[torch.Tensor]):
    """Has a state; each epoch is the same."""

    def __init__(self, length: int, *, sized: bool) -> None:
        self.length, self.sized, self.at = length, sized, 0

    def __len__(self) -> int:
        if not self.sized:
            raise TypeError
        return self.length

    def __iter__(self) -> Iterator[torch.Tensor]:
        while self.at < self.length:
            self.at += 1
            yield torch.tensor([self.at])
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.at = state["at"]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 7), min_size=2, max_size=3), st.integers(1, 4), st.booleans(), st.booleans())
def test_ranks_of_unequal_length(lengths: list[int], updates: int, sized: bool, own: bool) -> None:
    def build() -> list[Any]:
        if own:
            return [DataLoader(Numbered(length, sized=sized), batch_size=None) for length in lengths]
        return [list(range(length)) if sized else Unsized(list(range(length))) for length in lengths]

    straight, ends = run_ranks(build(), None, None)
    assert all((end["epoch"], end["batches"]) == (2, 0) for end in ends)
    first, states = run_ranks(build(), None, updates)
    assert len({state["epoch"] for state in states}) == 1
    second, after = run_ranks(build(), states, None)
    if states[0]["epoch"] == 1:
        assert [mine + rest for mine, rest in zip(first, second, strict=True)] == straight
        assert after == ends
    else:
        assert first == straight == second


# --- what is refused, and what is said before training ---


def test_another_number_of_workers_is_refused() -> None:
    state = foreign([1, 2], World(size=1)).state_dict()
    with pytest.raises(TrainingError, match=r"made with 1 workers and this is started with 2.*list.*launch\.workers"):
        foreign([1, 2], World(size=2)).load_state_dict(state)


def test_another_number_of_processes_is_refused() -> None:
    def build(workers: int) -> ForeignBatches:
        return foreign(DataLoader(Pool(), batch_size=None, num_workers=workers))

    with pytest.raises(TrainingError, match=r"DataLoader over Pool, had 0 processes .* 2 now.*data\.workers.* to 0"):
        build(2).load_state_dict(build(0).state_dict())
    by_index = foreign(shuffled(num_workers=2)())
    by_index.load_state_dict(foreign(shuffled()()).state_dict())  # whose order no process decides


def test_a_place_in_other_data_is_refused() -> None:
    with pytest.raises(TrainingError, match="not that of the train loader, Own"):
        foreign(Own()).load_state_dict(foreign([1]).state_dict())
    with pytest.raises(TrainingError, match="not that of the train loader, Own"):
        foreign(Own()).load_state_dict({"epoch": 1, "position": 8})


def test_batches_out_of_order_are_refused() -> None:
    with pytest.raises(TrainingError, match="in_order=True"):
        foreign(stateful(lambda: range(4), num_workers=1, in_order=False)())


def test_a_state_that_is_not_plain_is_refused() -> None:
    class Odd(Own):
        def state_dict(self) -> dict[str, Any]:
            return {"left": {1, 2}}

    data = foreign(Odd())
    update = next(data.begin(1))
    data.fetch()
    data.use(update)
    with pytest.raises(TrainingError, match=r"Odd.*state\['left'\] is a set"):
        data.state_dict()


def test_a_loader_that_is_not_repeatable_is_noticed() -> None:
    class Restless:
        count = 0

        def __iter__(self) -> Iterator[torch.Tensor]:
            for _ in range(LENGTH):
                Restless.count += 1
                yield torch.tensor([Restless.count])

    def after(change: Callable[[torch.Tensor], Any]) -> list[str]:
        said: list[str] = []
        data = foreign(Restless())
        for update in data.begin(1):
            change(data.fetch())
            change(data.fetch())
            data.use(update)
            break
        other = foreign(Restless(), warn=said.append)
        other.load_state_dict(data.state_dict())
        other.begin(1)
        return said

    (sentence,) = after(lambda batch: None)
    assert "Restless, does not give again what it gave before the checkpoint: batch 2 of epoch 1" in sentence
    assert after(lambda batch: batch.add_(1)) == [], "a batch that training has written into tells nothing"


def test_what_cannot_be_resumed_is_named_before_training() -> None:
    sampler = TrainSampler(4, 2, 2, World())
    assert resumable(SampledLoader(DataLoader(range(4), batch_sampler=sampler), sampler)) is None
    assert resumable([1, 2]) is None
    assert resumable(Own()) is None
    assert resumable(DataLoader(Stream())) is None
    sentence = resumable(DataLoader(Stream(), num_workers=1))
    assert sentence is not None
    assert "DataLoader over Stream, has no state_dict" in sentence
    assert "re-reads and skips the batches already used" in sentence
    assert resumable(ByGlobalRandom()) is not None


def test_fewer_batches_than_a_loader_has_said() -> None:
    class Boasts(list[int]):
        def __len__(self) -> int:
            return 5

    data = foreign(Boasts([1, 2]))
    updates = data.begin(1)
    assert [data.fetch() for _ in next(updates).weights] == [1, 2]
    next(updates)
    with pytest.raises(TrainingError, match="said that it has 5 batches and gave 2"):
        data.fetch()


def test_epochs_are_told_to_samplers_and_datasets() -> None:
    told: list[tuple[str, int]] = []

    class Tells(RandomSampler):
        def set_epoch(self, epoch: int) -> None:
            told.append(("sampler", epoch))

    class Told(Augmented):
        def set_epoch(self, epoch: int) -> None:
            told.append(("dataset", epoch))

    data = foreign(DataLoader(Told(), batch_size=2, sampler=Tells(Told())))
    data.begin(3)
    assert sorted(told) == [("dataset", 3), ("sampler", 3)]


def test_making_an_iterator_does_not_draw_from_the_training_s_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    data = foreign(shuffled()())
    for update in data.begin(1):
        for _ in update.weights:
            data.fetch()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loader_whose_process_dies_is_named() -> None:
    others = set(multiprocessing.active_children())
    data = foreign(shuffled(num_workers=1)())
    updates = data.begin(2)
    for _ in next(updates).weights:
        data.fetch()
    (process,) = set(multiprocessing.active_children()) - others
    process.kill()
    process.join()  # the training is elsewhere, and hears nothing of it
    dies = r"DataLoader over Augmented, failed at batch \d+ of epoch 2: one of its processes died"
    next(updates)
    with pytest.raises(TrainingError, match=dies):
        data.fetch()
