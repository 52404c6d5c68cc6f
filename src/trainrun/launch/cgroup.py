"""The limits that a container or a scheduler puts on this process, by version 1 or 2 of control groups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")

_MEMORY = ("memory.max", "memory.limit_in_bytes")
_UNLIMITED = 1 << 60  # version 1 has no word for it, and gives a number near 2**63


class Limits(NamedTuple):
    """Bytes of memory, and how much of it is used; processors, may be a fraction; processes. None is unlimited."""

    memory: int | None = None
    memory_used: int | None = None
    processors: float | None = None
    processes: int | None = None


def limits(own: Path = PROC, root: Path = ROOT) -> Limits:
    """Return the tightest limits of this process's groups and their parents.

    Only those that can be seen from here are known.
    """
    groups = _Groups(own, root)
    memory = groups.smallest("memory", *_MEMORY)
    used = groups.smallest("memory", "memory.current", "memory.usage_in_bytes")
    return Limits(memory, used, groups.processors(), groups.smallest("pids", "pids.max", "pids.max"))


def memory_file(own: Path = PROC, root: Path = ROOT) -> tuple[Path, int] | None:
    """Return the file that holds the tightest limit of memory, and the limit.

    The limit is in bytes. Returns None if there is none.
    """
    places = [folder / name for folder, name in _Groups(own, root).places("memory", *_MEMORY)]
    found = [(value, path) for path in places if (value := _number(_text(path))) is not None and value < _UNLIMITED]
    return next(((path, value) for value, path in sorted(found)), None)


def memory_kills(own: Path = PROC, root: Path = ROOT) -> int:
    """Return how many processes of this group the kernel has killed for memory.

    Returns 0 if it does not say.
    """
    for folder, name in _Groups(own, root).places("memory", "memory.events", "memory.oom_control"):
        counts = dict(line.split() for line in _text(folder / name).splitlines() if len(line.split()) == 2)
        if (kills := _number(counts.get("oom_kill", ""))) is not None:
            return kills
    return 0


class _Groups:
    def __init__(self, own: Path, root: Path) -> None:
        self._root = root
        self._paths: dict[str, str] = {}
        with suppress(OSError):
            for line in own.read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                self._paths.update(dict.fromkeys(controllers.split(","), path))

    def smallest(self, controller: str, second: str, first: str) -> int | None:
        """Return the smallest value of a file up to the root group.

        second, first: the name of the file in each version.
        """
        found = []
        for folder, name in self.places(controller, second, first):
            value = _number(_text(folder / name))
            if value is not None and value < _UNLIMITED:
                found.append(value)
                if "usage" in name or "current" in name:
                    break  # of what is used only the nearest group's counts
        return min(found, default=None)

    def processors(self) -> float | None:
        """Return the quota of processor time, in processors."""
        shares = []
        for folder, name in self.places("cpu", "cpu.max", "cpu.cfs_quota_us"):
            text = _text(folder / name)
            period = _text(folder / "cpu.cfs_period_us") if name != "cpu.max" else None
            quota = _quota(f"{text} {period}" if period else text)
            if quota is not None:
                shares.append(quota)
        return min(shares, default=None)

    def places(self, controller: str, second: str, first: str) -> Iterator[tuple[Path, str]]:
        """Yield the folders from the group up to the root.

        Each comes with the name that the file has in its version.
        """
        if "" in self._paths:
            for base in (self._root, self._root / "unified"):
                yield from ((folder, second) for folder in _upwards(base, self._paths[""]))
        if controller in self._paths:
            yield from ((folder, first) for folder in _upwards(self._root / controller, self._paths[controller]))


def _upwards(base: Path, path: str) -> Iterator[Path]:
    """Yield the group's folder and those above it.

    In a container the path may be the host's, and only the base be there.
    """
    parts = [part for part in path.split("/") if part and part != ".."]
    for count in range(len(parts), -1, -1):
        yield base.joinpath(*parts[:count])


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _quota(text: str) -> float | None:
    """Parse a quota: microseconds of each period.

    text: `max 100000`, `-1 100000` or `150000 100000`.
    """
    quota, _, period = text.partition(" ")
    allowed, every = _number(quota), _number(period)
    return allowed / every if allowed and every else None
