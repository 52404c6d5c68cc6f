"""Loaders that tasks bring: a training that goes on from a checkpoint sees what an uninterrupted one sees."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from trainrun.errors import TrainingError
from trainrun.worker.data import ForeignBatches, resumable
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
    def build() -> Any:
        module = pytest.importorskip("torchdata.stateful_dataloader")
        return module.StatefulDataLoader(dataset(), **options)

    return build


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
    few = isinstance(build(), DataLoader) and build().num_workers
    straight = Training(build).run()
    for updates in (1, 4, 5, 6, 10) if few else range(len(straight.seen)):
        first = Training(build).run(updates, stop_after_asking=asking)
        second = Training(build, first.checkpoint()).run()
        assert first.seen + second.seen == straight.seen, f"after {updates} updates"


@pytest.mark.parametrize("build", [pytest.param(build, id=name) for name, build in IN_PROCESSES.items()])
@pytest.mark.parametrize("updates", [1, 5, 6, 10])
def test_a_stateful_loader_with_processes(build: Build, updates: int) -> None:
    straight = Training(build).run()
    first = Training(build).run(updates)
    second = Training(build, first.checkpoint()).run()
    assert first.seen + second.seen == straight.seen
