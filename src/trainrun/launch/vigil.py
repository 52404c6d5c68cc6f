"""What the client makes of the workers' pulses: an attempt that hangs is ended, a slow rank is reported."""

from __future__ import annotations

import time

from trainrun.launch.ends import read_records
from trainrun.launch.handle import Launch
from trainrun.launch.nodes.messages import Dump
from trainrun.launch.stragglers import Straggler, Stragglers
from trainrun.launch.terminal import Say
from trainrun.launch.watchdog import Hang, Watchdog
from trainrun.rundir.files import append_line


class Hung(Exception):
    """No rank of an attempt advances."""

    def __init__(self, hang: Hang) -> None:
        super().__init__(hang.message)
        self.hang = hang


class Vigil:
    """The watch over one attempt, from its start on."""

    def __init__(self, launch: Launch, say: Say) -> None:
        table = launch.recipe.launch
        self._launch = launch
        self._say = say
        self._ranks = range(launch.workers * table.nodes)
        self._dog = Watchdog(launch.paths, launch.attempt, self._ranks, table.timeout)
        self._stragglers = Stragglers(table.straggler)

    def look(self) -> None:
        """Look once. Raises `Hung`, with the stacks of all workers already written."""
        now = time.monotonic()
        hang = self._dog.poll(now)
        if hang is not None:
            self._say(f"{hang.message}; ending the attempt")
            raise Hung(self._dump(hang))
        for straggler in self._stragglers.look(now, self._dog.beats):
            self._tell(straggler)

    def _dump(self, hang: Hang) -> Hang:
        current = self._launch
        if current.hub is not None:
            current.hub.tell(Dump(attempt=current.attempt))
        elsewhere = [rank for rank in self._ranks if rank not in current.ranks]
        return self._dog.dump(hang, read_records(current.paths, current.attempt, current.ranks), elsewhere)

    def _tell(self, straggler: Straggler) -> None:
        self._say(f"warning: {straggler.message}")
        event = {"event": "straggler", "time": time.time(), "attempt": self._launch.attempt, **straggler._asdict()}
        append_line(self._launch.paths.events, {**event, "reason": straggler.message})
