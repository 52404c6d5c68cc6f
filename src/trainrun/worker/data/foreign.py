"""The training data of a loader that the task or a plugin makes."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import ceil
from typing import Any

import torch

from trainrun.errors import TaskError
from trainrun.plugin.state import unfit
from trainrun.worker.data.counting import TRAINING_WEIGHT, SampleCounter
from trainrun.worker.data.digest import number
from trainrun.worker.data.draws import bare
from trainrun.worker.data.fingerprint import length_of
from trainrun.worker.data.naming import described, processes
from trainrun.worker.data.reader import Reader, Warn, reader_of
from trainrun.worker.data.update import NOTHING, Update
from trainrun.worker.world import World


class ForeignBatches:
    """The training data of a loader that a plugin makes: any iterable of this rank's micro-batches.

    Loaders may differ in length over ranks: a rank that has run out repeats its last batch with weight zero. If all
    know their length the ranks compare them once an epoch; otherwise they exchange before each update how many batches
    they have. All batches of an update are fetched before its first forward, and the ranks exchange how many samples
    they have: batches count by their size. The size of one may be unknown; the run says so once. Then those of its
    update count alike, and a full update is taken to hold `batch_size` samples over all ranks.

    The position in the data is each rank's own, and only the same number of ranks can resume from it.

    gather: gathers one integer from each rank; None for a single worker. seed: of the run.
    warn: called with a sentence if a resumed loader does not give what it gave before.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        batch_size: int,
        micro_batches: int,
        world: World,
        gather: Callable[[int], list[int]] | None,
        *,
        seed: int = 0,
        warn: Warn = warnings.warn,
    ) -> None:
        self._loader = loader
        self._batch_size = batch_size
        self._micro_batches = micro_batches
        self._world = world
        self._gather = gather or (lambda value: [value])
        self._reader: Reader = reader_of(loader, seed, world, warn)
        self._loaded: Mapping[str, Any] | None = None
        self._epoch = 1
        self._done = 0  # micro-batches of the updates counted in this epoch, padding included
        self._lengths: Sequence[int] = ()
        self._source: Iterator[Any] = iter(())
        self._counts: list[int] | None = None  # batches for the next update, of each rank, once that is known
        self._update = Update((), (), 0)  # the one at hand
        self._unmeasured = False
        self._ahead: deque[Any] = deque()  # its batches that were not handed out
        self._before: dict[str, Any] = {}  # the reader's place before those were fetched
        self._last: Any = NOTHING
        self._warnings: list[str] = []  # that sizes are not known, once that is so
        self._warned = False
        self._compared = world.size == 1
        self._duplicates: str | None = None  # that ranks have begun with the same samples
        # Not to a method of this object: in a cycle of references a loader's processes would outlive their use.
        self._counter = SampleCounter(f"the train loader, {described(loader)}", TRAINING_WEIGHT, self._warnings.append)

    @property
    def dataset(self) -> Any:
        """The dataset under the loader, otherwise the loader, as `fingerprint` takes it."""
        return bare(getattr(self._loader, "dataset", self._loader))

    def updates_in(self, epochs: int) -> int | None:
        """Return the number of updates in `epochs` epochs.

        None unless all ranks' loaders know their length.
        """
        lengths = self._gather_lengths()
        return None if min(lengths) < 0 else epochs * ceil(max(lengths) / self._micro_batches)

    @property
    def resumed(self) -> bool:
        """Whether `begin` will enter its epoch in the middle."""
        return self._loaded is not None and self._loaded["batches"] > 0

    def progress(self) -> float | None:
        """Return the used share of the epoch, from 0 to 1.

        None without lengths. Only updates that were counted are part of it.
        """
        longest = max(self._lengths, default=0)
        return min(1.0, self._done / longest) if longest and min(self._lengths) >= 0 else None

    def begin(self, epoch: int) -> Iterator[Update]:
        """Start `epoch` and yield its updates.

        It starts at its beginning or at the position of a loaded state.
        """
        loaded, self._loaded = self._loaded, None
        self._lengths = self._gather_lengths()
        self._epoch, self._counts = epoch, None
        self._done = 0 if loaded is None else loaded["batches"]
        if loaded is None:
            self._reader.begin(epoch)
        else:
            self._last = self._reader.resume(epoch, loaded)
        self._source = self._reader
        return self._by_length(self._lengths) if min(self._lengths) >= 0 else self._by_asking()

    def take_warning(self) -> str | None:
        """Return, once, that the size of a batch was unknown, if so."""
        if self._warned or not self._warnings:
            return None
        self._warned = True
        return self._warnings[0]

    def take_duplicates(self) -> str | None:
        """Return, once, that ranks began with the same samples, if so."""
        found, self._duplicates = self._duplicates, None
        return found

    def fetch(self) -> Any:
        """Return the next micro-batch of the current update.

        If this rank has run out, this is the last one again. The first call for an update fetches all of its batches,
        and completes the update's weights and sizes.

        Raises TrainingError naming rank, epoch and batch if the loader raises, or ends before its length.
        """
        if self._unmeasured:
            self._ahead = deque(self._own_batch() for _ in range(sum(map(bool, self._update.sizes))))
            self._measure(self._update)
            if not self._compared:
                self._compare()
            self._unmeasured = False
        if self._ahead:
            self._last = self._ahead.popleft()
        if self._last is NOTHING:
            raise TaskError(f"the train loader of rank {self._world.rank} gave no batch at all")
        return self._last

    def _own_batch(self) -> Any:
        batch = next(self._source, NOTHING)
        if batch is NOTHING:
            raise TaskError(
                f"the train loader of rank {self._world.rank} said that it has {self._lengths[self._world.rank]}"
                f" batches and gave {self._reader.taken}; let its __len__ be right, or leave it out"
            )
        return batch

    def _measure(self, update: Update) -> None:
        """Complete an update by the sizes of its batches.

        The ranks exchange the sums of these sizes.
        """
        sizes = [self._counter.count(batch) for batch in self._ahead]
        mine = -1 if None in sizes else sum(size for size in sizes if size is not None)
        sums = self._gather(mine)
        total = sum(sums)
        padding = (0,) * (len(update.weights) - len(sizes))
        if min(sums) < 0 and not self._warnings:
            silent = sums.index(-1)
            self._warnings.append(f"rank {silent} does not know the number of samples in a batch of its train loader")
        if min(sums) < 0 or not total:
            return
        update.samples = total
        update.sizes = (*(size or 0 for size in sizes), *padding)
        update.weights = tuple(size * self._world.size / total for size in update.sizes)

    def _compare(self) -> None:
        """Compare the first batches of all ranks.

        A loader that all of them have alike may be one of the whole data.
        """
        self._compared = True
        numbers = self._gather(number(self._ahead))
        same = [str(rank) for rank, one in enumerate(numbers) if one and numbers.count(one) > 1]
        if same:
            self._duplicates = (
                f"the train loader, {described(self._loader)}, gives ranks {', '.join(same)} the same samples at first;"
                " if it gives each of them all of the data, an epoch trains on each sample several times: let it give"
                " rank run.world.rank of run.world.size its own share, or return a dataset from build_dataset and leave"
                " out build_dataloader"
            )

    def use(self, update: Update) -> None:
        """Count an update that was made."""
        self._done += len(update.weights)
        self._counts = None

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's position after the updates counted so far.

        It consists of plain values and tensors. Call it on all ranks at once: without lengths this shows whether the
        epoch is over. Raises TrainingError if the loader's own state holds values of other types.
        """
        if self._loaded is not None:
            return dict(self._loaded)
        by_length = min(self._lengths, default=-1) >= 0
        if self._done and (self._done >= max(self._lengths) if by_length else not sum(self._asked())):
            state = {"epoch": self._epoch + 1, "batches": 0, **self._reader.end()}
        else:
            place = self._reader.place() if by_length or self._counts is None else self._before
            state = {"epoch": self._epoch, "batches": self._done, **place}
            if self._done:
                state |= self._reader.mark(self._last)
        if wrong := unfit(state.get("loader"), torch.is_tensor):
            raise TaskError(
                f"the state of the train loader, {described(self._loader)}, cannot be kept in a checkpoint: {wrong};"
                " its state_dict must be plain values and tensors"
            )
        here = {"kind": self._reader.kind, "world": self._world.size, "processes": processes(self._loader)}
        return here | state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from what `state_dict` returned, when its epoch is begun.

        The state is one of this rank. Call it before `begin`. Raises TrainingError if this loader, or this number of
        ranks or processes, cannot resume from there.
        """
        name = described(self._loader)
        if state.get("kind") != self._reader.kind:
            raise TaskError(
                f"the checkpoint's place in the data is not that of the train loader, {name}; bring back the loader"
                ' that the checkpoint was made with, or start anew with checkpoint.resume = "never"'
            )
        if state["world"] != self._world.size:
            raise TaskError(
                f"the checkpoint was made with {state['world']} workers and this is started with {self._world.size},"
                f" but the place of the train loader, {name}, is each worker's own; set launch.workers so that there"
                f" are {state['world']}, or let trainrun make the loader of a dataset that has a length"
            )
        here = processes(self._loader)
        if state["processes"] != here and self._reader.minds_processes:
            raise TaskError(
                f"the train loader, {name}, had {state['processes']} processes when the checkpoint was made and has"
                f" {here} now, but it saves its position per process; set num_workers (data.workers in the recipe,"
                f" if the loader is trainrun's) to {state['processes']}"
            )
        self._loaded = dict(state)

    def _by_length(self, lengths: Sequence[int]) -> Iterator[Update]:
        for start in range(self._done, max(lengths), self._micro_batches):
            yield self._begin_update([min(self._micro_batches, max(0, length - start)) for length in lengths])

    def _by_asking(self) -> Iterator[Update]:
        while sum(counts := self._asked()):
            yield self._begin_update(counts)
            if self._counts is counts:  # otherwise `state_dict` has asked for those of the next update
                self._counts = None

    def _asked(self) -> list[int]:
        """Return how many batches each rank has for the next update.

        Fetches them, the first time it is called before that update.
        """
        if self._counts is None:
            self._before = self._reader.place()
            ahead = list(islice(self._reader, self._micro_batches))
            if not ahead:
                self._before = self._reader.place()
            self._source = iter(ahead)
            self._counts = self._gather(len(ahead))
        return self._counts

    def _gather_lengths(self) -> list[int]:
        length = length_of(self._loader)
        return self._gather(-1 if length is None else length)

    def _begin_update(self, counts: Sequence[int]) -> Update:
        """Return an update for which rank r has counts[r] micro-batches.

        All count alike until their sizes are known.
        """
        mine, total, longest = counts[self._world.rank], sum(counts), max(counts)
        padding = (0,) * (longest - mine)
        samples = self._batch_size * total // (self._micro_batches * self._world.size)
        self._update = Update((self._world.size / total,) * mine + padding, (1,) * mine + padding, samples)
        self._unmeasured = True
        return self._update
