"""The best few of what was evaluated so far, by step."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple


class Scored(NamedTuple):
    """A step, and the value of the metric there."""

    step: int
    value: float


class Ranking:
    """The best `size`, the best first; of equal values the older one. mode: whether `"min"` or `"max"` is better."""

    def __init__(self, size: int, mode: str) -> None:
        self._size = size
        self._sign = -1 if mode == "max" else 1
        self.entries: list[Scored] = []

    def place(self, new: Scored, also: Sequence[Scored] = ()) -> int | None:
        """Return the place, from 1, that it would have.

        None if it is not good enough, or not finite. also: what counts besides those that were added.
        """
        if not math.isfinite(new.value):
            return None
        others = {old.step: old for old in (*self.entries, *also) if old.step != new.step}
        place = 1 + sum(self._key(old) <= self._key(new) for old in others.values())
        return place if place <= self._size else None

    def add(self, new: Scored) -> bool:
        """Add it if it is good enough; return whether it was.

        A step is in once, with its last value.
        """
        place = self.place(new)
        if place is None:
            return False
        others = [old for old in self.entries if old.step != new.step]
        self.entries = sorted([*others, new], key=self._key)[: self._size]
        return True

    def keep(self, steps: Collection[int]) -> None:
        """Forget the steps that are not among these."""
        self.entries = [one for one in self.entries if one.step in steps]

    @property
    def steps(self) -> list[int]:
        """The steps, that of the best first."""
        return [one.step for one in self.entries]

    def _key(self, one: Scored) -> tuple[float, int]:
        return self._sign * one.value, one.step


def rows(entries: Sequence[Scored]) -> list[dict[str, Any]]:
    """Return plain values for a checkpoint."""
    return [one._asdict() for one in entries]


def scored(rows: Sequence[Mapping[str, Any]]) -> list[Scored]:
    """Return what `rows` were made of."""
    return [Scored(row["step"], row["value"]) for row in rows]
