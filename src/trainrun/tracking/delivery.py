"""Starting the process of a tracker, ending it in time, and what it has left undone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from typing import NamedTuple

from trainrun.rundir.paths import RunPaths
from trainrun.rundir.process import PYTHON
from trainrun.rundir.records import Outcome
from trainrun.tracking.cursor import Cursor
from trainrun.tracking.process import Order
from trainrun.tracking.spool import Spool

_SLACK = 2.0  # seconds beyond its deadline after which a tracker's process is killed


class Delivery(NamedTuple):
    """What has become of a run's records.

    `left` were not sent, because of `trouble`; `ended` is the end that was reported last.
    """

    name: str
    sent: int
    left: int
    ended: str | None
    trouble: str | None

    @property
    def complete(self) -> bool:
        """Whether the tracker has everything, the end included."""
        return not self.left and self.ended is not None

    @classmethod
    def read(cls, paths: RunPaths, name: str) -> Delivery:
        """Read it from the run directory."""
        cursor = Cursor.read(paths.tracker(name))
        left = Spool(paths.metrics).left(cursor.position)
        return cls(name, cursor.sent, left, cursor.ended, cursor.trouble)

    def __str__(self) -> str:
        if self.complete:
            return f"all {self.sent} records were sent"
        what = f"{self.left} of {self.sent + self.left} records" if self.left else "how the run ended"
        return f"{what} could not be sent ({self.trouble or 'there was no response in time'})"


class TrackerProcess:
    """A running process that sends to one tracker. What it prints goes into the run's logs."""

    def __init__(self, paths: RunPaths, order: Order) -> None:
        self.paths = paths
        self._name = order.instance.name
        self._deadline = order.deadline
        paths.trackers.mkdir(mode=0o700, exist_ok=True)
        if not paths.tracker(self._name).exists():
            # Before the process can: it may not come to open its tracker, and `trainrun sync` has to know of it.
            Cursor().write(paths.tracker(self._name))
        with paths.tracker_log(self._name).open("ab") as log:
            self._process = subprocess.Popen(
                [*PYTHON, "-m", "trainrun.tracking"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the client
            )
        self._write(order.to_line())

    def end(self, outcome: Outcome | None) -> None:
        """Have the process send the rest and how the run has ended.

        It leaves within its deadline. Does not wait.
        """
        assert self._process.stdin is not None
        if self._process.stdin.closed:
            return
        if outcome is not None:
            self._write(json.dumps(outcome.to_json(), default=str) + "\n")
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def join(self) -> Delivery:
        """Wait until it has left; return what it has done.

        Waits not beyond its deadline.
        """
        try:
            self._process.wait(self._deadline + _SLACK)
        except subprocess.TimeoutExpired:
            self.kill()
        return Delivery.read(self.paths, self._name)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def kill(self) -> None:
        """End it now.

        What it was about to note may be sent again.
        """
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is gone, which its delivery will show
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
