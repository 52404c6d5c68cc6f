"""Looking at files that another user may have put there: no link is followed, nothing blocks, nothing is executed."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 1024 * 1024  # bytes
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class FileRecord:
    """A file's size in bytes and its SHA-256 in lower-case hexadecimal digits."""

    size: int
    sha256: str


def digest(path: Path) -> FileRecord:
    """Return size in bytes and SHA-256 of a plain file.

    It is read block by block without holding the interpreter. Raises OSError if `path` is a link, no plain file, or
    cannot be read.
    """
    descriptor = open_plain(path)
    try:
        total, size, block = hashlib.sha256(), 0, memoryview(bytearray(_BLOCK))
        while count := os.readv(descriptor, [block]):
            total.update(block[:count])
            size += count
    finally:
        os.close(descriptor)
    return FileRecord(size, total.hexdigest())


def open_plain(path: Path) -> int:
    """Return a descriptor to read a plain file.

    Raises OSError for other kinds: links, pipes, devices, folders.
    """
    descriptor = os.open(path, _FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a plain file", str(path))
    return descriptor


def tree(folder: Path) -> dict[str, os.stat_result]:
    """Return everything under `folder` by its relative path, as `lstat` sees it.

    Paths have slashes. Raises OSError.
    """
    return dict(_walk(folder, ""))


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            found = entry.stat(follow_symlinks=False)
            yield prefix + entry.name, found
            if stat.S_ISDIR(found.st_mode):
                yield from _walk(folder / entry.name, f"{prefix}{entry.name}/")
