"""The processes of a loader: how they are made, and what signals they mind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from trainrun.worker.data.context import context_for
from trainrun.worker.data.sampled import SampledLoader
from trainrun.worker.data.shield import Shielded


def prepare_processes(loader: Any, warn: Callable[[str], None]) -> None:
    """Have a `DataLoader` make processes that training never waits for forever.

    They ignore SIGTERM and SIGINT. A signal to a whole process group means the worker, which needs its data until the
    end of its step. `loader` is trainrun's or the user's. warn: called with a sentence on each process that had to be
    replaced.
    """
    inner = loader.loader if isinstance(loader, SampledLoader) else loader
    if not isinstance(inner, DataLoader) or not inner.num_workers or isinstance(inner.worker_init_fn, Shielded):
        return
    inner.worker_init_fn = Shielded(inner.worker_init_fn)
    context = context_for(inner.multiprocessing_context, warn)
    if context is not None:
        inner.multiprocessing_context = context
