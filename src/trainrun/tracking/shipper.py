"""Moving records from a run's spool to a tracker that may fail meanwhile."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress

from trainrun.rundir.files import append_line
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.secrets import scrub
from trainrun.tracking.cursor import Cursor
from trainrun.tracking.facts import Ending, RunFacts
from trainrun.tracking.spool import Position, Spool
from trainrun.tracking.tracker import Tracker

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0  # seconds between two tries while the tracker cannot be reached
_SHOWN = 300  # characters of an error

Tell = Callable[[str, str], None]


class Shipper:
    """Sends the records of a run to one tracker, a turn at a time.

    Nothing is raised: trouble is kept, and reported once.

    name: the tracker's instance. tell: called with the kind of an event and a reason, when an outage begins and ends.
    """

    def __init__(self, name: str, tracker: Tracker, facts: RunFacts, tell: Tell) -> None:
        self._tracker = tracker
        self._facts = facts
        self._tell = tell
        self._path = facts.paths.tracker(name)
        self._spool = Spool(facts.paths.metrics, whole_steps=tracker.whole_steps)
        self._open = False
        self._wait = 0.0
        self.cursor = Cursor.read(self._path)

    @property
    def troubled(self) -> bool:
        """Whether the last turn ended with an error."""
        return self._wait > 0

    def turn(self, *, final: bool = False, ending: Ending | None = None) -> float:
        """Send what there is; return 0, or seconds until the next turn.

        There is a wait only after trouble. final: nothing will be added to the spool. ending: the run has ended like
        this, and the tracker is to know.
        """
        try:
            self._deliver(final=final or ending is not None)
            if ending is not None:
                self._finish(ending)
        except Exception as error:  # the tracker's own door: any exception of its package is an outage
            return self._failed(error)
        if self.troubled or self.cursor.trouble:
            self._recovered()
        return 0.0

    def hurry(self) -> None:
        """Begin with the shortest wait again: there is little time left."""
        self._wait = 0.0

    def close(self) -> None:
        """Close tracker and spool."""
        self._open = False
        self._spool.close()
        try:
            self._tracker.close()
        except Exception as error:  # it was in trouble, or will be when it is opened again
            _log(f"closing: {_text(error)}")

    def _deliver(self, *, final: bool) -> None:
        if not self._open:
            self._reopen()
        while records := self._spool.batch(self.cursor.position, final=final):
            self.cursor.mark = dict(self._tracker.send(records))
            self.cursor.move(records[-1].end, len(records))
            self.cursor.write(self._path)

    def _reopen(self) -> None:
        mark, has = self._tracker.open(self._facts, dict(self.cursor.mark))
        self._open = True
        self.cursor.mark, self.cursor.ended = dict(mark), None
        if has is not None:
            # It knows better: a worker of its own may have died with records, or delivered some that are not noted.
            self.cursor.move(Position(has + 1, 0))
        self.cursor.write(self._path)

    def _finish(self, ending: Ending) -> None:
        if self.cursor.ended is None:
            self._tracker.finish(ending)
            self.cursor.ended = ending.state
            self.cursor.write(self._path)

    def _failed(self, error: Exception) -> float:
        """Close, so that the next turn begins anew.

        The wait is longer each time.
        """
        self._wait = min(_LONGEST_WAIT, self._wait * 2 or _FIRST_WAIT)
        reason = _text(error)
        self.close()
        before, self.cursor.trouble = self.cursor.trouble, reason
        if before is None:
            _log(f"outage: {reason}")
            self._tell("tracker_outage", f"{reason}; what is logged stays in metrics.jsonl, and is sent later")
        self._note()
        return self._wait

    def _recovered(self) -> None:
        self._wait, self.cursor.trouble = 0.0, None
        _log("it can be reached again")
        self._tell("tracker_back", f"it can be reached again; {self.cursor.sent} records have been sent")
        self._note()

    def _note(self) -> None:
        with suppress(OSError):  # a full disk is reported already; the next delivery writes the cursor again
            self.cursor.write(self._path)


def record_event(paths: RunPaths, name: str) -> Tell:
    """Return a `Tell` that writes into the run's events."""

    def tell(kind: str, reason: str) -> None:
        try:
            append_line(paths.events, {"event": kind, "time": time.time(), "plugin": name, "reason": reason})
        except OSError as error:
            _log(f"{kind} could not be recorded: {error}")

    return tell


def _text(error: Exception) -> str:
    text = " ".join(scrub(str(error)).split())
    return f"{type(error).__name__}: {text if len(text) <= _SHOWN else text[:_SHOWN] + ' …'}"


def _log(text: str) -> None:
    with suppress(OSError):  # a full disk
        sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        sys.stderr.flush()
