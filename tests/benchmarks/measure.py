"""Interleaved trials and their medians. Machines drift, so only figures of one run are compared, as ratios."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def interleave(trials: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Run every trial once a round, forwards and then backwards, so that a slow drift weighs on all alike."""
    found: dict[str, list[T]] = {name: [] for name in trials}
    for turn in range(rounds):
        names = list(trials) if turn % 2 == 0 else list(reversed(trials))
        for name in names:
            found[name].append(trials[name]())
    return found


def paired(values: Sequence[float], base: Sequence[float], combine: Callable[[float, float], float]) -> list[float]:
    """Combine each value with the base's value of the same round."""
    return [combine(value, of_base) for value, of_base in zip(values, base, strict=True)]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median, with the smallest and the largest."""
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def show(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose columns are as wide as they need to be."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())  # noqa: T201 - the table is the product
