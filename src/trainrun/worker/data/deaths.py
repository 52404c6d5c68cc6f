"""The death of a process that loads data.

torch tells it from a handler of SIGCHLD, which raises wherever the training is at that moment: in a hook, say, whose
plugin would be blamed for it, and the error swallowed by that plugin's policy. So the handler is there only while a
batch is fetched. That it is there matters: a process that is killed in the middle of sending leaves this one waiting.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from trainrun.worker.data.failure import is_told


def fetched(batches: Iterator[Any], processes: int) -> Any:
    """The next of the batches of a loader with so many processes. Raises what `next` raises."""
    if not processes or threading.current_thread() is not threading.main_thread():
        return next(batches)
    previous = signal.signal(signal.SIGCHLD, _tell)
    ours = getattr(previous, "__module__", None) == signal_handling.__name__
    try:
        torch._C._error_if_any_worker_fails()  # since the last batch
        return next(batches)
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if ours else previous)


def is_death(error: BaseException) -> bool:
    """Whether an error from a `DataLoader` says that a process of its own has died."""
    if is_told(error):  # what a dataset raised there
        return False
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    # Tensors are handed over by a connection to the process.
    return isinstance(error, ConnectionError | EOFError)


def died_ahead(loader: DataLoader[Any]) -> str:
    """How far ahead of the batch at hand the process may have been, to be added to what names that one."""
    most = loader.num_workers * (loader.prefetch_factor or 0)
    return f" or one of the {most} micro-batches after them: one of the processes that load ahead died"


def _tell(*_: object) -> None:
    torch._C._error_if_any_worker_fails()
