"""Noticing that workers run but do nothing any more, and learning where they are before they are ended.

Another process looks, from outside: a worker that sleeps, spins, was stopped or never lets go of the interpreter's lock
could not tell by itself.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from trainrun.rundir import process
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.pulse import STACKS_SIGNAL, Beat, read_pulse
from trainrun.rundir.records import WorkerRecord

_PACE = 0.25  # seconds between two looks
_LONGEST = 1.0  # seconds that count between two looks: while this process was itself stopped it saw nothing
_WRITING = 2.0  # seconds that all workers together have to write their stacks
_LOOK = 0.05
_NAMED = 8  # ranks named in a row


class Where(NamedTuple):
    """Where one rank was when nothing went on. `beat` is None where it has not begun."""

    rank: int
    beat: Beat | None
    stopped: bool = False
    stacks: Path | None = None

    @property
    def place(self) -> str:
        """What the rank does and where, in words that follow its name."""
        if self.beat is None:
            return "has not begun"
        verb = "is stopped" if self.stopped else "waits" if self.beat.waiting else "sits"
        return f"{verb} {self.beat.place}"


class Hang(NamedTuple):
    """No rank advanced for `seconds`. `ranks` is everybody, `blamed` those that the others seem to wait for."""

    seconds: float
    ranks: tuple[Where, ...]

    @property
    def blamed(self) -> tuple[Where, ...]:
        """The stopped ranks; else the ones furthest behind, and of these those that do not wait for others."""
        found = [where for where in self.ranks if where.stopped]
        if not found:
            least = min(_advances(where) for where in self.ranks)
            found = [where for where in self.ranks if _advances(where) == least]
        own = [where for where in found if where.beat is not None and not where.beat.waiting]
        named = [where for where in own if where.beat is not None and where.beat.hook is not None]
        return tuple(named or own or found)

    @property
    def message(self) -> str:
        """Everything in one line."""
        blamed = self.blamed
        others = [where for where in self.ranks if where not in blamed]
        stacks = [where.stacks for where in self.ranks if where.stacks is not None]
        parts = [f"no rank advanced for {self.seconds:g} s: {_told(blamed)}"]
        if others:
            parts.append(_told(others))
        if stacks:
            attempt = stacks[0].parent
            parts.append(f"stacks: {attempt.parent.name}/{attempt.name}/stacks-*.txt")
        return "; ".join(parts)


class Watchdog:
    """Watches the workers `ranks` of one attempt. timeout: seconds without any advance that make a hang, 0 for never.

    Made when the attempt begins: the time until a worker shows itself counts too.
    """

    def __init__(self, paths: RunPaths, attempt: int, ranks: Sequence[int], timeout: float) -> None:
        self._paths = paths
        self._attempt = attempt
        self._ranks = ranks
        self._timeout = timeout
        self._idle = 0.0
        self._looked: float | None = None
        self.beats: dict[int, Beat] = {}

    def poll(self, now: float) -> Hang | None:
        """Look, if it is time to. now: seconds of the monotonic clock."""
        if self._looked is not None and now - self._looked < _PACE:
            return None
        passed = 0.0 if self._looked is None else min(now - self._looked, _LONGEST)
        self._looked = now
        before, self.beats = self.beats, self._read()
        advanced = {rank: beat.advances for rank, beat in before.items()} != {
            rank: beat.advances for rank, beat in self.beats.items()
        }
        self._idle = 0.0 if advanced else self._idle + passed
        if not self._timeout or self._idle < self._timeout:
            return None
        return Hang(self._timeout, tuple(Where(rank, self.beats.get(rank)) for rank in self._ranks))

    def dump(self, hang: Hang, records: Mapping[int, WorkerRecord]) -> Hang:
        """Have every worker of this machine write its stacks, and say where it was and whether it was stopped.

        A stopped one has to be continued for that; it is about to be ended anyway.
        """
        living = {rank: record for rank, record in records.items() if process.alive(record.pid, record.start_time)}
        stopped = {rank for rank, record in living.items() if process.stopped(record.pid)}
        before = {rank: _size(self._paths.stacks(self._attempt, rank)) for rank in living}
        for rank, record in living.items():
            if rank in self.beats:  # else it may not handle the signal yet, and would die of it
                process.send(record, STACKS_SIGNAL)
        for rank in stopped:
            process.send(living[rank], signal.SIGCONT)
        written = self._wait_for_stacks(before)
        return hang._replace(
            ranks=tuple(
                where._replace(stopped=where.rank in stopped, stacks=written.get(where.rank)) for where in hang.ranks
            )
        )

    def _read(self) -> dict[int, Beat]:
        found = {rank: read_pulse(self._paths.pulse(self._attempt, rank)) for rank in self._ranks}
        return {rank: beat for rank, beat in found.items() if beat is not None}

    def _wait_for_stacks(self, before: Mapping[int, int]) -> dict[int, Path]:
        """The files that were written to, when all of them are complete or the time is over."""
        files = {rank: self._paths.stacks(self._attempt, rank) for rank in before}
        deadline = time.monotonic() + _WRITING
        sizes: dict[int, int] = {}
        while time.monotonic() < deadline:
            last, sizes = sizes, {rank: _size(path) for rank, path in files.items()}
            if sizes == last and all(sizes[rank] > before[rank] for rank in files if rank in self.beats):
                break
            time.sleep(_LOOK)
        return {rank: path for rank, path in files.items() if _size(path) > before[rank]}


def _advances(where: Where) -> int:
    return -1 if where.beat is None else where.beat.advances


def _told(ranks: Sequence[Where]) -> str:
    """Ranks that do the same in the same place, together."""
    places: dict[str, list[int]] = {}
    for where in ranks:
        places.setdefault(where.place, []).append(where.rank)
    return "; ".join(_together(numbers, place) for place, numbers in places.items())


def _together(numbers: Sequence[int], place: str) -> str:
    if len(numbers) == 1:
        return f"rank {numbers[0]} {place}"
    verb, _, rest = place.partition(" ")
    plural = {"sits": "sit", "waits": "wait", "is": "are", "has": "have"}[verb]
    named = [str(number) for number in numbers[:_NAMED]]
    last = f"{len(numbers) - _NAMED} more" if len(numbers) > _NAMED else named.pop()
    return f"ranks {', '.join(named)} and {last} {plural} {rest}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
