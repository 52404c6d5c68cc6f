"""What a run does in its directory, each tried in an empty folder. A probe raises OSError if it does not work."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

_PAGE = 4096


def _timed(probe: Callable[[Path], None]) -> Callable[[Path], float]:
    def run(folder: Path) -> float:
        begun = time.perf_counter()
        probe(folder)
        return round(time.perf_counter() - begun, 6)

    return run


def _modes(folder: Path) -> None:
    """Check that the folder is private: runs are for their user only."""
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        raise OSError(errno.EPERM, "everybody can read what is made there")


def _flock(folder: Path) -> None:
    """Check that a second lock on a file is refused.

    A run has one owner.
    """
    first, second = (os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) for _ in range(2))
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        raise OSError(errno.ENOLCK, "a second lock was granted")
    finally:
        os.close(first)
        os.close(second)


def _fifo(folder: Path) -> None:
    """Write and read through a named pipe, as for workers' output."""
    path = folder / "pipe"
    os.mkfifo(path, 0o600)
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(descriptor, b"x")
        _expect(os.read(descriptor, 1), b"x")
    finally:
        os.close(descriptor)


def _rename(folder: Path) -> None:
    """Replace a file, so that readers see the old or new one."""
    old, new = folder / "record", folder / "record.tmp"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    with old.open("rb") as reader:
        new.replace(old)
        _expect(reader.read(), b"old")
    _expect(old.read_bytes(), b"new")


def _append(folder: Path) -> None:
    """Append to a file through two descriptors.

    In a run, several processes add lines to one file.
    """
    path = folder / "lines"
    first, second = (os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600) for _ in range(2))
    try:
        for descriptor, text in ((first, b"a\n"), (second, b"b\n"), (first, b"c\n")):
            os.write(descriptor, text)
    finally:
        os.close(first)
        os.close(second)
    _expect(path.read_bytes(), b"a\nb\nc\n")


def _fsync(folder: Path) -> None:
    """Sync a file and the folder that names it.

    A run does so with what must outlive a power failure.
    """
    for path, flags in ((folder / "synced", os.O_WRONLY | os.O_CREAT), (folder, os.O_RDONLY)):
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _mmap(folder: Path) -> None:
    """Map a file, as workers do to show their steps and decisions."""
    path = folder / "mapped"
    path.write_bytes(bytes(_PAGE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), _PAGE) as memory:
        memory[:5] = b"hello"
        _expect(path.read_bytes()[:5], b"hello")


def probe_socket(folder: Path) -> None:
    """Make a socket as Python's fork server does.

    It listens at a path in the temporary directory, which must not be too long for that.
    """
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.bind(str(folder / "listener-xxxxxxxx"))
        except OSError as error:
            raise OSError(error.errno or errno.ENAMETOOLONG, f"no socket can be made there: {error}") from error


def _expect(found: bytes, wanted: bytes) -> None:
    if found != wanted:
        raise OSError(errno.EIO, "what was written is not what is read")


PROBES: Mapping[str, Callable[[Path], float]] = MappingProxyType(
    {
        "private folders": _timed(_modes),
        "flock": _timed(_flock),
        "mkfifo": _timed(_fifo),
        "atomic rename": _timed(_rename),
        "appending": _timed(_append),
        "fsync": _timed(_fsync),
        "mmap": _timed(_mmap),
    }
)
