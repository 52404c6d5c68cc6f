"""The holder of a run: what distinguishes it from every other process on every machine, and whether it runs."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from trainrun.rundir.process import alive, boot_id, start_time

SILENCE = 60.0  # seconds without a heartbeat after which a holder that cannot be looked at is taken to be gone


@dataclass(frozen=True)
class LeaseInfo:
    """The process that holds a run.

    `since` is when it took the run and `heard` when it was last heard of, in seconds since the epoch by the file
    system's clock. `namespace` is the one that its pid belongs to: containers on one machine count on their own.
    """

    host: str
    boot: str
    pid: int
    start_time: int
    since: float
    namespace: int = 0
    heard: float = 0.0

    @classmethod
    def own(cls) -> Self:
        """Return the holder for this process."""
        pid, now = os.getpid(), time.time()
        return cls(socket.gethostname(), boot_id(), pid, start_time(pid) or 0, now, _namespace(), now)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], heard: float) -> Self | None:
        """Return the holder that a record names; None if it names none.

        The record is of this or a later version.
        """
        try:
            texts, numbers = (str(data["host"]), str(data["boot"])), (int(data["pid"]), int(data["start_time"]))
            return cls(*texts, *numbers, float(data["since"]), int(data.get("namespace", 0)), heard)
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the record.

        These are all but `heard`, which is the time of the file.
        """
        return {name: value for name, value in vars(self).items() if name != "heard"}

    def heard_at(self, moment: float) -> Self:
        """Return the same holder, heard of at another time."""
        return replace(self, heard=moment)

    @property
    def is_local(self) -> bool:
        """Return whether the holder was started here since the last boot."""
        return self.boot == boot_id()

    @property
    def is_alive(self) -> bool:
        """Return whether the holder runs.

        Nothing is touched for that, so it may be a guess.
        """
        return self.gone(time.time()) is None

    def gone(self, now: float, *, locked: bool = False) -> str | None:
        """Return why the holder is taken to be gone.

        Returns None if it is not.

        now: the time on the clock that `heard` comes from.
        locked: the caller has got the kernel's lock, so that no process on this machine can be the holder.
        """
        if self.is_local and self.namespace in {0, _namespace()}:
            return None if alive(self.pid, self.start_time) else "it died"
        if self.is_local and locked:
            return "it died"
        if not self.is_local and self.host == socket.gethostname() and self.heard < _boot_time():
            return "its machine was restarted"
        silent = now - self.heard
        return f"nothing was heard of it for {silent:.0f} s" if silent > SILENCE else None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _namespace() -> int:
    with suppress(OSError):
        return Path("/proc/self/ns/pid").stat().st_ino
    return 0


def _boot_time() -> float:
    """Return when this machine was started, in seconds since the epoch.

    Returns 0 if it does not say.
    """
    with suppress(OSError, ValueError):
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
        return max((float(line.split()[1]) for line in lines if line.startswith("btime ")), default=0.0)
    return 0.0
