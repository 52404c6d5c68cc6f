"""The owner of a run: of all processes on all machines that share its directory, one.

The folder `lease` of a run holds an empty file `lock` and numbered records; **the highest number is the owner**.

* Each record has one writer for its whole life: the process that it names. It is written next to its final name and
  linked into place, so it is never seen in part. `link` fails if the number is taken, also over NFS. So of all that
  want to follow a dead owner exactly one does, and nothing that a slow or awakened process does can undo that.
* An owner that gives the run up says so in its record. The highest record is never removed, lower ones are. A process
  that has linked a number looks again: had there been a higher one meanwhile, it was not the next owner but late.
* On one machine `flock` on `lock` comes first, and the kernel drops it with its holder. It distinguishes holders in
  other containers from dead ones. If a file system has no locks, or only local ones, the numbers decide alone.
* A holder on this machine is judged by its pid, start time and boot id; after a restart of the machine by the time of
  the last heartbeat. One on another machine is alive while its record's time is younger than `SILENCE`: a thread of the
  owner touches the record every `BEAT`. Ages are measured on the file server's clock, by a file that was just written
  there, so the clocks of the machines need not agree.
* A machine that was cut off, or a process that was suspended, may come back after another has taken over. Its next
  heartbeat finds the higher number, and from then on `Lease.check` raises.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from trainrun.errors import EnvironmentProblem, LeaseLost, UsageError
from trainrun.rundir import untrusted
from trainrun.rundir.files import append_line, decode, write_atomic
from trainrun.rundir.holder import SILENCE, LeaseInfo
from trainrun.rundir.paths import RunPaths

__all__ = ["BEAT", "SILENCE", "Lease", "LeaseInfo", "held", "recorded"]

BEAT = 10.0  # seconds between two heartbeats

_VERSION = 1
_TRIES = 100
_NAMING = 1.0  # seconds that a loser waits for the winner to have written its name
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
_NO_LINKS = {errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}


class _Record(NamedTuple):
    """The newest record of a run.

    Without `info` it has no owner: no record yet, one given up, or no readable one.
    """

    number: int = 0
    info: LeaseInfo | None = None
    broken: str | None = None
    heard: float = 0.0

    def gone(self, now: float, *, locked: bool) -> str | None:
        """Return why no process holds the run now; None if one does."""
        if self.info is not None:
            return self.info.gone(now, locked=locked)
        if self.broken is not None and now - self.heard <= SILENCE:
            return None
        return f"nothing was heard of it for {now - self.heard:.0f} s" if self.broken else "it was given up"


class Lease:
    """The right to write in one run directory, held until `release`, the end of the process, or a takeover."""

    def __init__(self, paths: RunPaths, number: int, info: LeaseInfo, lock: int) -> None:
        self.info = info
        self._paths = paths
        self._number = number
        self._lock = lock
        self._over = threading.Event()
        self._successor: str | None = None
        # A thread, so that a plugin which holds up the client's loop does not cost it the run.
        threading.Thread(target=self._keep, name="lease", daemon=True).start()

    @classmethod
    def acquire(cls, paths: RunPaths) -> Lease:
        """Become the owner of the run.

        Raises a `UsageError` that names the owner if there is one. If the one before did not give it up, that is noted
        as the event `lease_takeover`.
        """
        try:
            paths.lease.mkdir(mode=0o700, exist_ok=True)
            lock = _take_lock(paths)
            try:
                return cls(paths, *_claim(paths, locked=lock >= 0), lock)
            except BaseException:
                _close(lock)
                raise
        except OSError as error:
            raise EnvironmentProblem(f"{paths.lease}: the run cannot be claimed: {error.strerror or error}") from error

    def beat(self) -> None:
        """Record that the owner lives; check that it still is the owner.

        Called every `BEAT` by a thread.
        """
        newest = _newest(self._paths.lease)
        if newest.number > self._number:
            self._successor = str(newest.info or "another process")
            self._over.set()
        else:
            os.utime(_file(self._paths, self._number))

    def check(self) -> None:
        """Raise `LeaseLost` if another process has taken the run over.

        Uses what the last heartbeat saw, and costs nothing.
        """
        if self._successor is not None:
            raise LeaseLost(
                f"{self._paths.root}: {self._successor} has taken this run over, for nothing was heard of this process "
                f"for {SILENCE:g} s; it leaves the run alone from here on"
            )

    def confirm(self) -> None:
        """Look for another owner now, and raise as `check` does.

        To be called before something is written that cannot be taken back.
        """
        with suppress(OSError):
            self.beat()
        self.check()

    def release(self) -> None:
        """Give the run up. The record stays, so that a number never names two owners."""
        self._over.set()
        if self._number:
            with suppress(OSError):  # a full disk, a folder that is gone: the end of the process says it too
                write_atomic(_file(self._paths, self._number), _text(self.info, released=time.time()))
            self._number = 0
            _close(self._lock)

    def _keep(self) -> None:
        while not self._over.wait(BEAT):
            with suppress(OSError):
                self.beat()


def held(paths: RunPaths) -> LeaseInfo | None:
    """Return the owner of the run.

    Returns None if there is none or it is gone.
    """
    info = recorded(paths)
    return info if info is not None and info.is_alive else None


def recorded(paths: RunPaths) -> LeaseInfo | None:
    """Return the last owner that has not given the run up.

    It may be dead or alive.
    """
    return _newest(paths.lease).info


def _take_lock(paths: RunPaths) -> int:
    """Return the descriptor that holds the kernel's lock.

    The descriptor is -1 if the file system has no locks.
    """
    descriptor = os.open(paths.lease / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise _owned(paths, _named_soon(paths)) from None
    except OSError as error:
        os.close(descriptor)
        if error.errno not in _NO_LOCKS:
            raise
        return -1
    return descriptor


def _named_soon(paths: RunPaths) -> LeaseInfo | None:
    deadline = time.monotonic() + _NAMING
    while (info := held(paths)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return info


def _claim(paths: RunPaths, *, locked: bool) -> tuple[int, LeaseInfo]:
    info = LeaseInfo.own()
    scratch = paths.lease / f".{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
    _write_new(scratch, _text(info))
    try:
        for _ in range(_TRIES):
            newest, now = _newest(paths.lease), scratch.stat().st_mtime
            reason = newest.gone(now, locked=locked)
            if reason is None:
                raise _owned(paths, newest.info)
            if _win(paths, scratch, newest.number + 1):
                _clear_below(paths, newest.number + 1)
                _note(paths, newest, reason)
                return newest.number + 1, info
        raise _owned(paths, None)
    finally:
        scratch.unlink(missing_ok=True)


def _win(paths: RunPaths, scratch: Path, number: int) -> bool:
    target = _file(paths, number)
    if not _link(scratch, target):
        return False
    if _newest(paths.lease).number == number:
        return True
    target.unlink(missing_ok=True)
    return False


def _link(scratch: Path, target: Path) -> bool:
    try:
        os.link(scratch, target)
    except FileExistsError:
        # The reply of a file server may have been lost, and the repeated request met its own work.
        return scratch.stat().st_nlink > 1
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _create(target, scratch.read_bytes())
    return True


def _create(target: Path, data: bytes) -> bool:
    # Seen empty for a moment by others, who take an unreadable young record for one with an owner.
    try:
        _write_new(target, data)
    except FileExistsError:
        return False
    return True


def _clear_below(paths: RunPaths, number: int) -> None:
    for lower in _numbers(paths.lease):
        if lower < number:
            with suppress(OSError):
                _file(paths, lower).unlink()


def _note(paths: RunPaths, former: _Record, reason: str) -> None:
    who = former.info or (former.broken and f"{_file(paths, former.number)} ({former.broken})")
    if who:
        event = {"event": "lease_takeover", "time": time.time(), "former": str(who), "reason": reason}
        with suppress(OSError):
            append_line(paths.events, event)


def _newest(folder: Path) -> _Record:
    number = 0
    for _ in range(_TRIES):
        number = max(_numbers(folder), default=0)
        if not number:
            return _Record()
        try:
            return _parse(number, *untrusted.read(folder / str(number)))
        except FileNotFoundError:  # there is a higher one by now, which a list from a file server's cache may lack
            time.sleep(0.01)
        except untrusted.Refused as refused:
            return _Record(number, None, str(refused), _changed(folder / str(number)))
    return _Record(number, None, "it has vanished", time.time())


def _parse(number: int, data: bytes, heard: float) -> _Record:
    value = decode(data)
    if value is None:
        return _Record(number, None, "it is no JSON object", heard)
    if value.get("released"):
        return _Record(number)
    info = LeaseInfo.from_json(value, heard)
    return _Record(number, info, None if info else f"version {value.get('version')} names no process", heard)


def _numbers(folder: Path) -> list[int]:
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        return []
    return [int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 16]


def _changed(path: Path) -> float:
    with suppress(OSError):
        return path.lstat().st_mtime
    return 0.0


def _owned(paths: RunPaths, owner: LeaseInfo | None) -> UsageError:
    who = owner or f"an unknown process, which {paths.lease} does not name"
    return UsageError(f"{paths.root}: this run is owned by {who}; it can have one owner at a time")


def _text(info: LeaseInfo, **more: float) -> str:
    return json.dumps({"version": _VERSION, **info.to_json(), **more})


def _file(paths: RunPaths, number: int) -> Path:
    return paths.lease / str(number)


def _write_new(path: Path, data: str | bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)
