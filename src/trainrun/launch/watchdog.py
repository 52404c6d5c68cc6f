"""Find workers that run but do nothing any more, and learn their position before they are ended.

Another process looks, from outside. A worker that sleeps, spins, was stopped or never lets go of the interpreter's lock
could not report it by itself.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from trainrun.rundir import process
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.pulse import STACKS_SIGNAL, Beat, read_pulse
from trainrun.rundir.records import WorkerRecord

_PACE = 0.25  # seconds between two looks
_START = 60.0  # seconds that ranks have at least between two signs of life until they train
_LONGEST = 1.0  # seconds that count between two looks: while this process was itself stopped it saw nothing
_WRITING = 2.0  # seconds that all workers together have to write their stacks
_LOOK = 0.05
_NAMED = 8  # ranks named in a row


class Where(NamedTuple):
    """The state of one rank when nothing advanced. `beat` is None if it has not begun."""

    rank: int
    beat: Beat | None
    stopped: bool = False
    stacks: Path | None = None

    @property
    def place(self) -> str:
        """Describe what the rank does and its position.

        The words follow its name.
        """
        if self.beat is None:
            return "has not begun"
        verb = "is stopped" if self.stopped else "waits" if self.beat.waiting or self._loads else "sits"
        return f"{verb} {self.beat.place}"

    @property
    def _loads(self) -> bool:
        return self.beat is not None and self.beat.loading and self.beat.hook is None


class Hang(NamedTuple):
    """No rank advanced for `seconds`. `ranks` is everybody, `blamed` those that the others seem to wait for."""

    seconds: float
    ranks: tuple[Where, ...]

    @property
    def blamed(self) -> tuple[Where, ...]:
        """Return the stopped ranks, otherwise the ones furthest behind.

        Of the latter only those that do not wait for others.
        """
        found = [one for one in self.ranks if one.stopped]
        if not found:
            least = min(_advances(one) for one in self.ranks)
            found = [one for one in self.ranks if _advances(one) == least]
        own = [one for one in found if one.beat is not None and not one.beat.waiting]
        named = [one for one in own if one.beat is not None and one.beat.hook is not None]
        return tuple(named or own or found)

    @property
    def message(self) -> str:
        """Return everything in one line."""
        blamed = self.blamed
        others = [one for one in self.ranks if one not in blamed]
        stacks = [one.stacks for one in self.ranks if one.stacks is not None]
        parts = [f"no rank advanced for {self.seconds:g} s: {told(blamed)}"]
        if others:
            parts.append(told(others))
        if stacks:
            attempt = stacks[0].parent
            parts.append(f"stacks: {attempt.parent.name}/{attempt.name}/stacks-*.txt")
        return "; ".join(parts)


class Watchdog:
    """Watches the workers `ranks` of one attempt. timeout: seconds without any advance that make a hang, 0 for never.

    Made when the attempt begins: the time until a worker shows itself counts too. While ranks import, and build what
    they train, the timeout is a minute at least: that takes as long as it takes, however short the steps are.
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
        limit = max(self._timeout, _START) if self._starting else self._timeout
        if not self._timeout or self._idle < limit:
            return None
        return Hang(limit, tuple(Where(rank, self.beats.get(rank)) for rank in self._ranks))

    def dump(self, hang: Hang, records: Mapping[int, WorkerRecord], elsewhere: Collection[int] = ()) -> Hang:
        """Have the workers of this machine write their stacks.

        Returns the hang with the ranks that were stopped and what was written.

        elsewhere: ranks on other machines, which were asked there.
        """
        living = {rank: record for rank, record in records.items() if process.alive(record.pid, record.start_time)}
        before = {rank: _size(self._paths.stacks(self._attempt, rank)) for rank in [*living, *elsewhere]}
        stopped = ask_for_stacks([record for rank, record in living.items() if rank in self.beats])
        written = self._wait_for_stacks(before)
        return hang._replace(
            ranks=tuple(one._replace(stopped=one.rank in stopped, stacks=written.get(one.rank)) for one in hang.ranks)
        )

    @property
    def _starting(self) -> bool:
        """Return whether a rank is not yet ready to train."""
        return any(rank not in self.beats or self.beats[rank].phase in {"starting", "setup"} for rank in self._ranks)

    def _read(self) -> dict[int, Beat]:
        return {one.rank: one.beat for one in where(self._paths, self._attempt, self._ranks) if one.beat is not None}

    def _wait_for_stacks(self, before: Mapping[int, int]) -> dict[int, Path]:
        """Return the files that were written to.

        Returns when all of them are complete or the time is over.
        """
        files = {rank: self._paths.stacks(self._attempt, rank) for rank in before}
        deadline = time.monotonic() + _WRITING
        sizes: dict[int, int] = {}
        while time.monotonic() < deadline:
            last, sizes = sizes, {rank: _size(path) for rank, path in files.items()}
            if sizes == last and all(sizes[rank] > before[rank] for rank in files if rank in self.beats):
                break
            time.sleep(_LOOK)
        return {rank: path for rank, path in files.items() if _size(path) > before[rank]}


def ask_for_stacks(records: Sequence[WorkerRecord]) -> set[int]:
    """Ask the workers of this machine for their stacks.

    Returns the stopped ranks. A stopped one has to be continued for that; it is about to be ended anyway.

    records: of workers that have a pulse. One without a pulse may not handle the signal yet, and would die of it.
    """
    stopped = {record.rank for record in records if process.stopped(record.pid)}
    for record in records:
        process.send(record, STACKS_SIGNAL)
        if record.rank in stopped:
            process.send(record, signal.SIGCONT)
    return stopped


def where(paths: RunPaths, attempt: int, ranks: Sequence[int]) -> list[Where]:
    """Return the state of each rank, or its last one.

    That is the last one if the rank has ended. Ranks that never began are left out.
    """
    found = {rank: read_pulse(paths.pulse(attempt, rank)) for rank in ranks}
    return [Where(rank, beat) for rank, beat in found.items() if beat is not None]


def _advances(one: Where) -> int:
    return -1 if one.beat is None else one.beat.advances


def told(ranks: Sequence[Where]) -> str:
    """Describe the ranks, those that do the same in the same place together."""
    places: dict[str, list[int]] = {}
    for one in ranks:
        places.setdefault(one.place, []).append(one.rank)
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
