"""An iterable dataset, given out once over ranks and loader processes, in batches of the recipe's sizes.

Two attributes of the dataset say what it yields:

- `sharded`: True if each copy of it yields only the share of its rank and loader process; False if every copy yields
  everything, in the same order. Then each consumer reads all of it and keeps what is its own: an update takes the next
  `batch_size` samples, with any number of ranks and processes, as from a dataset that is not shuffled.
- `batched`: True if an item is a whole micro-batch, False if it is one sample. Without it the first item decides,
  unless it may be either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from trainrun.errors import TaskError
from trainrun.worker.data.collating import Collate
from trainrun.worker.data.counting import batch_size, describe, dimensions
from trainrun.worker.data.fingerprint import length_of
from trainrun.worker.data.stream import Generators
from trainrun.worker.data.update import NOTHING

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Share:
    """Which items of a stream are one rank's: in each update the next `runs` runs of `size` items."""

    rank: int
    world: int
    size: int
    runs: int

    @property
    def update(self) -> int:
        """The items of one update, over all ranks."""
        return self.world * self.runs * self.size

    def owner(self, position: int) -> tuple[int, int]:
        """Return the rank of the item at `position`, and its run there.

        The second number is that of the run on that rank.
        """
        update, offset = divmod(position, self.update)
        rank, within = divmod(offset, self.runs * self.size)
        return rank, update * self.runs + within // self.size

    def count(self, length: int) -> int:
        """Return how many of the first `length` items are this rank's."""
        mine = self.runs * self.size
        updates, rest = divmod(length, self.update)
        return updates * mine + min(max(rest - self.rank * mine, 0), mine)


@dataclass
class Plan:
    """What becomes of a dataset's items.

    share: of this rank, its `size` the samples of a micro-batch. deals: whether the dataset yields everything, so that
    only the share's items are kept. batched: whether an item is a micro-batch; None if the first one decides. gathers:
    whether samples are put together here, not by the loader. drop_last: leave out an update that is not full, or, if
    nothing is dealt out, a micro-batch. where: what messages begin with.
    """

    share: Share
    deals: bool = False
    batched: bool | None = None
    gathers: bool = True
    drop_last: bool = False
    seed: int = 0
    where: str = "train"
    warn: Warn | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "warn": None}  # a process that is not forked cannot have it

    def settle(self, item: Any) -> None:
        """Learn from the first item whether it is a micro-batch.

        Only if the dataset does not say so.
        """
        if self.batched is not None or not self.gathers:
            return
        problem: str | None = None
        self.batched, problem = _looks_batched(item, self.share.size)
        if problem is None:
            return
        say = f"{self.where}: {problem} ({describe(item)}); say on the dataset which it is: `batched = "
        say += "True` if an item is a whole micro-batch, `batched = False` if it is one sample"
        if self.batched is None:
            raise TaskError(say)
        if self.warn is not None:
            self.warn(f"{say}; until then it is taken for a micro-batch")

    @property
    def run(self) -> Share:
        """The share, counted in items."""
        return Share(self.share.rank, self.share.world, 1, self.share.runs) if self.batched else self.share


