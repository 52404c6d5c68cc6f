"""Random draws of a dataset in the processes of a loader, such that a resume within an epoch repeats none of them."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset, get_worker_info

from trainrun.worker.data.items import Items
from trainrun.worker.data.stream import seed_generators

_STRIDE = 1_000_003  # a prime, so that neighbouring samples of neighbouring epochs get different seeds


class Reseeded(Dataset[Any]):
    """A map-style dataset whose draws depend on the run's seed, the epoch and the samples of a micro-batch only.

    A loader's process would continue its own draws, which no checkpoint knows, and which depend on the number of
    processes. In the training's own process the generators are in the checkpoint, and are left alone.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """Return the samples of a micro-batch; `DataLoader` calls this."""
        process = get_worker_info()
        if process is not None and indices:
            seed_generators((process.seed - process.id) * _STRIDE + indices[0])
        together = getattr(self.dataset, "__getitems__", None)
        return together(indices) if together is not None else [self.dataset[index] for index in indices]


def bare(dataset: Any) -> Any:
    """Return the dataset that the task made."""
    return dataset.dataset if isinstance(dataset, Reseeded | Items) else dataset
