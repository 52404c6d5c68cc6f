"""Decisions that any rank may take and all ranks apply at the same step, without a collective of their own.

Each rank has an append-only log in memory shared by the workers of a node. A decision posted at step k is in
the log before its rank enters the gradient reduction of step k+1, and no rank leaves that reduction before
all have entered it. So at the start of step k+2 every rank sees it, and all apply it there. On CUDA the
host runs ahead of the device: it waits for the reduction of the step before last, and the delay is one step more.
At the end of an evaluation and of the run a barrier settles everything posted so far at once.
"""

from __future__ import annotations

import json
import mmap
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from trainrun.errors import TrainrunError

DecisionKind = Literal["stop", "evaluate", "checkpoint", "disable", "warn", "lost", "skip"]

_AREA = 1 << 20  # bytes a rank; old entries are overwritten long after every rank has read them
_LARGEST = 16 << 10
_HEAD = struct.Struct("<II")  # length and CRC-32 of the entry that follows


@dataclass(frozen=True)
class Decision:
    """Something that a plugin, a signal or trainrun itself decided on one rank at `step`, and why."""

    kind: DecisionKind
    plugin: str
    hook: str
    reason: str
    rank: int = 0
    step: int = 0

    @property
    def key(self) -> tuple[str, str, str]:
        """Equal for the same decision taken on several ranks."""
        return (self.kind, self.plugin, self.hook)


class SharedLog:
    """The logs of a node's ranks in one shared file: counters of bytes written, then one ring for each rank.

    Only a rank's training thread appends to its ring. An entry carries a checksum, because a reader may look
    while the writer's stores become visible out of order: such an entry is read again the next time.
    """

    def __init__(self, path: Path, place: int, size: int) -> None:
        self._place = place
        self._size = size
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), self.length(size))
        self._written = memoryview(self._memory)[: 8 * size].cast("q")
        self._read = [0] * size

    @staticmethod
    def length(size: int) -> int:
        """The size in bytes of the file for `size` ranks."""
        return 8 * size + size * _AREA

    @classmethod
    def create(cls, path: Path, size: int) -> None:
        """Make the file, empty. To be called by one rank before any opens it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.truncate(cls.length(size))

    def append(self, entry: bytes) -> None:
        """Add one entry to this rank's ring."""
        if len(entry) > _LARGEST:
            raise TrainrunError(f"a decision of {len(entry)} bytes is too large to post")
        written = self._written[self._place]
        self._store(written, _HEAD.pack(len(entry), zlib.crc32(entry)) + entry)
        self._written[self._place] = written + _HEAD.size + len(entry)

    def news(self) -> list[bytes]:
        """The entries of all ranks that were not read yet, by rank, then in the order they were written."""
        if self._written.tolist() == self._read:
            return []
        found: list[bytes] = []
        for place in range(self._size):
            while self._read[place] < self._written[place]:
                length, checksum = _HEAD.unpack(self._load(place, self._read[place], _HEAD.size))
                entry = self._load(place, self._read[place] + _HEAD.size, min(length, _LARGEST))
                if zlib.crc32(entry) != checksum:
                    break
                found.append(entry)
                self._read[place] += _HEAD.size + length
        return found

    def close(self) -> None:
        """Let go of the memory."""
        self._written.release()
        self._memory.close()

    def _store(self, position: int, data: bytes) -> None:
        start, at = 8 * self._size + self._place * _AREA, position % _AREA
        first = min(len(data), _AREA - at)
        self._memory[start + at : start + at + first] = data[:first]
        self._memory[start : start + len(data) - first] = data[first:]

    def _load(self, place: int, position: int, length: int) -> bytes:
        start, at = 8 * self._size + place * _AREA, position % _AREA
        first = min(length, _AREA - at)
        return self._memory[start + at : start + at + first] + self._memory[start : start + length - first]


class Decisions:
    """Posting decisions from this rank, and learning which ones are due.

    log: None for a single worker. delay: after how many steps a posted decision is applied.
    barrier: waits for all ranks, on the host.
    """

    def __init__(self, rank: int, log: SharedLog | None, *, delay: int, barrier: Callable[[], None]) -> None:
        self.step = 0
        self._rank = rank
        self._log = log
        self._delay = delay
        self._barrier = barrier
        self._thread = threading.get_ident()
        self._elsewhere: deque[Decision] = deque()  # posted by other threads, not in the log yet
        self._pending: list[Decision] = []
        self._posted: set[tuple[str, str, str]] = set()

    def post(self, kind: DecisionKind, plugin: str, hook: str, reason: str) -> None:
        """Post a decision from any thread. One that is posted already and not yet applied is not posted twice."""
        decision = Decision(kind, plugin, hook, reason[:2000], self._rank)
        if threading.get_ident() == self._thread:
            self._write(decision)
        else:
            self._elsewhere.append(decision)

    def due(self, step: int) -> list[Decision]:
        """Begin `step`: the decisions to apply now, the same on all ranks and in the same order."""
        self.step = step
        self._absorb()
        if not self._pending:
            return []
        return self._take(step - self._delay)

    def settle(self) -> list[Decision]:
        """Wait for all ranks, then answer with everything posted so far, due or not. Call it on all ranks alike."""
        self._flush()
        self._barrier()
        self._absorb(flush=False)
        settled = self._take(self.step)
        self._barrier()  # nobody posts anew before all have read
        return settled

    def _take(self, last: int) -> list[Decision]:
        taken = [decision for decision in self._pending if decision.step <= last]
        self._pending = [decision for decision in self._pending if decision.step > last]
        self._posted -= {decision.key for decision in taken if decision.rank == self._rank}
        return sorted(taken, key=lambda decision: (decision.step, decision.rank))

    def _flush(self) -> None:
        while self._elsewhere:
            self._write(self._elsewhere.popleft())

    def _write(self, decision: Decision) -> None:
        if decision.key in self._posted:
            return
        self._posted.add(decision.key)
        stamped = replace(decision, step=self.step)
        if self._log is None:
            self._pending.append(stamped)
        else:
            self._log.append(json.dumps(asdict(stamped), ensure_ascii=False).encode(errors="replace"))

    def _absorb(self, flush: bool = True) -> None:
        if flush and self._elsewhere:
            self._flush()
        if self._log is not None:
            self._pending += [Decision(**json.loads(entry)) for entry in self._log.news()]
