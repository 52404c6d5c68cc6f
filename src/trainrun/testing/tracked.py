"""Sending a run to a tracker in a test of its plugin, without a launch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainrun.plugin.instance import Instance
from trainrun.rundir import Outcome, RunPaths
from trainrun.rundir.files import append_line, read_lines, write_json
from trainrun.tracking.cursor import Cursor
from trainrun.tracking.delivery import Delivery, TrackerProcess
from trainrun.tracking.process import Order


def wait_until(condition: Callable[[], object], seconds: float = 90.0) -> None:
    """Wait for a condition.

    Raises AssertionError if it has not come after `seconds` seconds.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to this"
        time.sleep(0.02)


class TrackedRun:
    """A run directory as a launch makes it, and the process that sends it: `start` starts it, `end` waits for it.

    root: the run directory. use: the tracker's plugin, as `module:Class`. options: those of its table.
    """

    def __init__(self, root: Path, use: str, options: dict[str, Any]) -> None:
        self.paths = RunPaths(root)
        self._instance = Instance(use.rpartition(":")[2].lower(), "plugin", use, options=options)
        self._senders: list[TrackerProcess] = []
        for folder in (root, self.paths.logs, self.paths.attempts, self.paths.trackers):
            folder.mkdir(parents=True, exist_ok=True)
        self.paths.recipe.write_text('[run]\nname = "digits"\n\n[optimizer]\nlr = 0.1\nbetas = [0.9, 0.99]\n')
        write_json(self.paths.manifest, {"git": {"commit": "abc"}, "instances": [self._instance.to_json()]})

    def log(self, *steps: int, **metrics: float) -> None:
        """Add a record for each step to `metrics.jsonl`.

        It has a loss if no metrics are given.
        """
        for step in steps:
            values = metrics or {"train/loss": 1.0 / step}
            append_line(self.paths.metrics, {"step": step, "time": 1_700_000_000.5 + step, **values})

    def start(self, *, resumed: bool = False, deadline: float = 60.0) -> TrackerProcess:
        """Start the process. deadline: seconds that it has at the end."""
        order = Order(str(self.paths.root), self._instance, resumed, 0.1, deadline)
        self._senders.append(TrackerProcess(self.paths, order))
        return self._senders[-1]

    def end(self, state: str = "finished", code: int = 0) -> Delivery:
        """Report the end of the run to the process.

        Wait for what it could deliver, and return it.
        """
        outcome = Outcome(state, code, f"it {state}", step=9)  # type: ignore[arg-type]
        self._senders[-1].end(outcome)
        return self._senders[-1].join()

    @property
    def cursor(self) -> Cursor:
        """How far the tracker has got."""
        return Cursor.read(self.paths.tracker(self._instance.name))

    @property
    def events(self) -> list[str]:
        """The kinds of the run's events."""
        return [event["event"] for event in read_lines(self.paths.events)[0]]

    def close(self) -> None:
        """Kill what still runs."""
        for sender in self._senders:
            sender.kill()
