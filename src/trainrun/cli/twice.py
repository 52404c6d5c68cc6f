"""Whether two ranks see the same samples, by evidence that a data set with equal samples does not give."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

_UNLIKELY = 1e-4
_FEWEST = 3  # equal samples at the same places that are no accident

Told = tuple[Literal["ok", "failed", "not compared"], str]


def seen_twice(one: Sequence[str], other: Sequence[str]) -> Told:
    """Compare what rank 0 and rank 1 have seen, in order.

    Returns how that ended and a sentence on it.

    A data set may hold equal samples. If each sample is given to one rank only, two equal ones come to the same rank as
    often as to two ranks. Of samples that occur exactly twice, those on two ranks are counted against those on one:
    each is a fair coin. Samples that occur more often prove nothing: with many of them both ranks see some.
    """
    here, there = Counter(one), Counter(other)
    shared = here.keys() & there.keys()
    if not shared:
        return "ok", f"{len(one)} and {len(other)} samples of the first updates on 2 ranks, and none on both"
    across = [name for name in shared if here[name] == there[name] == 1]
    within = [name for name in {*here, *there} - shared if here[name] + there[name] == 2]
    placed = [name for name in across if one.index(name) == other.index(name)]
    stated = f"{len(shared)} of {len(here.keys() | there.keys())} different samples are on both ranks"
    in_step = len(placed) >= _FEWEST and not within
    if in_step or _tail(len(across), len(across) + len(within)) < _UNLIKELY:
        return "failed", (
            f"rank 0 and rank 1 train on the same data: {stated}{', in the same order' if in_step else ''}; give each"
            " rank its own part in the train loader (run.world.rank of run.world.size), or let build_dataset return a"
            " dataset with a length"
        )
    if len(shared) * 2 <= len(here.keys() | there.keys()):
        return "ok", f"{stated}, as equal samples in the data may be"
    return "not compared", f"because {stated}, and the samples are too few or too similar to show why"


def _tail(heads: int, coins: int) -> float:
    """Return the probability of at least `heads` heads."""
    return sum(math.comb(coins, number) for number in range(heads, coins + 1)) / (1 << coins)
