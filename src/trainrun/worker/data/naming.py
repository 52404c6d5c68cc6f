"""How a loader is told from others: its classes, its processes, and whether it can say where it is."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from trainrun.worker.data.draws import bare
from trainrun.worker.data.sampled import SampledLoader


def described(loader: Any) -> str:
    """The loader's class, and that of the dataset under it where there is one."""
    dataset = getattr(loader, "dataset", None)
    return type(loader).__name__ + ("" if dataset is None else f" over {type(bare(dataset)).__name__}")


def processes(loader: Any) -> int:
    """The processes that load for it."""
    return getattr(loader, "num_workers", 0)


def keeper(loader: Any) -> Any:
    """What says where the loader is, and takes it there: the loader itself, or the dataset under it; else None."""
    if _keeps(loader):
        return loader
    plain = isinstance(loader, DataLoader) and not loader.num_workers and isinstance(loader.dataset, IterableDataset)
    return loader.dataset if plain and _keeps(loader.dataset) else None


def resumable(loader: Any) -> str | None:
    """Where the place of a train loader cannot be saved, a sentence that says so and what a resume does instead."""
    if isinstance(loader, SampledLoader | list | tuple) or keeper(loader) is not None:
        return None
    return (
        f"the train loader, {described(loader)}, has no state_dict and load_state_dict, so its position cannot be"
        " saved: a resume re-reads and skips the batches already used, and needs the same number of workers"
    )


def _keeps(value: Any) -> bool:
    return all(callable(getattr(value, name, None)) for name in ("state_dict", "load_state_dict"))
