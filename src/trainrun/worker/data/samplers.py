"""Which samples each rank sees in each update, by arithmetic on the global sample position.

An epoch is one permutation of the dataset, a function of seed and epoch alone. Update u of an epoch takes the positions
from u * batch_size on, with any number of ranks. Each rank takes an equal run of them and cuts it into micro-batches.
So each sample is seen exactly once an epoch. A position is reached without walking to it, and another number of ranks
resumes from the same position. If the last update of an epoch leaves a rank without samples it runs a batch of weight
zero. The reason is that every rank must enter every gradient reduction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil

import torch
from torch.utils.data import Sampler

from trainrun.errors import TaskError
from trainrun.worker.data.update import Update
from trainrun.worker.world import World


class TrainSampler(Sampler[list[int]]):
    """Yields this rank's micro-batches of one epoch as lists of dataset indices, from `position` on.

    length: samples in the dataset. batch_size: samples of an update, over all ranks. micro_batch_size: samples
    of a micro-batch. position: samples of the epoch already used, over all ranks.
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
            raise TaskError(
                f"the train dataset has {length} samples for {world.size} workers; use fewer workers or more data"
            )
        self._total = length
        self._micro = micro_batch_size
        self._drop_last = drop_last
        self._world = world
        self._seed = seed
        self._shuffle = shuffle
        self.epoch = 1
        self.position = 0
        self.resize(batch_size)

    def resize(self, batch_size: int) -> None:
        """Take updates of `batch_size` samples, over all ranks, from `position` on.

        Not in the middle of an epoch.
        """
        self._length = self._used_of(batch_size)
        self._batch = batch_size
        self._full = self._make_update(0) if self._length >= batch_size else None

    def updates_with(self, batch_size: int) -> int:
        """Return the number of updates in an epoch of such batches."""
        return ceil(self._used_of(batch_size) / batch_size)

    def __len__(self) -> int:
        """Return the number of updates in an epoch."""
        return self.updates_with(self._batch)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        for start in range(self.position, self._length, self._batch):
            for first, size in self._parts(start):
                # The sample of a batch of weight zero does not matter; the update's first one is at hand.
                yield order(first, size) if size else order(start, 1)

    @property
    def samples(self) -> int:
        """The samples of an epoch, over all ranks.

        These are those of the dataset, except for what `drop_last` leaves out.
        """
        return self._length

    def updates(self) -> Iterator[Update]:
        """Yield what `__iter__` yields, update by update, as weights and sizes."""
        for start in range(self.position, self._length, self._batch):
            full = start + self._batch <= self._length and self._full is not None
            yield self._full if full and self._full is not None else self._make_update(start)

    def indices(self, start: int, micro_batch: int) -> list[int]:
        """Return the dataset indices of one micro-batch.

        It is one of the update that begins at `start`.
        """
        first, size = self._parts(start)[micro_batch]
        return self._order()(first, size) if size else self._order()(start, 1)

    def state_dict(self) -> dict[str, int]:
        """Return the position in the data, in global samples.

        It is the same for every rank and any number of ranks.
        """
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume from a position that `state_dict` returned.

        Costs the same for every position.
        """
        self.epoch, self.position = state["epoch"], state["position"]

    def _order(self) -> Callable[[int, int], list[int]]:
        """Return a function that gives dataset indices at positions.

        It takes the first position of a run in this epoch, and the number of positions.
        """
        if not self._shuffle:
            return lambda first, size: list(range(first, first + size))
        generator = torch.Generator().manual_seed((self._seed << 20) + self.epoch)
        permutation = torch.randperm(self._total, generator=generator)
        return lambda first, size: permutation[first : first + size].tolist()

    def _parts(self, start: int) -> list[tuple[int, int]]:
        """Return first position and size of each of this rank's micro-batches.

        They are those of the update that begins at `start`.
        """
        samples = min(self._batch, self._length - start)
        share, over = divmod(samples, self._world.size)
        rank = self._world.rank
        first = start + rank * share + min(rank, over)
        end = first + share + (rank < over)
        largest = share + (over > 0)
        return [(at, max(0, min(self._micro, end - at))) for at in range(first, first + largest, self._micro)]

    def _used_of(self, batch_size: int) -> int:
        """Return how many samples an epoch uses, over all ranks.

        batch_size: of its batches.
        """
        if not self._drop_last:
            return self._total
        if self._total < batch_size:
            raise TaskError(
                f"the train dataset has {self._total} samples, less than one batch of {batch_size}, and data.drop_last"
                " leaves out what does not fill one; use a smaller train.batch_size"
            )
        return self._total - self._total % batch_size

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
            raise TaskError("a split to evaluate has no samples; leave it out of evaluate.splits")
        self._mine = range(world.rank, length, world.size)
        self._batch = batch_size
        self._batches = ceil(ceil(length / world.size) / batch_size)

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        for place in range(self._batches):
            yield list(self._mine[place * self._batch : (place + 1) * self._batch]) or [0]

    def sizes(self) -> Iterator[int]:
        """Yield how many samples of each yielded batch count."""
        for place in range(self._batches):
            yield len(self._mine[place * self._batch : (place + 1) * self._batch])
