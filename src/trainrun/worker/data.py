"""Which samples each rank sees in each update, by arithmetic on the global sample position.

An epoch is one permutation of the dataset, a function of seed and epoch alone. Update u of an epoch takes the
positions from u * batch_size on, whatever the number of ranks; each rank takes an equal run of them and cuts it
into micro-batches. So each sample is seen exactly once an epoch, a position is reached without walking to it,
and another number of ranks goes on from the same position. Where the last update of an epoch leaves a rank
without samples it runs a batch of weight zero, because every rank must enter every gradient reduction.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from trainrun.errors import TrainingError
from trainrun.worker.world import World


@dataclass(frozen=True)
class Update:
    """One update of this rank: the weight of each micro-batch's loss, its samples here, and the samples of all ranks.

    Weights are such that the gradients, averaged over ranks, are those of the mean over all samples.
    """

    weights: tuple[float, ...]
    sizes: tuple[int, ...]
    samples: int


class TrainSampler(Sampler[list[int]]):
    """Yields this rank's micro-batches of one epoch as lists of dataset indices, from `position` on.

    length: samples in the dataset. batch_size: samples of an update, over all ranks. micro_batch_size: samples
    of a micro-batch. position: samples of the epoch already used, over all ranks; a multiple of batch_size.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        micro_batch_size: int,
        world: World,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        if length < world.size:
            raise TrainingError(
                f"the train dataset has {length} samples for {world.size} workers; use fewer workers or more data"
            )
        if drop_last and length < batch_size:
            raise TrainingError(
                f"the train dataset has {length} samples, less than one batch of {batch_size}, and data.drop_last"
                " leaves out what does not fill one; use a smaller train.batch_size"
            )
        self._length = length - length % batch_size if drop_last else length
        self._total = length
        self._batch = batch_size
        self._micro = micro_batch_size
        self._world = world
        self._seed = seed
        self._shuffle = shuffle
        self.epoch = 1
        self.position = 0
        self._full = self._make_update(0) if self._length >= batch_size else None

    def __len__(self) -> int:
        """The number of updates in an epoch."""
        return ceil(self._length / self._batch)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        for start in range(self.position, self._length, self._batch):
            for first, size in self._parts(start):
                # The sample of a batch of weight zero does not matter; the update's first one is at hand.
                yield order(first, size) if size else order(start, 1)

    @property
    def samples(self) -> int:
        """The samples of an epoch, over all ranks: those of the dataset, but for what `drop_last` leaves out."""
        return self._length

    def updates(self) -> Iterator[Update]:
        """What `__iter__` yields, update by update, as weights and sizes."""
        for start in range(self.position, self._length, self._batch):
            full = start + self._batch <= self._length and self._full is not None
            yield self._full if full and self._full is not None else self._make_update(start)

    def state_dict(self) -> dict[str, int]:
        """The place in the data, in global samples: the same for every rank and any number of ranks."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a place that `state_dict` gave. Costs the same for every position."""
        self.epoch, self.position = state["epoch"], state["position"]

    def _order(self) -> Callable[[int, int], list[int]]:
        """The dataset indices at a run of positions of this epoch, given the first position and how many."""
        if not self._shuffle:
            return lambda first, size: list(range(first, first + size))
        generator = torch.Generator().manual_seed((self._seed << 20) + self.epoch)
        permutation = torch.randperm(self._total, generator=generator)
        return lambda first, size: permutation[first : first + size].tolist()

    def _parts(self, start: int) -> list[tuple[int, int]]:
        """First position and size of each of this rank's micro-batches in the update that begins at `start`."""
        samples = min(self._batch, self._length - start)
        share, over = divmod(samples, self._world.size)
        rank = self._world.rank
        first = start + rank * share + min(rank, over)
        end = first + share + (rank < over)
        largest = share + (over > 0)
        return [(at, max(0, min(self._micro, end - at))) for at in range(first, first + largest, self._micro)]

    def _make_update(self, start: int) -> Update:
        samples = min(self._batch, self._length - start)
        sizes = tuple(size for _, size in self._parts(start))
        return Update(tuple(size * self._world.size / samples for size in sizes), sizes, samples)


