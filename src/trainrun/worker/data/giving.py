"""Loaders of data that several ranks or processes would read whole: each sample is given out once, or the run says how.

Whether something is a share already, or the whole, is said by `sharded` (True or False) on a loader, its dataset or its
sampler. Samplers that have `num_replicas`, such as torch's DistributedSampler, give out shares.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from trainrun.errors import TaskError
from trainrun.worker.data.digest import digest
from trainrun.worker.data.fingerprint import length_of
from trainrun.worker.data.items import Items, KeptItems, Plan, Share
from trainrun.worker.data.sampled import SampledLoader
from trainrun.worker.data.stream import Generators
from trainrun.worker.world import World

Gather = Callable[[object], list[object]]


def said(*parts: Any, name: str = "sharded") -> bool | None:
    """Return the first bool that a part has as the attribute `name`.

    None if none has.
    """
    found = (getattr(part, name, None) for part in parts)
    return next((value for value in found if isinstance(value, bool)), None)


def consumers(world: World, processes: int) -> int:
    """Return how many would read a dataset.

    That is each rank, or each of its loader processes.
    """
    return world.size * max(1, processes)


def require_said(sharded: bool | None, dataset: Any, world: World, processes: int, where: str) -> None:
    """Raise TrainingError unless an iterable dataset says how it is shared.

    It must say so if several would read it.
    """
    count = consumers(world, processes)
    if sharded is not None or count == 1:
        return
    readers = f"workers: {world.size}" + (f", loader processes of each: {processes}" if processes else "")
    raise TaskError(
        f"{where}: the dataset, {type(dataset).__name__}, is iterable, and {count} copies of it would be read"
        f" ({readers}); say on it what a copy yields: `sharded = False` if all samples, in the same order in each copy,"
        " so that trainrun gives each sample out once, or `sharded = True` if only the share of its worker"
        " (run.world.rank of run.world.size) and of its loader process (torch.utils.data.get_worker_info())"
    )


def items(dataset: Any, plan: Plan, collate: Any = None) -> Items:
    """Return what a loader reads in place of an iterable dataset."""
    keeps = all(callable(getattr(dataset, name, None)) for name in ("state_dict", "load_state_dict"))
    return (KeptItems if keeps and not (plan.deals and plan.drop_last) else Items)(dataset, plan, collate)


def whole_length(loader: Any) -> int | None:
    """Return the length of a dataset that each rank must have whole.

    It is that of a loader. None if each rank need not have the whole of it, or if the length is not known.
    """
    if isinstance(loader, SampledLoader):
        return len(loader.loader.dataset)  # type: ignore[arg-type]
    if not isinstance(loader, DataLoader):
        return None
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset):
        source = dataset.dataset if isinstance(dataset, Items) else dataset
        return length_of(source) if said(loader, source) is False else None
    samplers = (loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    return length_of(dataset) if any(hasattr(one, "num_replicas") for one in samplers) else None


def require_one_length(lengths: Sequence[object], where: str) -> None:
    """Raise TrainingError if ranks have other lengths than rank 0.

    lengths: of each rank, in their order.
    """
    ranks: dict[object, list[str]] = {}
    for rank, length in enumerate(lengths):
        ranks.setdefault(length, []).append(str(rank))
    if len(ranks) == 1:
        return
    found = "; ".join(
        f"{'no known length' if length is None else f'{length} samples'} on rank{'s' * (len(same) > 1)} {_few(same)}"
        for length, same in ranks.items()
    )
    raise TaskError(
        f"{where}: the dataset has not the same length on all workers: {found}; each worker must build the whole"
        " dataset, of which it is given its share: look for what differs (files of its own machine, a filter, chance),"
        " or, if each has its own share, return an iterable dataset or a loader with `sharded = True`"
    )


def _few(ranks: Sequence[str]) -> str:
    most = 8
    return ", ".join(ranks[:most]) + (f" and {len(ranks) - most} more" if len(ranks) > most else "")


class Dealt(Sampler[Any]):
    """Every `world.size`-th element of a sampler that all ranks go through alike: batches of indices, or indices."""

    def __init__(self, inner: Any, world: World, seed: int) -> None:
        self.inner = inner
        self._world = world
        self._seed = seed
        self._epoch = 0
        self._generators = Generators()

    @property
    def sampler(self) -> Any:
        """The sampler under a batch sampler."""
        return getattr(self.inner, "sampler", self.inner)

    def set_epoch(self, epoch: int) -> None:
        """Pass the coming epoch to the sampler, if it takes it."""
        self._epoch = epoch
        set_epoch = getattr(self.inner, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)

    def __len__(self) -> int:
        return max(0, -(-(len(self.inner) - self._world.rank) // self._world.size))

    def __iter__(self) -> Iterator[Any]:
        self._generators.seed((self._seed << 20) + self._epoch)
        elements: Iterator[Any] | None = None
        while True:
            with self._generators:
                elements = iter(self.inner) if elements is None else elements
                dealt = list(islice(elements, self._world.size))
            if len(dealt) <= self._world.rank:
                return
            yield dealt[self._world.rank]


class Giver:
    """Sees to it that loaders of the task's own give each sample out once.

    runs: micro-batches of an update on each rank. gather: gathers a JSON value from all ranks; None for one worker.
    """

    def __init__(self, world: World, seed: int, gather: Gather | None) -> None:
        self._world = world
        self._seed = seed
        self._gather = gather

    def given(self, loader: Any, where: str, runs: int) -> Any:
        """Return a loader of this rank's share: `loader`, or one like it.

        Raises TrainingError if it is unknown whether `loader` is one of a share. It raises it too if ranks have
        datasets of different lengths, of which they would not have one share each.
        """
        if self._gather is not None:
            require_one_length(self._gather(whole_length(loader)), where)
        if not isinstance(loader, DataLoader):
            return loader
        if isinstance(loader.dataset, Items):  # trainrun's own
            source = loader.dataset.dataset
            require_said(said(source), source, self._world, loader.num_workers, where)
            return loader
        if isinstance(loader.dataset, IterableDataset):
            return self._iterable(loader, where, runs)
        return loader if self._world.size == 1 else self._indexed(loader, where)

    def _iterable(self, loader: DataLoader[Any], where: str, runs: int) -> Any:
        dataset, processes = loader.dataset, loader.num_workers
        sharded = said(loader, dataset)
        require_said(sharded, dataset, self._world, processes, where)
        if sharded is not False or consumers(self._world, processes) == 1:
            return loader
        _require_plain(loader, where)
        share = Share(self._world.rank, self._world.size, loader.batch_size or 1, runs)
        plan = Plan(share, deals=True, gathers=False, seed=self._seed, where=where)
        return _like(loader, items(dataset, plan), batch_size=loader.batch_size, drop_last=loader.drop_last)

    def _indexed(self, loader: DataLoader[Any], where: str) -> Any:
        sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        samplers = (sampler, getattr(sampler, "sampler", None))
        sharded = said(loader, loader.dataset, *samplers)
        if sharded or any(hasattr(one, "num_replicas") for one in samplers):
            return loader
        if sharded is None and not (_is_whole(samplers) and self._all_alike(loader, sampler)):
            raise TaskError(
                f"{where}: build_dataloader returned a DataLoader with a {_named(samplers)}, and it is not known"
                f" whether its {self._world.size} workers have the same samples or each its share; let build_dataset"
                " return the dataset and leave out build_dataloader, or give the loader a DistributedSampler, or say on"
                " the loader, its dataset or its sampler: `sharded = True` if it has only the share of its worker,"
                " `sharded = False` if all workers have the same and trainrun is to give each batch to one of them"
            )
        _require_plain(loader, where)
        dealt = Dealt(sampler, self._world, self._seed)
        if loader.batch_sampler is None:
            return _like(loader, loader.dataset, batch_size=None, sampler=dealt)
        return _like(loader, loader.dataset, batch_sampler=dealt)

    def _all_alike(self, loader: DataLoader[Any], sampler: Any) -> bool:
        """Return whether all ranks would begin with the same samples.

        Reads some of them. Call it on all ranks alike.
        """
        assert self._gather is not None
        generators = Generators()
        generators.seed(self._seed)
        with generators:
            first = next(iter(sampler), None)
            found = first[:_PROBED] if isinstance(first, list) and loader.batch_sampler is not None else [first]
            samples = [loader.dataset[index] for index in found] if first is not None else []
        described = [length_of(loader.dataset), length_of(sampler), repr(first), _seeds(loader, sampler)]
        described.append(_digest(samples, self._world.rank))
        everybody = self._gather(described)
        return all(other == everybody[0] for other in everybody)


_PROBED = 3


def _is_whole(samplers: tuple[Any, Any]) -> bool:
    """Return whether these are torch's own samplers, which know of no ranks."""
    own = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler, BatchSampler)
    return all(one is None or type(one) in own or isinstance(one, list | range) for one in samplers)


