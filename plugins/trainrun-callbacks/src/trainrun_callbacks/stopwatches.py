"""Measuring how long parts of a step take: on the host, or on the device without waiting for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, Protocol

import torch


class Stopwatch(Protocol):
    """Marks moments, and later says how many seconds lay between two of them."""

    def mark(self) -> Any:
        """Return the current moment."""

    def add(self, step: int, name: str, begin: Any, end: Any) -> None:
        """Keep the time between two marks.

        It is one of perhaps several parts of `name` in a step.
        """

    def take(self) -> dict[str, list[float]]:
        """Return the seconds of each step by name.

        They are those that are known by now; the others are for the next call.
        """


class HostStopwatch:
    """Reads the clock of the host: right if the host computes."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._sums: dict[tuple[int, str], float] = {}

    def mark(self) -> float:
        return self._clock()

    def add(self, step: int, name: str, begin: float, end: float) -> None:
        self._sums[step, name] = self._sums.get((step, name), 0.0) + end - begin

    def take(self) -> dict[str, list[float]]:
        found, self._sums = self._sums, {}
        return _by_name(found)


class DeviceStopwatch:
    """Has a GPU note when it comes by. Reads only what the GPU has already passed, so that nothing waits."""

    def __init__(self, make: Callable[[], Any] | None = None) -> None:
        self._make = make or _event
        self._open: deque[tuple[int, str, Any, Any]] = deque()
        self._sums: dict[tuple[int, str], float] = {}

    def mark(self) -> Any:
        event = self._make()
        event.record()
        return event

    def add(self, step: int, name: str, begin: Any, end: Any) -> None:
        self._open.append((step, name, begin, end))

    def take(self) -> dict[str, list[float]]:
        while self._open and self._open[0][3].query():
            step, name, begin, end = self._open.popleft()
            self._sums[step, name] = self._sums.get((step, name), 0.0) + begin.elapsed_time(end) / 1000
        unfinished = self._open[0][0] if self._open else None
        found = {key: seconds for key, seconds in self._sums.items() if key[0] != unfinished}
        self._sums = {key: seconds for key, seconds in self._sums.items() if key[0] == unfinished}
        return _by_name(found)


def _by_name(sums: Mapping[tuple[int, str], float]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for (_, name), seconds in sums.items():
        found.setdefault(name, []).append(seconds)
    return found


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the percentile of `values` for a share from 0 to 1.

    It is the smallest of the values that is at least as great as `share` of them.
    """
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]
