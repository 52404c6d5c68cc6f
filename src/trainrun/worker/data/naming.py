"""What describes a loader: its classes, its processes, and whether it knows its position."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from trainrun.worker.data.draws import bare
from trainrun.worker.data.sampled import SampledLoader


def described(loader: Any) -> str:
    """Return the loader's class, and that of its dataset if any."""
    dataset = getattr(loader, "dataset", None)
    return type(loader).__name__ + ("" if dataset is None else f" over {type(bare(dataset)).__name__}")


def processes(loader: Any) -> int:
    """Return the number of processes that load for a loader."""
    return getattr(loader, "num_workers", 0)


def keeper(loader: Any) -> Any:
    """Return the object that saves and restores the loader's position.

    It is the loader itself, or the dataset under it; otherwise None.
    """
    if _keeps(loader):
        return loader
    plain = isinstance(loader, DataLoader) and not loader.num_workers and isinstance(loader.dataset, IterableDataset)
    return loader.dataset if plain and _keeps(loader.dataset) else None


def resumable(loader: Any) -> str | None:
    """Explain what a resume does if the loader's position cannot be saved.

    The loader is a train loader. None if its position can be saved.
    """
    if isinstance(loader, SampledLoader | list | tuple) or keeper(loader) is not None:
        return None
    return (
        f"the train loader, {described(loader)}, has no state_dict and load_state_dict, so its position cannot be"
        " saved: a resume re-reads and skips the batches already used, and needs the same number of workers"
    )


def _keeps(value: Any) -> bool:
    return all(callable(getattr(value, name, None)) for name in ("state_dict", "load_state_dict"))
