"""Writing files on a thread, so that training does not wait for devices and disks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import torch

_WAITING = 16  # jobs that may wait; then a caller that brings more waits too, so that memory is bounded
_CLOSING = 60.0  # seconds in which what is left is done

Job = Callable[[], None]


class FileWriter:
    """Does jobs in order on a thread of its own. What one of them raises is raised at the next `put` or `finish`."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.Queue[Job | None] = queue.Queue(_WAITING)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, job: Job) -> None:
        """Have a job done; wait if too many are waiting."""
        self._raise()
        self._jobs.put(job)

    def finish(self) -> None:
        """Wait until all jobs are done."""
        self._jobs.join()
        self._raise()

    def close(self, seconds: float = _CLOSING) -> None:
        """Do what is left, and end the thread.

        One that has not ended in time ends with the process.
        """
        deadline = monotonic() + seconds
        with suppress(queue.Full):
            self._jobs.put(None, timeout=seconds)
            self._thread.join(max(0.0, deadline - monotonic()))
        if self._thread.is_alive():
            raise TimeoutError(
                f"{self._thread.name}: not all is written {seconds:g} s after training; check the disk, or look"
                " for a device that does not respond"
            )

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception as error:  # for the training thread to raise, within the plugin's policy
                self._error = self._error or error
            finally:
                self._jobs.task_done()


def save(path: Path, value: Any) -> None:
    """Write with torch.save, whole or not at all. Tensors come to the host here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    torch.save(on_host(value), scratch)
    scratch.replace(path)


def kept(value: Any) -> Any:
    """Return a copy of nested tensors that later changes cannot reach.

    Mappings, lists and tuples may be nested. The copy has no gradients.
    """
    return _mapped(value, lambda tensor: tensor.detach().clone())


def on_host(value: Any) -> Any:
    """Return a copy on the CPU. Waits for the device."""
    return _mapped(value, lambda tensor: tensor.cpu())


def size_of(value: Any) -> int:
    """Return the bytes of all tensors in nested mappings, lists and tuples."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return sum(size_of(part) for part in parts)


def _mapped(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, function) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, function) for item in value]
    if isinstance(value, tuple):
        return tuple(_mapped(item, function) for item in value)
    return value
