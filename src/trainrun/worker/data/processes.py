"""The processes of a loader: what signals they mind."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from trainrun.worker.data.sampled import SampledLoader
from trainrun.worker.data.shield import Shielded


def leave_signals_alone(loader: Any) -> None:
    """Have the processes of a `DataLoader` ignore SIGTERM and SIGINT, where `loader` is one, ours or the user's.

    A signal to a whole process group means the worker, which goes on to the end of its step and needs its data.
    """
    inner = loader.loader if isinstance(loader, SampledLoader) else loader
    if isinstance(inner, DataLoader) and inner.num_workers and not isinstance(inner.worker_init_fn, Shielded):
        inner.worker_init_fn = Shielded(inner.worker_init_fn)
