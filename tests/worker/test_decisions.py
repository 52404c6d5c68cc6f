from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from trainrun.worker.decisions import Decision, Decisions
from trainrun.worker.shared_log import SharedLog


def alone(delay: int = 2) -> Decisions:
    return Decisions(0, None, delay=delay, barrier=lambda: None)


def reasons(decisions: list[Decision]) -> list[str]:
    return [decision.reason for decision in decisions]


# --- a single worker ---


def test_a_decision_is_due_two_steps_later() -> None:
    decisions = alone()
    assert decisions.due(1) == []
    decisions.post("stop", "p", "should_stop", "enough")
    assert decisions.due(2) == []
    assert decisions.due(3) == [Decision("stop", "p", "should_stop", "enough", rank=0, step=1)]
    assert decisions.due(4) == []


def test_settling_takes_what_is_not_due_yet() -> None:
    decisions = alone()
    decisions.due(1)
    decisions.post("stop", "p", "should_stop", "enough")
    assert reasons(decisions.settle()) == ["enough"]
    assert decisions.settle() == []
    assert decisions.due(3) == []


def test_the_same_decision_is_not_posted_twice_until_it_was_applied() -> None:
    decisions = alone()
    for step in (1, 2):
        decisions.due(step)
        decisions.post("stop", "p", "should_stop", f"at {step}")
        decisions.post("evaluate", "p", "should_stop", f"another at {step}")
    assert reasons(decisions.due(3)) == ["at 1", "another at 1"]
    decisions.post("stop", "p", "should_stop", "again")
    assert decisions.due(4) == []
    assert reasons(decisions.due(5)) == ["again"]


def test_it_is_seen_without_a_call_that_nothing_is_due() -> None:
    decisions = alone()
    decisions.due(1)
    assert not decisions.more
    assert decisions.written == decisions.read
    decisions.post("stop", "p", "should_stop", "enough")
    for step in (2, 3):
        assert decisions.more
        decisions.due(step)
    assert not decisions.more
    thread = threading.Thread(target=decisions.post, args=("stop", "p", "h", "from elsewhere"))
    thread.start()
    thread.join()
    assert decisions.more


def test_other_threads_may_post() -> None:
    decisions = alone()
    decisions.due(1)
    threads = [threading.Thread(target=decisions.post, args=("stop", f"p{n}", "h", str(n))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert decisions.due(2) == [], "they are written at the start of this step"
    assert decisions.due(3) == []
    assert sorted(reasons(decisions.due(4))) == [str(n) for n in range(8)]
    thread = threading.Thread(target=decisions.post, args=("stop", "late", "h", "late"))
    thread.start()
    thread.join()
    assert reasons(decisions.settle()) == ["late"]


def test_long_and_strange_reasons_fit(tmp_path: Path) -> None:
    SharedLog.create(tmp_path / "log", 1)
    log = SharedLog(tmp_path / "log", 0, 1)
    decisions = Decisions(0, log, delay=2, barrier=lambda: None)
    for reason in ("\x00" * 100_000, "\N{GRINNING FACE}" * 100_000, "half a pair \ud83d"):
        decisions.post("warn", "p", "h", reason)
        (decision,) = decisions.settle()
        assert len(decision.reason) <= 2000


# --- several ranks, tied only by what training does anyway: nobody leaves a reduction before all have entered it ---

STEPS = 400


def posting(path: Path, size: int) -> Callable[[int], Any]:
    def job(rank: int) -> Any:
        if rank == 0:
            SharedLog.create(path, size)
        dist.barrier()
        decisions = Decisions(rank, SharedLog(path, rank, size), delay=2, barrier=dist.barrier)
        rng, posted, applied = random.Random(rank), [], []
        together = random.Random(99)  # all ranks evaluate at the same steps
        poster = Poster(decisions, rank)
        for step in range(1, STEPS + 1):
            applied.append((step, "due", begin(decisions, step)))
            for number in range(rng.choice((0, 0, 1, 12))):
                posted.append(f"{rank}.{step}.{number}")
                decisions.post("evaluate", posted[-1], "h", "x" * rng.choice((1, 300)))
            if rng.random() < 0.1:
                posted.append(poster.post(step))
            dist.barrier()  # the gradient reduction
            for number in range(rng.choice((0, 0, 1, 3))):
                posted.append(f"{rank}.{step}.after{number}")
                decisions.post("stop", posted[-1], "h", "")
            if together.random() < 0.05:
                applied.append((step, "settle", decisions.settle()))
        applied.append((STEPS, "end", decisions.settle()))
        return posted, [entry for entry in applied if entry[2]]

    return job


def begin(decisions: Decisions, step: int) -> list[Decision]:
    """As the loop does it."""
    decisions.step = step
    return decisions.due(step) if decisions.more or decisions.written != decisions.read else []


class Poster:
    """Posts from a thread of its own, and waits until it has."""

    def __init__(self, decisions: Decisions, rank: int) -> None:
        self.decisions = decisions
        self.rank = rank

    def post(self, step: int) -> str:
        name = f"{self.rank}.{step}.thread"
        thread = threading.Thread(target=self.decisions.post, args=("disable", name, "h", ""))
        thread.start()
        thread.join()
        return name


@pytest.mark.parametrize("size", [2, 3])
def test_all_ranks_apply_each_decision_at_the_same_step(fork_ranks: Any, tmp_path: Path, size: int) -> None:
    found = fork_ranks(posting(tmp_path / "decisions", size), size)
    for rank in found:
        if isinstance(rank, Exception):
            raise rank
    posted = [name for names, _ in found for name in names]
    assert len(posted) > 1000 * size
    applied = found[0][1]
    assert all(others == applied for _, others in found), "same decisions, same steps, same order, on all ranks"
    names = [decision.plugin for _, _, decisions in applied for decision in decisions]
    assert sorted(names) == sorted(posted), "each exactly once, none lost"
    for step, how, decisions in applied:
        if how == "due":
            assert {decision.step for decision in decisions} == {step - 2}
