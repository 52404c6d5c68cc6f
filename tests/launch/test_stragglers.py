"""Which rank is too slow, by what all ranks show of their own time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from trainrun.launch.stragglers import Straggler, Stragglers
from trainrun.rundir.pulse import Beat

MS = 1_000_000
WINDOW = 4.0  # a little more than one


def beat(steps: int, total_ns: int) -> Beat:
    return Beat(steps, steps, "training", None, None, False, total_ns, steps, 0)


class Ranks:
    """Ranks that make ten steps a window, each step of a given own time in milliseconds."""

    def __init__(self, stragglers: Stragglers, size: int) -> None:
        self.stragglers = stragglers
        self.now = 100.0
        self.steps = [0] * size
        self.own = [0] * size
        self.found: list[Straggler] = self.look()

    def look(self) -> list[Straggler]:
        beats = {rank: beat(*both) for rank, both in enumerate(zip(self.steps, self.own, strict=True))}
        return self.stragglers.look(self.now, beats)

    def window(self, milliseconds: Sequence[float], steps: int = 10) -> list[Straggler]:
        for rank, each in enumerate(milliseconds):
            self.steps[rank] += steps
            self.own[rank] += int(each * MS) * steps
        self.now += WINDOW
        return self.look()


def test_one_that_is_slow_for_three_windows_is_told_once() -> None:
    ranks = Ranks(Stragglers(1.5), 4)
    found = [ranks.window([10, 10, 40, 11]) for _ in range(6)]
    assert [len(each) for each in found] == [0, 0, 1, 0, 0, 0]
    (straggler,) = found[2]
    assert (straggler.rank, straggler.seconds, straggler.usual) == (2, 0.04, pytest.approx(0.0105))
    assert straggler.message == ("rank 2 is slow: it works 40 ms itself in each step, 3.8 times the usual 10.5 ms")


def test_one_that_recovers_is_told_of_again() -> None:
    ranks = Ranks(Stragglers(1.5), 2)
    slow, well = [10, 30], [10, 10]
    assert [len(ranks.window(each)) for each in [slow] * 3 + [well] + [slow] * 4] == [0, 0, 1, 0, 0, 0, 1, 0]


def test_slow_now_and_then_is_not_slow() -> None:
    ranks = Ranks(Stragglers(1.5), 2)
    assert not any(ranks.window(each) for each in [[10, 30], [10, 30], [10, 10]] * 5)


@pytest.mark.parametrize(
    ("factor", "milliseconds"),
    [
        (1.5, [10, 14]),
        (4.0, [10, 30]),
        (1.5, [0.1, 0.9]),  # nobody minds
        (0.0, [10, 100]),  # off
        (1.5, [10, 10, 10, 10]),
    ],
)
def test_what_is_no_straggler(factor: float, milliseconds: list[float]) -> None:
    ranks = Ranks(Stragglers(factor), len(milliseconds))
    assert not any(ranks.window(milliseconds) for _ in range(6))


def test_half_of_all_may_be_slow() -> None:
    ranks = Ranks(Stragglers(1.5), 6)
    found = [ranks.window([10, 10, 10, 10, 40, 40]) for _ in range(4)]
    assert [[each.rank for each in window] for window in found] == [[], [], [4, 5], []]


def test_two_are_compared_with_the_faster_one() -> None:
    ranks = Ranks(Stragglers(1.5), 2)
    for _ in range(3):
        found = ranks.window([30, 10])
    assert [(each.rank, each.usual) for each in found] == [(0, 0.01)]


def test_without_steps_there_is_nothing_to_compare() -> None:
    ranks = Ranks(Stragglers(1.5), 2)
    assert not any(ranks.window([10, 30], steps=0) for _ in range(10))
    assert [len(ranks.window([10, 30])) for _ in range(4)] == [0, 0, 1, 0]


def test_looks_within_a_window_change_nothing() -> None:
    ranks = Ranks(Stragglers(1.5), 2)
    for _ in range(2):
        ranks.window([10, 30])
        ranks.now += 0.1
        assert ranks.look() == []
    assert len(ranks.window([10, 30])) == 1


def test_a_single_rank_or_one_that_is_missing() -> None:
    stragglers = Stragglers(1.5)
    assert stragglers.look(0.0, {0: beat(1, MS)}) == []
    assert stragglers.look(5.0, {0: beat(9, 9 * MS), 1: beat(0, 0)}) == []
    assert stragglers.look(9.0, {0: beat(19, 19 * MS), 1: beat(9, 900 * MS)}) == [], "the first window of both"


def test_nothing_at_all_is_no_division() -> None:
    assert "times" not in Straggler(1, 2.0, 0.0).message
    assert Straggler(1, 2.0, 0.0).message.startswith("rank 1 is slow: it works 2 s itself")
