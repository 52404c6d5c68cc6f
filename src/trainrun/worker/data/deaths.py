"""The death of a process that loads data.

torch reports it from a handler of SIGCHLD, which raises at any point of the training. In a hook, for example, the
plugin would be blamed for it, and the plugin's policy would swallow the error. So the handler is there only while a
batch is fetched. It is needed then: a process that is killed in the middle of sending leaves this one waiting.
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
    """Return the next of the batches of a loader with `processes` processes.

    Raises what `next` raises.
    """
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
    """Return whether an error means that a loader's process has died.

    The error is one from a `DataLoader`.
    """
    if is_told(error):  # what a dataset raised there
        return False
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    # Tensors are handed over by a connection to the process.
    return isinstance(error, ConnectionError | EOFError)


def died_ahead(loader: DataLoader[Any]) -> str:
    """Describe how far ahead of the current batch the process was.

    It may have been. The text is added to what names that batch.
    """
    most = loader.num_workers * (loader.prefetch_factor or 0)
    return f" or one of the {most} micro-batches after them: one of the processes that load ahead died"


def _tell(*_: object) -> None:
    torch._C._error_if_any_worker_fails()
