"""Log files as they grow: each whole line once, also over the renaming of a file that is full."""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from trainrun.rundir import untrusted
from trainrun.rundir.paths import rotated

_CHUNK = 256 * 1024  # bytes that are read at a time
_LINE = 1024 * 1024  # bytes after which a line without an end is taken for one
_STAMPS = 64 * 1024 * 1024  # bytes of notes of the time
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


class Line(NamedTuple):
    """One line without its end.

    `time` is about when it was written, in seconds since the epoch, if that is known. It is never later than the line's
    own time, and for the lines of one file it never goes back.
    """

    data: bytes
    time: float


class Growing:
    """A log that others write. `read` continues after the last call's lines.

    A reader that is not too slow loses nothing: a file that is renamed stays open until it is read to its end.
    """

    def __init__(self, path: Path, since: float = 0.0) -> None:
        self.path = path
        self._since = since
        self._open: _Part | None = None
        self._started = False

    def read(self) -> Iterator[Line]:
        """Yield the lines that have not been read yet.

        A last one without its end is left for the next call.
        """
        current = self._open or _Part.open(self.path, self._since)
        if not self._started:
            self._started = True
            yield from self._older(current)
        while current is not None:
            self._open = current
            yield from current.lines()
            if current.is_at(self.path):
                return
            following = _Part.open(self.path, self._since)
            yield from current.lines()  # what came between the last look and the renaming
            yield from current.rest()
            current.close()
            self._open = current = following

    def finish(self) -> Iterator[Line]:
        """Yield all that is left, when there is no writer any more.

        A line without its end is included.
        """
        yield from self.read()
        if self._open is not None:
            yield from self._open.rest()
            self.close()

    def close(self) -> None:
        """Close the file."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _older(self, current: _Part | None) -> Iterator[Line]:
        older = _Part.open(rotated(self.path), self._since)
        if older is None:
            return
        if current is None or not current.is_at(rotated(self.path)):
            yield from older.lines()
            yield from older.rest()
        older.close()


class _Part:
    """One open file of a log."""

    def __init__(self, descriptor: int, path: Path, since: float) -> None:
        found = os.fstat(descriptor)
        self._descriptor = descriptor
        self._key = (found.st_dev, found.st_ino)
        self._changed = found.st_mtime
        self._stamps = Stamps(path)
        self._rest = b""
        self._sparse = found.st_blocks * 512 < found.st_size - _CHUNK
        self._offset = self._stamps.offset(since, found.st_mtime, found.st_size)
        os.lseek(descriptor, self._offset, os.SEEK_SET)

    @classmethod
    def open(cls, path: Path, since: float) -> _Part | None:
        """Open the file, if it is one.

        A pipe or a link in its place is passed over.
        """
        try:
            descriptor = os.open(path, _FLAGS)
        except OSError:
            return None
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return cls(descriptor, path, since)
        os.close(descriptor)
        return None

    def is_at(self, path: Path) -> bool:
        """Return whether this is the file at `path`, or nothing is there.

        Nothing is there between a renaming and the next file.
        """
        try:
            found = path.lstat()
        except OSError:
            return True
        return self._key == (found.st_dev, found.st_ino)

    def lines(self) -> Iterator[Line]:
        while chunk := self._read():
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            for data in whole:
                yield self._line(data, len(data) + 1)
            if len(self._rest) > _LINE:
                yield from self.rest()

    def rest(self) -> Iterator[Line]:
        if self._rest:
            data, self._rest = self._rest, b""
            yield self._line(data, len(data))

    def close(self) -> None:
        os.close(self._descriptor)

    def _read(self) -> bytes:
        with suppress(OSError):
            if self._sparse:
                self._skip_hole()
            return os.read(self._descriptor, _CHUNK)
        return b""

    def _skip_hole(self) -> None:
        """Skip the hole of a sparse file.

        It was never written, and reading it would take as long as the file is large.
        """
        at = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        try:
            data = os.lseek(self._descriptor, at, os.SEEK_DATA)
        except OSError:  # nothing but holes up to the end
            data = os.lseek(self._descriptor, 0, os.SEEK_END)
        self._offset += data - at

    def _line(self, data: bytes, length: int) -> Line:
        line = Line(data, self._stamps.time(self._offset, self._changed))
        self._offset += length
        return line


class Stamps:
    """The times at which the bytes of a file were written.

    `rank-0.times` next to `rank-0.out` has lines of a time and an offset. From that offset on, bytes are of that time
    or later. Without such a file all of them are of the time of the last.
    """

    def __init__(self, path: Path) -> None:
        pairs = list(_pairs(path.with_suffix(".times")))
        self._times = [time for time, _ in pairs]
        self._offsets = [offset for _, offset in pairs]

    def time(self, offset: int, changed: float) -> float:
        """Return when the byte at `offset` was written.

        changed: when the last one was.
        """
        if not self._offsets:
            return changed
        return self._times[max(0, bisect_right(self._offsets, offset) - 1)]

    def offset(self, since: float, changed: float, size: int) -> int:
        """Return the offset from which all that was written since then follows."""
        if changed < since:
            return size
        return self._offsets[bisect_right(self._times, since) - 1] if self._times and self._times[0] <= since else 0


def _pairs(path: Path) -> Iterator[tuple[float, int]]:
    # Kept in order even if the clock went back: both columns only ever grow.
    last = (0.0, -1)
    try:
        lines = untrusted.read_plain(path, _STAMPS).split(b"\n")[:-1]
    except OSError:
        return
    for line in lines:
        first, _, second = line.partition(b" ")
        with suppress(ValueError):
            last = (max(last[0], float(first)), max(last[1], int(second)))
            yield last
