"""What each plugin costs: calls, total and longest time for each instance and hook of this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Figures(NamedTuple):
    """The cost of one hookimpl so far; times in seconds."""

    calls: int
    total: float
    peak: float


@dataclass
class Meter:
    """Counts the calls of one hookimpl."""

    calls: int = 0
    total: float = 0.0
    peak: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one call that took `seconds`."""
        self.calls += 1
        self.total += seconds
        self.peak = max(self.peak, seconds)

    def read(self) -> tuple[Figures]:
        """Return the figures so far."""
        return (Figures(self.calls, self.total, self.peak),)


@dataclass
class Row:
    """One line of the cost table. Times are in seconds, `max_seconds` the longest single call."""

    instance: str
    hook: str
    calls: int = 0
    total_seconds: float = 0.0
    max_seconds: float = 0.0


class Cost:
    """The cost table of a process; survives recompiling of the hooks."""

    def __init__(self) -> None:
        self._sources: list[tuple[str, Sequence[str], Callable[[], Sequence[Figures]]]] = []

    def watch(self, hook: str, instances: Sequence[str], read: Callable[[], Sequence[Figures]]) -> None:
        """Take the figures of `instances` in `hook` from `read`.

        `read` returns them in the order of `instances`.
        """
        self._sources.append((hook, instances, read))

    def table(self) -> list[Row]:
        """Return rows summed by instance and hook, the most expensive first."""
        rows: dict[tuple[str, str], Row] = {}
        for hook, instances, read in self._sources:
            for instance, figures in zip(instances, read(), strict=True):
                row = rows.setdefault((instance, hook), Row(instance, hook))
                row.calls += figures.calls
                row.total_seconds += figures.total
                row.max_seconds = max(row.max_seconds, figures.peak)
        return sorted((row for row in rows.values() if row.calls), key=lambda row: -row.total_seconds)
