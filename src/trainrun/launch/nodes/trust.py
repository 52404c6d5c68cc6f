"""Proving over the network that two processes see the same run directory: both know the key that lies in it."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from trainrun.rundir.files import write_atomic

Side = Literal["node 0", "other node"]

_LENGTH = 64  # hexadecimal digits
_APPEARS = 5.0  # seconds that a network file system may take to show a new file
_AGAIN = 0.1


class NotShared(Exception):
    """The run directory of node 0 is not to be seen here."""


def make_key(path: Path) -> str:
    """Write a new key, for this user's eyes only."""
    key = secrets.token_hex(_LENGTH // 2)
    write_atomic(path, key)
    return key


def read_key(path: Path, seconds: float = _APPEARS) -> str:
    """Return the key of the run.

    Raises NotShared if there is none after `seconds`, or if it is not one of this user's.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return _read(path)
        except OSError as error:
            if time.monotonic() > deadline:
                raise NotShared(f"{path.parent}: {error.strerror or error}") from error
        time.sleep(_AGAIN)


def challenge() -> str:
    """Return a value for the other side's proof.

    It is never the same twice.
    """
    return secrets.token_hex(32)


def answer(key: str, side: Side, node: int, challenges: tuple[str, str]) -> str:
    """Return the proof that `side` knows the key.

    challenges: that of node 0, then that of the other node.
    """
    text = "\0".join((side, str(node), *challenges))
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()


def same(given: str, right: str) -> bool:
    """Return whether a proof from the network is the right one."""
    return hmac.compare_digest(given.encode(), right.encode())


def _read(path: Path) -> str:
    # What node 0 names is not trusted yet: never wait at a pipe, follow a link or take a file that others can read.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_uid != os.geteuid():
            raise PermissionError(0, f"{path.name} is not a file of this user alone")
        key = os.read(descriptor, _LENGTH + 1).decode(errors="replace")
    finally:
        os.close(descriptor)
    if len(key) != _LENGTH:
        raise OSError(0, f"{path.name} holds no key")
    return key


def forget_key(path: Path) -> None:
    """Remove the key: the run is over."""
    with suppress(OSError):
        path.unlink()