def _named(samplers: tuple[Any, Any]) -> str:
    inner = samplers[1] if type(samplers[0]) is BatchSampler else samplers[0]
    return type(inner).__name__


def _seeds(loader: DataLoader[Any], sampler: Any) -> list[int]:
    parts = (loader, sampler, getattr(sampler, "sampler", None))
    found = [getattr(part, "generator", None) for part in parts]
    return [generator.initial_seed() for generator in found if generator is not None]


class _Contents(pickle.Pickler):
    """Pickles tensors by their contents: torch's own way differs from process to process."""

    def reducer_override(self, value: Any) -> Any:
        return (str, (digest(value)["hash"],)) if isinstance(value, torch.Tensor) else NotImplemented


def _digest(samples: list[Any], rank: int) -> str:
    pickled = io.BytesIO()
    try:
        _Contents(pickled).dump(samples)
    except (pickle.PicklingError, TypeError, AttributeError):
        return f"what rank {rank} has cannot be compared"
    return hashlib.sha256(pickled.getvalue()).hexdigest()


def _require_plain(loader: DataLoader[Any], where: str) -> None:
    if type(loader) is not DataLoader:
        raise TaskError(
            f"{where}: build_dataloader returned a {type(loader).__name__} over data that all workers have; trainrun"
            " can give it out only from a plain DataLoader: return one, or give this one a distributed sampler, or a"
            " dataset that yields the worker's share, and say `sharded = True` on it"
        )


def _like(loader: DataLoader[Any], dataset: Any, **options: Any) -> DataLoader[Any]:
    same = (
        "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator",
        "prefetch_factor", "persistent_workers", "in_order",
    )  # fmt: skip
    return DataLoader(dataset, **{name: getattr(loader, name) for name in same}, **options)
