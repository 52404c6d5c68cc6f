"""The processes of a loader: what signals they mind."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from trainrun.worker.data.sampled import SampledLoader


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
