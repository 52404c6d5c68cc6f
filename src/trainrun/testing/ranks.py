"""Ranks that are forked from a test's own process: they start in milliseconds, and share a gloo group."""

from __future__ import annotations

import itertools
import math
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from trainrun.worker.parent import die_with_parent

_PATIENCE = 60.0  # seconds until forked ranks are killed
_PEERS = 10.0  # the same, once one of them has failed


class RankError(Exception):
    """What a forked rank raised. `kind` is its type's name, `message` its text; the traceback comes with both.

    at: seconds on the machine's clock, by which the first failure is distinguished from what followed from it.
    """

    def __init__(self, kind: str, message: str, details: str, at: float = math.inf) -> None:
        super().__init__(f"{kind}: {message}\n{details}")
        self.kind = kind
        self.message = message
        self.at = at


class ForkedRanks:
    """Calls a function on several ranks. Files are below `folder`.

    Threads do not survive a fork: torch must have been set to use one (`torch.set_num_threads(1)`).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def __call__(self, job: Callable[[int], Any], size: int = 2, *, group: bool = True) -> list[Any]:
        """Call `job(rank)` on `size` ranks; return the results.

        A result is what `job` returned, or the `RankError` that it raised. What comes back is pickled. group: with a
        process group. No process is left behind.
        """
        store = self._folder / f"store-{next(self._numbers)}"
        pids: dict[int, Connection] = {}
        for rank in range(size):
            ours, theirs = Pipe(duplex=False)
            pid = os.fork()
            if pid == 0:
                _child(theirs, job, rank, size, store if group else None)
            theirs.close()
            pids[pid] = ours
        try:
            return _gathered(list(pids.values()))
        finally:
            for pid, connection in pids.items():
                connection.close()
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


class _Raised(NamedTuple):
    kind: str
    message: str
    details: str
    at: float


def _child(connection: Connection, job: Callable[[int], Any], rank: int, size: int, store: Path | None) -> None:
    die_with_parent()
    try:
        if store is not None:
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
        answer = pickle.dumps(job(rank))
    except BaseException as error:  # the process door: the parent gets it as a value
        answer = pickle.dumps(_Raised(type(error).__name__, str(error), traceback.format_exc(), time.monotonic()))
        connection.send_bytes(answer)
        os._exit(1)  # at once, so that peers see that it is gone
    connection.send_bytes(answer)
    signal.pause()  # peers may still need this rank's connections; the parent ends it


def _gathered(connections: Sequence[Connection]) -> list[Any]:
    answers: dict[Connection, Any] = {}
    patience = _PATIENCE
    while len(answers) < len(connections):
        ready = wait([one for one in connections if one not in answers], patience)
        if not ready:
            break
        for connection in ready:
            assert isinstance(connection, Connection)
            answers[connection] = _received(connection)
            patience = _PEERS if isinstance(answers[connection], RankError) else patience
    return [answers.get(one, RankError("Hang", "the rank did not end in time", "")) for one in connections]


def _received(connection: Connection) -> Any:
    try:
        answer = pickle.loads(connection.recv_bytes())  # noqa: S301 - from a process that was forked here
    except EOFError:
        return RankError("Died", "the rank died without a result", "")
    return RankError(*answer) if isinstance(answer, _Raised) else answer
