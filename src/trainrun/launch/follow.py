"""Reading a file that grows, also when it is full, gets another name, and a new one takes its place."""

from __future__ import annotations

import os
from pathlib import Path

from trainrun.rundir.paths import rotated

_READ = 64 * 1024  # bytes that are read at a time


class Follower:
    """What has been appended to the file `path` since the last call.

    The file may be missing for now. It is held open until `close`, after which reading continues at the same position.

    from_end: start with what is appended after this object was made.
    """

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._file: int | None = None
        self._identity: tuple[int, int] | None = None
        self._offset = 0
        if from_end and self._open():
            self._offset = os.fstat(self._held).st_size

    @property
    def waiting(self) -> int:
        """Return how many bytes of the open file are still unread."""
        return max(0, os.fstat(self._held).st_size - self._offset) if self._open() else 0

    def skip(self, count: int) -> None:
        """Skip `count` bytes."""
        self._offset += count

    def read(self) -> bytes:
        """Return the next bytes; empty when there are none for now."""
        data = self._next()
        if data or not self._replaced():
            return data
        # Before it got its other name something may have come; nothing can come after it.
        data = self._next()
        if not data:
            self.close()
            self._identity = None
            data = self._next()
        return data

    def close(self) -> None:
        """Hold no file open."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @property
    def _held(self) -> int:
        assert self._file is not None
        return self._file

    def _next(self) -> bytes:
        if not self._open():
            return b""
        if os.fstat(self._held).st_size < self._offset:
            self._offset = 0  # the file was emptied
        data = os.pread(self._held, _READ, self._offset)
        self._offset += len(data)
        return data

    def _open(self) -> bool:
        """Keep open the file that was read last, otherwise the current one.

        The one that was read last is held even if it has another name now.
        """
        if self._file is None and self._identity is not None:
            found = (self._same(path) for path in (self._path, rotated(self._path)))
            self._file = next((descriptor for descriptor in found if descriptor is not None), None)
        if self._file is None:
            self._file, self._offset = _open(self._path), 0
            self._identity = None if self._file is None else _identity(os.fstat(self._file))
        return self._file is not None

    def _same(self, path: Path) -> int | None:
        descriptor = _open(path)
        if descriptor is None or _identity(os.fstat(descriptor)) == self._identity:
            return descriptor
        os.close(descriptor)
        return None

    def _replaced(self) -> bool:
        try:
            return self._file is not None and _identity(self._path.stat()) != self._identity
        except OSError:
            return False  # renamed, and the new one is not there yet


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
