"""When a training saves, and what it waits for: the copy, and a save before that has not ended."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Unfinished
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING

from trainrun.checkpoint import layout
from trainrun.worker.checkpoint import snapshot
from trainrun.worker.checkpoint.finite import NOT_FINITE
from trainrun.worker.checkpoint.staging import Staging
from trainrun.worker.checkpoint.writer import NotFinite, SaveFailed, Writer

if TYPE_CHECKING:
    from trainrun.worker.session import Session

SOURCE = "checkpoint"  # as whose decisions those about saves are known

_LOOK = 0.2  # seconds between two signs of life while training waits
_PATIENCE = 1800.0  # seconds of waiting after which training does not count as alive any more


@dataclass(frozen=True)
class Saved:
    """How a save ended: the path, or why there is none. seconds: from the copy to the end.

    finite: False if there is none because what it would keep is not finite.
    """

    step: int
    path: Path | None
    problem: str | None
    seconds: float
    finite: bool = True


class Saver:
    """The saves of one rank, one at a time. All ranks call it at the same steps.

    told: called on a thread of this class with the end of each save in the background; None on all ranks but 0.
    """

    def __init__(self, writer: Writer, told: Callable[[Saved], None] | None) -> None:
        self._writer = writer
        self._told = told
        self._staging = Staging()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[Saved] | None = None

    def save(self, session: Session, reason: str) -> float:
        """Copy the state and write it in the background.

        Returns the seconds that training has waited.
        """
        began = perf_counter()
        self.wait(session)
        self._running = self._pool.submit(self._run, self._copy(session, reason), self._told)
        return perf_counter() - began

    def save_now(self, session: Session, reason: str) -> Saved:
        """Copy, write, and wait until it is published, or not."""
        self.wait(session)
        self._running = self._pool.submit(self._run, self._copy(session, reason), None)
        ended = self.wait(session)
        assert ended is not None
        return ended

    def wait(self, session: Session) -> Saved | None:
        """Wait for the save that is running, if one is.

        Training counts as alive meanwhile, though not forever.
        """
        running, pulse, until = self._running, session.state.pulse, monotonic() + _PATIENCE
        if running is None:
            return None
        while not running.done():
            try:
                running.exception(timeout=_LOOK)
            except Unfinished:
                if monotonic() < until:
                    pulse.advance()
        self._running = None
        return running.result()

    def _copy(self, session: Session, reason: str) -> snapshot.Snapshot:
        self._writer.stages("copy", session.state.step)
        return snapshot.take(session, self._staging, reason)

    def _run(self, taken: snapshot.Snapshot, told: Callable[[Saved], None] | None) -> Saved:
        began, finite = perf_counter(), True
        try:
            path, problem = self._writer.write(taken), None
        except NotFinite as error:
            path, problem, finite = None, f"{NOT_FINITE}{error}", False
        except SaveFailed as error:
            path, problem = None, str(error)
        ended = Saved(taken.step, path, problem, perf_counter() - began, finite)
        if told is not None:
            told(ended)
        return ended


def folder(step: int) -> str:
    """Return the key of decisions about the save of a step."""
    return layout.folder_name(step)
