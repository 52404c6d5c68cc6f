"""How far a tracker has got with a run: `trackers/NAME.json` in the run directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from trainrun.rundir.files import read_json, write_json
from trainrun.rundir.paths import RunPaths
from trainrun.tracking.spool import Position

VERSION = 1


@dataclass
class Cursor:
    """What has been delivered: all before `step`, and the first `count` records of it; `sent` records in all.

    `mark` is the tracker's own. `ended` is the final state of the run that was reported to it. `trouble` is why nothing
    could be sent at the last try. Both are None otherwise.
    """

    step: int = -1
    count: int = 0
    sent: int = 0
    mark: dict[str, Any] = field(default_factory=dict)
    ended: str | None = None
    trouble: str | None = None

    @property
    def position(self) -> Position:
        """The same as a reader's position."""
        return Position(self.step, self.count)

    def move(self, position: Position, records: int = 0) -> None:
        """Note that everything up to `position` was delivered.

        records: how many of it just now.
        """
        self.step, self.count = position
        self.sent += records

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the cursor in `path`.

        It is at the beginning if there is none, or none that can be read.
        """
        data = read_json(path) or {}
        try:
            return cls(**{name: data[name] for name in cls.__dataclass_fields__})
        except KeyError:
            return cls()

    def write(self, path: Path) -> None:
        """Write it, atomically."""
        write_json(path, {"version": VERSION, **asdict(self)})


def trackers(paths: RunPaths) -> list[str]:
    """Return the instances of trackers that this run was launched with, sorted."""
    return sorted({path.stem for kind in ("*.json", "*.lock") for path in paths.trackers.glob(kind)})


@contextmanager
def sole_sender(paths: RunPaths, name: str) -> Iterator[bool]:
    """Lock the sending for this instance; yield whether no other process sends.

    No other process does before the end of the block.
    """
    descriptor = os.open(paths.tracker_lock(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