class Items(IterableDataset[Any]):
    """What the loader of an iterable dataset reads: this consumer's micro-batches, or its items for a custom loader."""

    def __init__(self, dataset: Any, plan: Plan, collate: Collate | None = None) -> None:
        self.dataset = dataset
        self.collate = collate
        self.plan = plan
        self._epoch = 0
        self._read = 0  # items of this epoch that were taken from the dataset
        self._resume = 0
        self._generators = Generators() if plan.deals else None

    def set_epoch(self, epoch: int) -> None:
        """Pass the coming epoch to the dataset, if it takes it."""
        self._epoch = epoch
        set_epoch = getattr(self.dataset, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)

    def __len__(self) -> int:
        """Return the number of micro-batches of this rank, or of its items.

        Raises TypeError if that is not known.
        """
        length, plan = length_of(self.dataset), self.plan
        if length is None or (plan.batched is None and plan.gathers):
            raise TypeError(f"{type(self.dataset).__name__} has no length, or may yield samples or micro-batches")
        if plan.deals:
            length = plan.run.count(length - length % plan.run.update if plan.drop_last else length)
        elif not plan.batched and plan.gathers:
            raise TypeError(f"{type(self.dataset).__name__} shares itself out, and one share's samples are not known")
        return length if plan.batched or not plan.gathers else -(-length // plan.share.size)

    def __iter__(self) -> Iterator[Any]:
        start, self._resume = self._resume, 0
        if self._generators is not None and not start:
            self._generators.seed((self.plan.seed << 20) + self._epoch)
        chunks = self._chunks(start)
        while True:
            with self._drawing():
                chunk = next(chunks, NOTHING)
            if chunk is NOTHING:
                break
            yield chunk[0] if self._collate is None else self._collate(chunk)
        self._read = 0

    def _drawing(self) -> AbstractContextManager[Any]:
        """Return the context of the dataset's draws.

        They must not depend on the rank, nor on what is drawn between its items.
        """
        return nullcontext() if self._generators is None else self._generators

    @property
    def _collate(self) -> Collate | None:
        """What puts samples together; None if the items are what is yielded."""
        return None if self.plan.batched else self.collate

    def _chunks(self, start: int) -> Iterator[list[Any]]:
        """Yield this consumer's items, as many as make a micro-batch.

        They begin with item `start` of the dataset.
        """
        process, plan, held = get_worker_info(), self.plan, _Held()
        number, processes = (0, 1) if process is None else (process.id, process.num_workers)
        self._read, share, size, waits = start, plan.run, 1, plan.deals and plan.drop_last
        for item in self.dataset:
            if self._read == start:
                plan.settle(item)
                share, size = plan.run, 1 if self._collate is None else plan.share.size
            rank, run = share.owner(self._read) if plan.deals else (share.rank, number)
            self._read += 1
            if rank == share.rank and run % processes == number:
                held.add(item, size)
            if not waits or self._read % share.update == 0:
                yield from held.take()
        if not plan.drop_last:
            yield from held.rest()


class KeptItems(Items):
    """Items of a dataset that knows its own position."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the dataset, as plain values and tensors."""
        drawn = None if self._generators is None else self._generators.state_dict()
        state = {"dataset": self.dataset.state_dict(), "read": self._read, "batched": self.plan.batched}
        return {**state, "generators": drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.dataset.load_state_dict(state["dataset"])
        self._read = self._resume = state["read"]
        if self.plan.batched is None:
            self.plan.batched = state["batched"]
        if self._generators is not None:
            self._generators.load_state_dict(state["generators"])


@dataclass
class _Held:
    """Items that were read and not yielded."""

    chunks: list[list[Any]] = field(default_factory=list)
    chunk: list[Any] = field(default_factory=list)

    def add(self, item: Any, size: int) -> None:
        self.chunk.append(item)
        if len(self.chunk) == size:
            self.chunks.append(self.chunk)
            self.chunk = []

    def take(self) -> list[list[Any]]:
        taken, self.chunks = self.chunks, []
        return taken

    def rest(self) -> list[list[Any]]:
        return [*self.take(), *([self.chunk] if self.chunk else [])]


def _looks_batched(item: Any, size: int) -> tuple[bool | None, str | None]:
    """Return whether an item looks like a micro-batch, and why.

    None if it may be either. size: the samples of a micro-batch.
    """
    rows, shapes = batch_size(item), dimensions(item)
    single, deep = any(count == 0 for count in shapes), any(count > 1 for count in shapes)
    if rows is None or (rows != size and (single or not deep)):
        return False, None
    if rows != size:
        return None, f"an item has {rows} rows in all its parts, and a micro-batch has {size} samples"
    if single or not deep:
        return (
            None,
            f"an item has {rows} rows, as many as a micro-batch has samples, and may be one sample",
        )
    return True, f"an item has {rows} rows in all its parts, as many as a micro-batch has samples"
