"""Who owns a run: a lock that the kernel drops with its holder, beside a record that names the holder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trainrun.errors import UsageError
from trainrun.rundir.files import read_json
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.process import alive, boot_id, start_time


@dataclass(frozen=True)
class LeaseInfo:
    """The holder of a run: enough to tell it from every other process on every machine."""

    host: str
    boot: str
    pid: int
    start_time: int
    since: float

    @classmethod
    def own(cls) -> LeaseInfo:
        """The process that asks."""
        pid = os.getpid()
        return cls(socket.gethostname(), boot_id(), pid, start_time(pid) or 0, time.time())

    @property
    def is_local(self) -> bool:
        """Whether the holder was started on this machine since it last booted."""
        return self.boot == boot_id()

    @property
    def is_alive(self) -> bool:
        """Whether the holder runs. One on another machine is taken to run."""
        if self.host != socket.gethostname():
            return True
        return self.is_local and alive(self.pid, self.start_time)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """The right to write in one run directory, held until `release` or the end of the process."""

    def __init__(self, descriptor: int, info: LeaseInfo) -> None:
        self._descriptor = descriptor
        self.info = info

    @classmethod
    def acquire(cls, paths: RunPaths) -> Lease:
        """Become the owner of the run, or raise a `UsageError` that names who is."""
        descriptor = os.open(paths.lease, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(descriptor, paths)
            info = LeaseInfo.own()
            _record(descriptor, info)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor, info)

    def release(self) -> None:
        """Give the run up; the file stays, empty, so that a lock on it always means the same file."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1


def held(paths: RunPaths) -> LeaseInfo | None:
    """Who owns the run now; None if nobody does, or its owner died."""
    info = recorded(paths)
    return info if info is not None and info.is_alive else None


def recorded(paths: RunPaths) -> LeaseInfo | None:
    """Who owned the run last without giving it up, dead or alive."""
    data = read_json(paths.lease)
    return None if data is None else _parse(data)


def _lock(descriptor: int, paths: RunPaths) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = recorded(paths) or "another process"
        raise UsageError(f"{paths.root}: this run is owned by {owner}; it can have one owner at a time") from None


def _record(descriptor: int, info: LeaseInfo) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(info)).encode(), 0)


def _parse(data: Mapping[str, Any]) -> LeaseInfo | None:
    try:
        return LeaseInfo(
            str(data["host"]), str(data["boot"]), int(data["pid"]), int(data["start_time"]), float(data["since"])
        )
    except (KeyError, TypeError, ValueError):
        return None
