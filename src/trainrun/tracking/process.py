"""The process that sends to one tracker: `python -m trainrun.tracking`, started by the client.

The packages of trackers start threads and processes, take over exit and signals, and wait for their server when Python
ends. So this is a process of its own. It receives JSON lines on its standard input: first an `Order`, at the end how
the run has ended. When the client dies, its input ends, and it leaves within its deadline, too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TextIO

from trainrun.errors import PluginProblem, Problem
from trainrun.plugin.instance import Instance
from trainrun.plugin.loading import load_plugin
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.records import Outcome
from trainrun.rundir.secrets import scrub
from trainrun.tracking.cursor import sole_sender
from trainrun.tracking.facts import Ending, RunFacts
from trainrun.tracking.plugin import TrackerPlugin
from trainrun.tracking.shipper import Shipper, record_event
from trainrun.tracking.spool import last_values

_LOCK_WAIT = 0.5  # seconds until it is seen whether another process still sends
_PATIENCE = 5.0  # seconds at the end for a tracker that cannot be reached; one that responds has until the deadline
_NICE = 5  # training comes first


@dataclass(frozen=True)
class Order:
    """What the process is to do: send `run` to the tracker `instance`. The deadline counts from the end of input."""

    run: str
    instance: Instance
    resumed: bool
    interval: float
    deadline: float

    def to_line(self) -> str:
        """Return the order as one JSON line."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Parse what `to_line` made."""
        data = json.loads(line)
        return cls(**{**data, "instance": Instance.from_json(data["instance"])})


class Inbox:
    """What comes on the standard input, on a thread of its own.

    At the end of the input it starts the deadline's clock, which ends the process wherever it may be by then.
    """

    def __init__(self, source: TextIO, deadline: float) -> None:
        self._source = source
        self._deadline = deadline
        self._over = threading.Event()
        self.outcome: Mapping[str, Any] | None = None
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Wait until the input has ended; return whether it has.

        There is a limit on the waiting.
        """
        return self._over.wait(seconds)

    def _read(self) -> None:
        for line in self._source:
            self.outcome = json.loads(line)
        clock = threading.Timer(self._deadline, _leave)
        clock.daemon = True
        clock.start()
        self._over.set()


def _leave() -> None:
    """End at once, with all that the tracker has started.

    Otherwise an upload's helpers would outlive the run.
    """
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main() -> None:
    """Send until the input ends, then what is left, and leave."""
    order = Order.from_line(sys.stdin.readline())
    inbox = Inbox(sys.stdin, order.deadline)
    with suppress(OSError):
        os.nice(_NICE)
    try:
        ship(order, inbox)
    except Exception:
        sys.stderr.write(scrub(traceback.format_exc()))
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of the tracker's package may still wait for something


def ship(order: Order, inbox: Inbox) -> None:
    """Send as long as the input is open, then what is left."""
    paths, name = RunPaths(Path(order.run)), order.instance.name
    plugin = load_tracker(order.instance)
    over = False
    while True:
        with sole_sender(paths, name) as alone:
            if alone:
                facts = RunFacts.read(paths, resumed=order.resumed)
                shipper = Shipper(name, plugin.make_tracker(name, paths), facts, record_event(paths, name))
                _send(shipper, order, inbox, paths)
                return
        if over:
            return
        over = inbox.wait(_LOCK_WAIT)


def load_tracker(instance: Instance) -> TrackerPlugin:
    """Return the plugin of an instance.

    Raises PluginProblem if it cannot be loaded, or is no tracker.
    """
    plugin = load_plugin(instance).plugin
    if not isinstance(plugin, TrackerPlugin):
        raise PluginProblem([Problem(instance.where, "is no tracker", instance.switch)])
    return plugin


def _send(shipper: Shipper, order: Order, inbox: Inbox, paths: RunPaths) -> None:
    over = False
    while not over:
        over = inbox.wait(shipper.turn() or order.interval)
    shipper.hurry()
    ending, until = _ending(inbox.outcome, paths), time.monotonic() + _PATIENCE
    while (wait := shipper.turn(final=True, ending=ending)) and (left := until - time.monotonic()) > 0:
        threading.Event().wait(min(wait, left))
    shipper.close()


def _ending(outcome: Mapping[str, Any] | None, paths: RunPaths) -> Ending | None:
    return None if outcome is None else Ending.of(Outcome.from_json(outcome), last_values(paths.metrics))
