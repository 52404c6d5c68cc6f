"""Reading `metrics.jsonl` as a queue: forward only, in pieces, and right when the file is cut back and rewritten."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

BATCH = 200  # records that are delivered together at most
_BYTES = 4 * 1024 * 1024  # of lines that wait in memory, about
_NO_METRICS = {"step", "time", "partial"}
_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # how JSON gets numbers that it lacks


class Position(NamedTuple):
    """How far a reader has got: all before `step`, and the first `records` records of it."""

    step: int = -1
    records: int = 0


class Record(NamedTuple):
    """One log. `place` counts the records of its step from 0; `time` is in seconds since the epoch.

    `metrics` may hold NaN and infinities.
    """

    step: int
    place: int
    time: float
    metrics: Mapping[str, float]

    @property
    def end(self) -> Position:
        """The position right behind this record."""
        return Position(self.step, self.place + 1)


class Spool:
    """Reads the records of a file that a running training appends to.

    When a run resumes from a checkpoint, the lines of the steps that it makes again are cut off and written anew. A
    place in the file means nothing then, so readers remember a step instead. Partial records, which a stop between two
    logs leaves, are passed over: the next log after a resume says again what they say.
    """

    def __init__(self, path: Path, *, whole_steps: bool = False) -> None:
        self._path = path
        self._whole_steps = whole_steps
        self._file: BufferedReader | None = None
        self._last = Position()
        self._waiting: deque[tuple[Record, int]] = deque()
        self._bytes = 0

    def batch(self, after: Position, *, final: bool = False) -> list[Record]:
        """Return the next records behind `after`, a limited number.

        They are the same again until `after` has advanced. final: nothing will follow, so that the last step is whole.
        """
        self._follow_file()
        self._forget(after)
        lines = self._lines()
        while not self._is_full() and (found := next(lines, None)) is not None:
            if found[0].end > after:
                self._waiting.append(found)
                self._bytes += found[1]
        records = [record for record, _ in self._waiting]
        if not self._whole_steps or (final and not self._is_full()):
            return records[:BATCH]
        return _whole(records, all_there_is=self._is_full())

    def left(self, after: Position) -> int:
        """Return how many records there are behind `after`.

        They count up to the end of the file as it is.
        """
        self.close()
        self._follow_file()
        count = sum(record.end > after for record, _ in self._lines())
        self.close()
        return count

    def close(self) -> None:
        """Close the file, and begin anew with the next call."""
        if self._file is not None:
            self._file.close()
        self._file, self._last, self._bytes = None, Position(), 0
        self._waiting.clear()

    def _follow_file(self) -> None:
        """Open the file, anew if another has taken its place.

        The old one is open still, so its inode is not reused.
        """
        if self._file is not None and not self._is_current(self._file):
            self.close()
        if self._file is None:
            with suppress(FileNotFoundError):
                self._file = self._path.open("rb")

    def _is_current(self, file: BufferedReader) -> bool:
        mine = os.fstat(file.fileno())
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino) and there.st_size >= file.tell()

    def _is_full(self) -> bool:
        return len(self._waiting) > BATCH or self._bytes > _BYTES

    def _forget(self, after: Position) -> None:
        while self._waiting and self._waiting[0][0].end <= after:
            self._bytes -= self._waiting.popleft()[1]

    def _lines(self) -> Iterator[tuple[Record, int]]:
        """Yield each whole line from the point at which reading stopped.

        One without its end is left for the next call.
        """
        file = self._file
        while file is not None:
            line = file.readline()
            if not line.endswith(b"\n"):
                file.seek(-len(line), os.SEEK_CUR)
                return
            data = _decode(line)
            if data is not None and "partial" not in data:
                record = self._numbered(data)
                self._last = record.end
                yield record, len(line)

    def _numbered(self, data: Mapping[str, Any]) -> Record:
        step = int(data.get("step", 0))
        place = self._last.records if step == self._last.step else 0
        return Record(step, place, float(data.get("time", 0.0)), dict(_metrics(data)))


def last_values(path: Path) -> dict[str, float]:
    """Return the last value of each metric in the file."""
    spool, found = Spool(path), dict[str, float]()
    after = Position()
    while records := spool.batch(after):
        for record in records:
            found |= record.metrics
        after = records[-1].end
    spool.close()
    return found


def _whole(records: list[Record], *, all_there_is: bool) -> list[Record]:
    """Return the records of all steps but the last.

    all_there_is: if these are of one step only, all of them.
    """
    whole = [record for record in records if record.step < records[-1].step]
    return records if not whole and all_there_is else whole


def _metrics(data: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in data.items():
        if name in _NO_METRICS:
            continue
        if isinstance(value, str):
            value = _NUMBERS.get(value)  # noqa: PLW2901
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
