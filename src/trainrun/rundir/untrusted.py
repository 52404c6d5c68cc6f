"""Read small files that another user may have put there: never block, never follow a link, never grow."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

LIMIT = 64 * 1024  # bytes

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Refused(Exception):
    """The file is not one to be read; the message says why."""


def read(path: Path, limit: int = LIMIT) -> tuple[bytes, float]:
    """Return bytes and time of change of this user's regular file.

    The time is in seconds since the epoch. Raises `Refused` for a link, a pipe, a device, a folder, the file of another
    user and one of more than `limit` bytes. Raises FileNotFoundError if there is none.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        raise
    except OSError as error:  # ELOOP is the error for a link
        raise Refused(f"it cannot be opened as a plain file: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        _require_plain(found, limit)
        return os.read(descriptor, limit + 1)[:limit], found.st_mtime
    except OSError as error:
        raise Refused(f"it cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def read_plain(path: Path, limit: int) -> bytes:
    """Return the bytes of a regular file of any owner.

    Raises OSError for any other kind of file, and for one that is larger than `limit`.
    """
    descriptor = open_plain(path)
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"it has {size} bytes, and {limit} are the most", str(path))
        return file.read(limit)


def open_plain(path: Path) -> int:
    """Return a descriptor to read a regular file.

    Raises OSError for pipes, devices and folders; never blocks.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a plain file", str(path))
    return descriptor


def _require_plain(found: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Refused("it is not a plain file")
    if found.st_uid != os.geteuid():
        raise Refused(f"it belongs to user {found.st_uid}, not to {os.geteuid()}")
    if found.st_size > limit:
        raise Refused(f"it has {found.st_size} bytes, and {limit} are the most")
