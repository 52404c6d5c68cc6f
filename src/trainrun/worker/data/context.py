"""How a loader's processes are made, and how they send what they have loaded.

A worker has several threads when it forks a loader's process. `fork` copies the memory but only one thread. So a lock
that another thread holds in C at that moment is never released in the new process. About one fork in 35,000 has been
seen to stand still before it came back to Python. It has done nothing by then. So each new process reports when it is
about to load, and one that does not report in time is killed and forked again, with the same work.

The queues turn what cannot be pickled into an error. Python's own print it and drop the batch, and the loader waits
forever.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import queue
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import connection, popen_fork, popen_forkserver, popen_spawn_posix, queues
from multiprocessing.context import (
    BaseContext,
    ForkContext,
    ForkProcess,
    ForkServerContext,
    ForkServerProcess,
    SpawnContext,
    SpawnProcess,
)
from typing import TYPE_CHECKING, Any, NoReturn

from torch._utils import ExceptionWrapper

from trainrun.errors import TrainingError, described
from trainrun.worker.data.failure import Failure
from trainrun.worker.data.shield import Shielded

PATIENCE = (3.0, 6.0, 12.0, 24.0)  # seconds that a new process has to report, the first time, the second, …
_LOOK = 1.0  # seconds between two looks at whether the training process is there

Warn = Callable[[str], None]

if TYPE_CHECKING:
    _Queue = queues.Queue[Any]
else:
    _Queue = queues.Queue


def context_for(given: BaseContext | None, warn: Warn) -> BaseContext | None:
    """Return the context for a loader that has `given`.

    None if that is neither Python's default nor one of its own. warn: called with a sentence on each process that is
    replaced.
    """
    if given is not None and type(given) not in (ForkContext, SpawnContext, ForkServerContext):
        return None
    # `get_start_method` without `allow_none` would settle the method for good, before the user has.
    default = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    method = default if given is None else given.get_start_method()
    if method == "fork":
        return _Forking(warn)
    return _Spawning() if method == "spawn" else _Serving()


class LoaderQueue(_Queue):
    """A queue that sends an error in place of what cannot be sent. `last` is what was received last."""

    last: Any = None

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an element, an exception in it as text."""
        if type(obj) is tuple and any(isinstance(part, ExceptionWrapper) for part in obj):
            obj = tuple(Failure.of_wrapper(part) if isinstance(part, ExceptionWrapper) else part for part in obj)
        super().put(obj, block, timeout)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Get the next element."""
        self.last = super().get(block, timeout)
        return self.last

    @property
    def _on_queue_feeder_error(self) -> Callable[[Exception, Any], None]:
        # By a weak reference: the thread that feeds the queue would keep it, and ends only when it is gone.
        return functools.partial(_tell_unsent, weakref.ref(self))


class Unsent:
    """In place of a sampler's element that cannot be sent: the dataset raises when it looks for its samples."""

    def __init__(self, problem: str) -> None:
        self._problem = problem

    def __iter__(self) -> NoReturn:
        raise TrainingError(self._problem)

    def __index__(self) -> NoReturn:
        raise TrainingError(self._problem)

    def __hash__(self) -> NoReturn:
        raise TrainingError(self._problem)


def _tell_unsent(reference: weakref.ref[LoaderQueue], error: Exception, element: Any) -> None:
    """Send why an element was not sent. Called by the thread that feeds the queue."""
    sender = reference()
    if sender is None or type(element) is not tuple:  # bytes, if they could not be written: the reader has gone
        return
    what = described(error)
    if os.getpid() == sender._opid:  # type: ignore[attr-defined]  # the process that made the queue: a sampler's element
        number, *rest = element
        sender.put((number, Unsent(f"what the sampler yields cannot be sent to the loader's processes: {what}")))
        return
    number, batch, *rest = element
    where = f"in loader process {os.getpid()}"
    told = Failure.of(TrainingError(f"a batch, a {type(batch).__name__}, cannot be sent to the worker: {what}"), where)
    sender.put((number, told, *rest))


