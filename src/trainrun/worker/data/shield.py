"""Processes of a loader that ignore what means the worker."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader

IGNORED = (signal.SIGTERM, signal.SIGINT)


class Shielded:
    """A `worker_init_fn`. A class, because it is sent to the processes by pickle if they are not forked."""

    def __init__(self, inner: Callable[[int], None] | None) -> None:
        self._inner = inner

    def __call__(self, number: int) -> None:
        report = getattr(multiprocessing.current_process(), "report", None)  # of those that have to: see `context`
        if report is not None:
            report()
        for ignored in IGNORED:
            signal.signal(ignored, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
        if self._inner is not None:
            self._inner(number)


def iterate(loader: Iterable[Any]) -> Iterator[Any]:
    """Make an iterator, which starts the processes of a `DataLoader`.

    They are born with the signals blocked: torch gives them handlers of its own before they come to ignore these.
    """
    if not (isinstance(loader, DataLoader) and isinstance(loader.worker_init_fn, Shielded)):
        return iter(loader)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def close(batches: Iterator[Any]) -> None:
    """End the processes of an iterator before its end.

    It is not read further. Other objects may still hold the iterator.
    """
    shut_down = getattr(batches, "_shutdown_workers", None)  # of torch's iterators
    if shut_down is not None and not getattr(batches, "_persistent_workers", False):
        shut_down()
