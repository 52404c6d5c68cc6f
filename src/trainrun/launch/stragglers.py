"""Noticing a rank whose own work takes longer than that of the others, which then wait for it in every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from trainrun.rundir.pulse import Beat

_WINDOW = 3.0  # seconds at least: shorter ones show the machine's other work
_IN_A_ROW = 3
_LEAST = 1e-3  # seconds a step that are worth a word


class Straggler(NamedTuple):
    """A rank that was slow for some time: seconds of own work a step, and those of the others."""

    rank: int
    seconds: float
    usual: float

    @property
    def message(self) -> str:
        """Return the straggler in one line."""
        times = f", {self.seconds / self.usual:.1f} times the usual {_shown(self.usual)}" if self.usual else ""
        return f"rank {self.rank} is slow: it works {_shown(self.seconds)} itself in each step{times}"


class Stragglers:
    """Compares the own time of ranks over windows of some seconds.

    Own time is what the host spends outside of the backward pass and the reductions, in which ranks wait for each
    other.

    factor: of the median that is too much; 0 for off.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._begun: float | None = None
        self._first: Mapping[int, Beat] = {}
        self._slow: dict[int, int] = {}

    def look(self, now: float, beats: Mapping[int, Beat]) -> list[Straggler]:
        """Return the new stragglers.

        now: seconds of the monotonic clock.
        beats: what all ranks last showed.
        """
        if not self._factor or len(beats) < 2:
            return []
        if self._begun is None or self._first.keys() != beats.keys():
            self._begun, self._first = now, beats
        if now - self._begun < _WINDOW:
            return []
        means = self._means(beats)
        if means is None:
            return []
        self._begun, self._first = now, beats
        return self._compare(means)

    def _means(self, beats: Mapping[int, Beat]) -> dict[int, float] | None:
        """Return each rank's seconds of own work a step.

        Returns None while one of them has not ended a step in the window.
        """
        steps = {rank: beat.own_steps - self._first[rank].own_steps for rank, beat in beats.items()}
        if min(steps.values()) < 1:
            return None
        return {rank: (beat.own_ns - self._first[rank].own_ns) / steps[rank] / 1e9 for rank, beat in beats.items()}

    def _compare(self, means: Mapping[int, float]) -> list[Straggler]:
        usual = _usual(sorted(means.values()))
        slow = {rank for rank, mean in means.items() if mean > self._factor * usual and mean - usual >= _LEAST}
        self._slow = {rank: self._slow.get(rank, 0) + 1 for rank in slow}
        return [Straggler(rank, means[rank], usual) for rank in sorted(slow) if self._slow[rank] == _IN_A_ROW]


def _usual(means: Sequence[float]) -> float:
    """Return the median of sorted values; of two the lower one.

    The library's takes longer to import than all of this.
    """
    half = len(means) // 2
    return means[0] if len(means) == 2 else means[half] if len(means) % 2 else (means[half - 1] + means[half]) / 2


def _shown(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
