"""What each plugin costs: calls, total and longest time for each instance and hook of this process."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Chain:
    """The running figures of one compiled hook; lists are indexed by the place in the chain.

    Every member of an event or vote is called as often as the hook: they are `counted_once`, in
    `calls[0]`. A provider's later members may be called less often than its first.
    """

    hook: str
    instances: tuple[str, ...]
    counted_once: bool
    calls: list[int] = field(init=False)
    total: list[float] = field(init=False)
    peak: list[float] = field(init=False)

    def __post_init__(self) -> None:
        size = len(self.instances)
        self.calls = [0] * size
        self.total = [0.0] * size
        self.peak = [0.0] * size

    def add(self, place: int, seconds: float) -> None:
        """Count one call that took `seconds`."""
        self.calls[place] += 1
        self.total[place] += seconds
        self.peak[place] = max(self.peak[place], seconds)


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
        self._chains: list[Chain] = []

    def chain(self, hook: str, instances: tuple[str, ...], counted_once: bool) -> Chain:
        """Open the figures of a newly compiled hook."""
        chain = Chain(hook, instances, counted_once)
        self._chains.append(chain)
        return chain

    def table(self) -> list[Row]:
        """Rows summed by instance and hook, the most expensive first."""
        rows: dict[tuple[str, str], Row] = {}
        for chain in self._chains:
            for place, instance in enumerate(chain.instances):
                row = rows.setdefault((instance, chain.hook), Row(instance, chain.hook))
                row.calls += chain.calls[0 if chain.counted_once else place]
                row.total_seconds += chain.total[place]
                row.max_seconds = max(row.max_seconds, chain.peak[place])
        return sorted((row for row in rows.values() if row.calls), key=lambda row: -row.total_seconds)