class EvaluationSampler(Sampler[list[int]]):
    """Yields this rank's share of a split, in order: every `world.size`-th sample, `batch_size` at a time.

    All ranks yield equally many batches; a rank that has run out yields one sample, of size 0 in `sizes`.
    """

    def __init__(self, length: int, batch_size: int, world: World) -> None:
        if length < 1:
            raise TrainingError("a split to evaluate has no samples; leave it out of evaluate.splits")
        self._mine = range(world.rank, length, world.size)
        self._batch = batch_size
        self._batches = ceil(ceil(length / world.size) / batch_size)

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        for place in range(self._batches):
            yield list(self._mine[place * self._batch : (place + 1) * self._batch]) or [0]

    def sizes(self) -> Iterator[int]:
        """How many samples of each yielded batch count."""
        for place in range(self._batches):
            yield len(self._mine[place * self._batch : (place + 1) * self._batch])


class SampledLoader:
    """The default loader: a `DataLoader` together with the sampler that says which samples come when."""

    def __init__(self, loader: DataLoader[Any], sampler: TrainSampler | EvaluationSampler) -> None:
        self.loader = loader
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.sampler)


def leave_signals_alone(loader: Any) -> None:
    """Have the processes of a `DataLoader` ignore SIGTERM and SIGINT, where `loader` is one, ours or the user's.

    A signal to a whole process group means the worker, which goes on to the end of its step and needs its data.
    """
    inner = loader.loader if isinstance(loader, SampledLoader) else loader
    if isinstance(inner, DataLoader) and inner.num_workers and not isinstance(inner.worker_init_fn, _Shielded):
        inner.worker_init_fn = _Shielded(inner.worker_init_fn)


class _Shielded:
    """A `worker_init_fn`. A class, because it is sent to the processes by pickle where they are not forked."""

    def __init__(self, inner: Callable[[int], None] | None) -> None:
        self._inner = inner

    def __call__(self, number: int) -> None:
        for ignored in (signal.SIGTERM, signal.SIGINT):
            signal.signal(ignored, signal.SIG_IGN)
        if self._inner is not None:
            self._inner(number)


