"""Whether the kernel killed a process for want of memory, and whose limit that was."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from trainrun.launch import cgroup

_MIB = 1024 * 1024


class Watch(NamedTuple):
    """The number of processes that the kernel had killed for memory when the watch began."""

    before: int
    own: Path
    root: Path

    @classmethod
    def begin(cls, own: Path = cgroup.PROC, root: Path = cgroup.ROOT) -> Watch:
        """Begin to watch the control group of this process.

        It is of version 1 or 2. Workers are in the same one.
        """
        return cls(cgroup.memory_kills(own, root), own, root)

    def shortage(self) -> str | None:
        """Return what ran out of memory since, with its limit.

        Returns None if the kernel has killed no process for that.
        """
        if cgroup.memory_kills(self.own, self.root) <= self.before:
            return None
        limit = cgroup.memory_file(self.own, self.root)
        if limit is None:
            return "the machine ran out of memory"
        path, value = limit
        return f"its control group ran out of memory; the limit is {value / _MIB:,.0f} MiB ({path})"
