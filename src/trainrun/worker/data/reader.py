"""One rank's own way through a loader that trainrun did not make, and back to a position in it.

A loader is asked for its state if it has `state_dict` and `load_state_dict`; torchdata's `StatefulDataLoader` is one.
So is a `DataLoader` that loads in this process from an `IterableDataset` that has them. Any other is gone through again
from the beginning of the epoch, which leads to the same batches only if it makes the same draws.

So a loader has a random stream of its own, begun anew in each epoch. What it draws from torch's global generator is a
function of the run's seed, the rank and the epoch, and does not advance that generator. A `DataLoader` draws a number
for each iterator that it makes, and a random sampler another one for its first batch. To give it one in place of
Python's generator too would take 70 µs a batch. So the state of that is noted, when an epoch begins and with each
position.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from trainrun.errors import TaskError, TrainingError
from trainrun.errors import described as described_error
from trainrun.plugin.state import unfit
from trainrun.worker.data.collating import unequal
from trainrun.worker.data.deaths import fetched, is_death
from trainrun.worker.data.digest import differ, digest
from trainrun.worker.data.items import Items
from trainrun.worker.data.naming import described, keeper, processes
from trainrun.worker.data.shield import iterate
from trainrun.worker.data.stream import Stream, generator_state, set_generator_state
from trainrun.worker.data.update import NOTHING
from trainrun.worker.world import World

Warn = Callable[[str], None]


class Reader:
    """An iterator over the batches of one rank's loader, epoch by epoch. `taken` counts those of this epoch.

    seed: of the run; together with rank and epoch that of the stream.
    """

    kind: str
    minds_processes: bool

    def __init__(self, loader: Iterable[Any], seed: int, world: World) -> None:
        self.taken = 0
        self._loader = loader
        self._seed = seed * _RANKS + world.rank
        self._stream = Stream() if not isinstance(loader, list | tuple) else None
        self._batches: Iterator[Any] = iter(())
        self._exhausted = False
        self._epoch = 0
        self._begun: list[Any] = []  # Python's generator as this epoch began

    def __iter__(self) -> Reader:
        return self

    def __next__(self) -> Any:
        try:
            with self._drawing():
                batch = fetched(self._batches, processes(self._loader))
        except StopIteration:
            self._exhausted = True
            raise
        except Exception as error:
            died = "one of its processes died: " if processes(self._loader) and is_death(error) else ""
            raise TrainingError(
                f"the train loader, {described(self._loader)}, failed at batch {self.taken + 1} of epoch {self._epoch}:"
                f" {died}{described_error(error)}{unequal(self._loader, error)}"
            ) from error
        self.taken += 1
        return batch

    def begin(self, epoch: int) -> None:
        """Start an epoch at its beginning."""
        raise NotImplementedError

    def resume(self, epoch: int, place: Mapping[str, Any]) -> Any:
        """Resume from `place` and `mark` together, or from `end`.

        Returns the last batch before it, if known.
        """
        raise NotImplementedError

    def place(self) -> dict[str, Any]:
        """Return a copy of the position."""
        return {"taken": self.taken, "begun": self._begun, "random": generator_state()}

    def mark(self, last: Any) -> dict[str, Any]:
        """Return what `resume` needs, besides the position, within an epoch.

        last: the last batch that was used.
        """
        raise NotImplementedError

    def end(self) -> dict[str, Any]:
        """Return a copy of the position of the next epoch's beginning.

        Call it once all batches of this epoch were taken.
        """
        raise NotImplementedError

    def _begin_as_before(self, epoch: int, place: Mapping[str, Any]) -> None:
        if "begun" in place:  # the epoch had begun, so that its beginning may have drawn from the generator
            set_generator_state(place["begun"])
        self.begin(epoch)

    def _start(self, epoch: int) -> None:
        """Pass the epoch to what depends on it.

        This is done before an iterator is made.
        """
        self._epoch = epoch
        self.taken, self._exhausted, self._begun = 0, False, generator_state()
        self._reseed(epoch)
        for part in _parts(self._loader):
            set_epoch = getattr(part, "set_epoch", None)
            if callable(set_epoch):
                set_epoch(epoch)

    def _reseed(self, epoch: int) -> None:
        if self._stream is not None:
            self._stream.seed((self._seed << 20) + epoch)

    def _iterate(self) -> Iterator[Any]:
        with self._drawing():
            return iterate(self._loader)

    def _drawing(self) -> AbstractContextManager[Any]:
        return _UNGUARDED if self._stream is None else self._stream


class Asked(Reader):
    """A loader that knows its position.

    Its state is loaded before its iterator is made: some look for it only then (prime-rl#3332). It is never asked
    before its first batch, which in torchdata makes an iterator; it would return what it was loaded with.
    """

    kind = "own"
    minds_processes = True

    def __init__(self, loader: Iterable[Any], seed: int, world: World, holder: Any) -> None:
        super().__init__(loader, seed, world)
        self._pads = world.size > 1
        self._holder = holder
        self._at_start: Any = None  # the state that the loader was in when this epoch began; None for a new one
        self._unloaded: Any = None  # a state that was loaded for the time after this epoch, which it is at the end of

    def begin(self, epoch: int) -> None:
        if self.taken:
            self._at_start = self._state()
        self._start(epoch)
        if self._unloaded is not None:
            self._holder.load_state_dict(copy.deepcopy(self._unloaded))
            self._unloaded = None
        self._batches = self._iterate()
        if self._at_start is not None:
            self._leave_the_end(epoch)

    def _leave_the_end(self, epoch: int) -> None:
        """Make the loader turn back if it is at its end.

        Some loaders find that they have come to their end, and turn back, only when asked for one more batch.
        """
        with self._drawing():
            first = next(self._batches, NOTHING)
        if first is NOTHING:
            self._reseed(epoch)
            self._batches = self._iterate()
        else:
            self._batches = chain([first], self._batches)

    def resume(self, epoch: int, place: Mapping[str, Any]) -> Any:
        if not place["taken"]:
            self._at_start = self._unloaded = place["loader"]
            self._begin_as_before(epoch, place)
            return NOTHING
        self._start(epoch)
        self.taken, self._begun = place["taken"], place["begun"]
        if place["exhausted"]:
            # To load the state of a loader that has ended may begin its next epoch (torchdata#1437).
            self._batches, self._exhausted, self._unloaded = iter(()), True, place["loader"]
        else:
            self._holder.load_state_dict(copy.deepcopy(place["loader"]))
            self._batches = self._iterate()
        if self._stream is not None:
            self._stream.state = place["stream"].clone()
        set_generator_state(place["random"])
        return place.get("last", NOTHING)

    def place(self) -> dict[str, Any]:
        place = super().place() | {"loader": self._state(), "exhausted": self._exhausted}
        return place if self._stream is None else place | {"stream": self._stream.state.clone()}

    def mark(self, last: Any) -> dict[str, Any]:
        return {"last": last} if self._pads and unfit(last, torch.is_tensor) is None else {}

    def end(self) -> dict[str, Any]:
        return {"loader": self._state(), "taken": 0}

    def _state(self) -> Any:
        if self._unloaded is not None:
            return self._unloaded
        return copy.deepcopy(self._holder.state_dict() if self.taken else self._at_start)


class Replayed(Reader):
    """A loader that does not know its position: a resume takes its first batches again, and throws them away."""

    kind = "replay"

    def __init__(self, loader: Iterable[Any], seed: int, world: World, warn: Warn) -> None:
        super().__init__(loader, seed, world)
        # The order of samples of an iterable dataset depends on how many processes it is split over, unless
        # trainrun deals it out.
        dataset = getattr(loader, "dataset", None)
        dealt = isinstance(dataset, Items) and dataset.plan.deals
        self.minds_processes = isinstance(dataset, IterableDataset) and not dealt
        self._warn = warn
        # Their states move on from epoch to epoch, and are not in a checkpoint: each epoch gets a seed of its own.
        self._seeds = {generator: generator.initial_seed() for generator in _generators(loader)}

    def begin(self, epoch: int) -> None:
        self._start(epoch)
        for generator, seed in self._seeds.items():
            generator.manual_seed((seed + epoch - 1) % 2**63)
        self._batches = self._iterate()

    def resume(self, epoch: int, place: Mapping[str, Any]) -> Any:
        if not place["taken"]:
            self._begin_as_before(epoch, place)
            return NOTHING
        self._begin_as_before(epoch, place)
        last = NOTHING
        for _ in range(place["taken"]):
            last = next(self, NOTHING)
        set_generator_state(place["random"])
        if self.taken < place["taken"] or differ(place["check"], digest(last)):
            self._warn(
                f"the train loader, {described(self._loader)}, does not give again what it gave before the checkpoint:"
                f" batch {place['taken']} of epoch {epoch} is another one now, so that samples of the epoch may come"
                " twice or not at all; let it depend on nothing but the epoch (set_epoch) and torch's generator, or"
                " give it state_dict and load_state_dict"
            )
        return last

    def mark(self, last: Any) -> dict[str, Any]:
        return {"check": digest(last)}

    def end(self) -> dict[str, Any]:
        return {"taken": 0}


def reader_of(loader: Iterable[Any], seed: int, world: World, warn: Warn) -> Reader:
    """Return the reader that fits.

    Raises TrainingError for a loader that promises a state and cannot keep it.
    """
    holder = keeper(loader)
    if holder is None:
        return Replayed(loader, seed, world, warn)
    if processes(loader) and not getattr(loader, "in_order", True):
        raise TaskError(
            f"the train loader, {described(loader)}, has in_order=False, so that its state does not show which batches"
            " were used; make it with in_order=True"
        )
    return Asked(loader, seed, world, holder)


_UNGUARDED: AbstractContextManager[None] = nullcontext()
_RANKS = 1 << 20  # more than there are


def _parts(loader: Any) -> list[Any]:
    """Return the loader, its samplers and its dataset, each once."""
    samplers = [getattr(loader, name, None) for name in ("sampler", "batch_sampler")]
    parts = [loader, getattr(loader, "dataset", None), *samplers, *(getattr(one, "sampler", None) for one in samplers)]
    return list({id(part): part for part in parts if part is not None}.values())


def _generators(loader: Any) -> list[torch.Generator]:
    """Return the generators that a `DataLoader` draws seeds and orders from."""
    if not isinstance(loader, DataLoader):
        return []
    found = [getattr(part, "generator", None) for part in _parts(loader)]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())