class _Reporting:
    """What the processes have in common, however they are started."""

    def terminate(self) -> None:
        """Kill it: it ignores SIGTERM, and has nothing to clean up."""
        self.kill()  # type: ignore[attr-defined]

    def run(self) -> None:
        """Load until the end is requested.

        Exceptions other than an `Exception` are sent like one.
        """
        target: Any = self
        found = [part for part in target._args if isinstance(part, LoaderQueue)]
        error: BaseException = KeyboardInterrupt()  # the one after which torch's loop returns with work left
        try:
            super().run()  # type: ignore[misc]
        except BaseException as raised:  # the process door
            if len(found) != 2:
                raise
            error = raised
        if len(found) == 2 and type(found[0].last) is tuple:  # indices, batches: as torch's loop has them
            indices, batches = found
            batches.put((indices.last[0], Failure.of(error, f"in loader process {os.getpid()}")))
            _await_end(indices)


def _await_end(indices: LoaderQueue) -> None:
    """Wait until the loader has taken what was sent.

    It takes a process that has ended for one that has died.
    """
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        with suppress(queue.Empty):
            if indices.get(timeout=_LOOK) is None:
                return


class _ForkedProcess(_Reporting, ForkProcess):
    """reports: the pipe through which the process reports that it has begun."""

    warn: Warn
    reports: tuple[int, int] | None = None

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 - the name in multiprocessing
        return _VerifiedFork(process_obj)

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:
        arguments: Any = self._args  # type: ignore[attr-defined]
        # If torch will call the `worker_init_fn`, that reports: generators are seeded by then, which takes locks.
        if not any(isinstance(part, Shielded) for part in _parts(arguments)):
            self.report()
        code: int = super()._bootstrap(parent_sentinel)  # type: ignore[misc]
        return code

    def report(self) -> None:
        """Report to the training process that this one has begun."""
        pipe, self.reports = self.reports, None
        if pipe is not None:
            os.write(pipe[1], b".")
            _close(*pipe)


def _parts(arguments: Iterable[Any]) -> Iterator[Any]:
    """Yield the arguments, and those bound to functions among them."""
    for argument in arguments:
        yield argument
        if isinstance(argument, functools.partial):
            yield from argument.args


class _Killed:
    """Processes that ignore SIGTERM, and that Python would wait for forever at its end."""

    def terminate(self) -> None:
        """Kill it."""
        self.kill()  # type: ignore[attr-defined]


class _VerifiedFork(_Killed, popen_fork.Popen):
    def _launch(self, process_obj: _ForkedProcess) -> None:
        for number, patience in enumerate(PATIENCE, 1):
            reader, writer = process_obj.reports = os.pipe()
            try:
                super()._launch(process_obj)  # type: ignore[misc]
                if connection.wait([reader, self.sentinel], patience):  # also if it has died, which torch notices
                    return
            finally:
                process_obj.reports = None
                _close(reader, writer)
            process_obj.warn(
                f"a process of a loader stood still when it was forked ({self.pid}, no sign of it in {patience:g} s);"
                f" it was killed{' and forked again' if number < len(PATIENCE) else ''}"
            )
            self._abandon()
        raise TrainingError(
            f"a process of a loader cannot be started: {len(PATIENCE)} forks in a row stood still, as if another thread"
            " had held a lock each time; set data.workers = 0, or, if the dataset can be pickled, have processes"
            ' started another way: multiprocessing.set_start_method("spawn") in the task'
        )

    def _abandon(self) -> None:
        self.kill()
        self.wait()
        self.close()
        self.returncode = None


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class _Spawned(_Killed, popen_spawn_posix.Popen):
    pass


class _SpawnedProcess(_Reporting, SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        return _Spawned(process_obj)


class _Served(_Killed, popen_forkserver.Popen):
    pass


class _ServedProcess(_Reporting, ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        return _Served(process_obj)


class _Queues:
    def Queue(self, maxsize: int = 0) -> LoaderQueue:  # noqa: N802 - the name in multiprocessing
        context: Any = self
        return LoaderQueue(maxsize, ctx=context.get_context())


class _Forking(_Queues, ForkContext):
    def __init__(self, warn: Warn) -> None:
        self._warn = warn

    def Process(self, *arguments: Any, **keywords: Any) -> _ForkedProcess:  # type: ignore[override]  # noqa: N802
        made = _ForkedProcess(*arguments, **keywords)
        made.warn = self._warn
        return made


class _Spawning(_Queues, SpawnContext):
    Process = _SpawnedProcess


class _Serving(_Queues, ForkServerContext):
    Process = _ServedProcess