class SampledBatches:
    """The training data of one run where the loader is our own."""

    def __init__(self, loader: SampledLoader) -> None:
        assert isinstance(loader.sampler, TrainSampler)
        self._loader = loader
        self._sampler = loader.sampler
        self._batches: Iterator[Any] = iter(())
        self._used = 0

    @property
    def updates_per_epoch(self) -> int | None:
        """The number of updates in an epoch."""
        return len(self._sampler)

    def begin(self, epoch: int) -> Iterator[Update]:
        """Start `epoch`, at its beginning or where a loaded state says, and go through its updates."""
        if epoch != self._sampler.epoch:
            self._sampler.epoch, self._sampler.position = epoch, 0
        self._used = 0
        self._batches = iter(self._loader)
        return self._sampler.updates()

    def fetch(self) -> Any:
        """The next micro-batch of the update at hand."""
        return next(self._batches)

    def use(self, update: Update) -> None:
        """Count an update that was made: the loader itself may be some batches ahead."""
        self._used += update.samples

    def state_dict(self) -> dict[str, int]:
        """The place in the data after the updates made so far; at the end of an epoch, the beginning of the next."""
        place = self._sampler.state_dict()
        position = place["position"] + self._used
        if position < self._sampler.samples:
            return {**place, "position": position}
        return {"epoch": place["epoch"] + 1, "position": 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a place that `state_dict` gave, when its epoch is begun. To be called before `begin`."""
        self._sampler.load_state_dict(state)


class ForeignBatches:
    """The training data where a plugin brought the loader: any iterable of this rank's micro-batches.

    Loaders may differ in length over ranks: a rank that has run out repeats its last batch with weight zero. Where
    all know their length the ranks compare them once an epoch; else they tell one another before each update
    how many batches they have. A full update is taken to hold `batch_size` samples over all ranks.

    gather: gathers one integer from each rank; None for a single worker.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        batch_size: int,
        micro_batches: int,
        world: World,
        gather: Callable[[int], list[int]] | None,
    ) -> None:
        self._loader = loader
        self._batch_size = batch_size
        self._micro_batches = micro_batches
        self._world = world
        self._gather = gather or (lambda value: [value])
        self._batches: Iterator[Any] = iter(())
        self._last: Any = _NOTHING
        self._full = self._update([micro_batches] * world.size)

    @property
    def updates_per_epoch(self) -> int | None:
        """The number of updates in an epoch where all ranks' loaders know their length, else None."""
        lengths = self._gather(_length(self._loader))
        return None if min(lengths) < 0 else ceil(max(lengths) / self._micro_batches)

    def begin(self, epoch: int) -> Iterator[Update]:
        """Start `epoch` and go through its updates."""
        set_epoch = getattr(self._loader, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
        lengths = self._gather(_length(self._loader))
        self._batches = iter(self._loader)
        return self._by_length(lengths) if min(lengths) >= 0 else self._by_asking()

    def fetch(self) -> Any:
        """The next micro-batch of the update at hand; the last one again where this rank has run out."""
        batch = next(self._batches, _NOTHING)
        if batch is not _NOTHING:
            self._last = batch
        elif self._last is _NOTHING:
            raise TrainingError(f"the train loader of rank {self._world.rank} gave no batch at all")
        return self._last

    def use(self, update: Update) -> None:
        """Nothing to count: where the loader is, only the loader knows."""

    def _by_length(self, lengths: Sequence[int]) -> Iterator[Update]:
        for start in range(0, max(lengths), self._micro_batches):
            if start + self._micro_batches <= min(lengths):
                yield self._full
            else:
                yield self._update([min(self._micro_batches, max(0, length - start)) for length in lengths])

    def _by_asking(self) -> Iterator[Update]:
        source = self._batches
        while True:
            ahead = list(islice(source, self._micro_batches))
            counts = self._gather(len(ahead))
            if not sum(counts):
                return
            self._batches = iter(ahead)
            yield self._update(counts)

    def _update(self, counts: Sequence[int]) -> Update:
        """An update for which rank r has counts[r] micro-batches, which all count alike."""
        mine, total, longest = counts[self._world.rank], sum(counts), max(counts)
        padding = (0,) * (longest - mine)
        samples = self._batch_size * total // (self._micro_batches * self._world.size)
        return Update((self._world.size / total,) * mine + padding, (1,) * mine + padding, samples)


_NOTHING: Any = object()


def batch_size(batch: Any) -> int | None:
    """The number of samples in a batch: the first dimension of the first tensor found in it, or None."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.ndim else 1
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    return next((size for part in parts if (size := batch_size(part)) is not None), None)


def _length(loader: Any) -> int:
    try:
        return len(loader)
    except TypeError:  # an iterable, or a DataLoader over an iterable dataset, without a length
        return -1


def evaluation_batches(loader: Iterable[Any], gather: Callable[[int], list[int]] | None) -> Iterator[tuple[Any, int]]:
    """This rank's batches of a split, each with the number of its samples that count.

    All ranks get equally many; padding counts 0.
    """
    if isinstance(loader, SampledLoader):
        assert isinstance(loader.sampler, EvaluationSampler)
        yield from zip(loader, loader.sampler.sizes(), strict=True)
        return
    batches, last = iter(loader), _NOTHING
    while True:
        batch = next(batches, _NOTHING)
        counts = gather(int(batch is not _NOTHING)) if gather else [int(batch is not _NOTHING)]
        if not sum(counts):
            return
        if batch is not _NOTHING:
            last = batch
            yield batch, batch_size(batch) or 1
        elif last is _NOTHING:
            raise TrainingError("an evaluation loader has no batch at all on one rank, but has on another")
        else:
            yield last, 0
