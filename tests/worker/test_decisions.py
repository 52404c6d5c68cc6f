from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from trainrun.errors import TrainrunError
from trainrun.worker.decisions import Decision, Decisions, SharedLog

AREA = 1 << 20


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


# --- the shared log ---


def logs(folder: Path, size: int) -> list[SharedLog]:
    path = folder / "decisions" / "log"
    SharedLog.create(path, size)
    return [SharedLog(path, place, size) for place in range(size)]


def test_every_rank_reads_what_any_rank_appended_once(tmp_path: Path) -> None:
    first, second = logs(tmp_path, 2)
    assert first.news() == []
    second.append(b"b1")
    first.append(b"a1")
    first.append(b"")
    assert first.news() == [b"a1", b"", b"b1"]
    assert first.news() == []
    second.append(b"b2")
    assert second.news() == [b"a1", b"", b"b1", b"b2"]
    assert first.news() == [b"b2"]
    first.close()
    second.close()


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 16 << 10), st.integers(0, 2**32))
def test_the_ring_wraps_around(tmp_path_factory: pytest.TempPathFactory, largest: int, seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.randint(0, largest) for _ in range(min(2 * AREA // largest, 2000))]
    first, second = logs(tmp_path_factory.mktemp("log"), 2)
    written: list[bytes] = []
    read: list[bytes] = []
    for size in sizes:
        entry = rng.randbytes(size)
        written.append(entry)
        first.append(entry)
        if rng.random() < 0.1 or len(written) % 30 == 0:  # before the writer comes round again
            read += second.news()
    assert read + second.news() == written
    first.close()
    second.close()


def test_entries_end_exactly_at_the_end_of_the_ring(tmp_path: Path) -> None:
    first, second = logs(tmp_path, 2)
    entries = [bytes([place]) * (8192 - 8) for place in range(130)]  # 128 of them fill the ring
    for entry in entries:
        first.append(entry)
        assert second.news() == [entry]


def test_an_entry_that_is_not_whole_yet_is_read_later(tmp_path: Path) -> None:
    writer, reader = logs(tmp_path, 2)
    writer.append(b"first")
    writer.append(b"second")
    start = 8 * 2 + 8 + len(b"first") + 8
    whole = bytes(writer._memory[start : start + 6])
    writer._memory[start : start + 6] = b"......"  # as if this store were not visible yet
    assert reader.news() == [b"first"]
    assert reader.news() == []
    writer._memory[start : start + 6] = whole
    assert reader.news() == [b"second"]


def test_what_is_too_large_is_refused(tmp_path: Path) -> None:
    (log,) = logs(tmp_path, 1)
    with pytest.raises(TrainrunError, match="too large"):
        log.append(b"x" * (16 * 1024 + 1))


def test_long_and_strange_reasons_fit(tmp_path: Path) -> None:
    (log,) = logs(tmp_path, 1)
    decisions = Decisions(0, log, delay=2, barrier=lambda: None)
    for reason in ("\x00" * 100_000, "\N{GRINNING FACE}" * 100_000, "half a pair \ud83d"):
        decisions.post("warn", "p", "h", reason)
        (decision,) = decisions.settle()
        assert len(decision.reason) <= 2000


def test_the_log_is_made_once(tmp_path: Path) -> None:
    SharedLog.create(tmp_path / "log", 1)
    with pytest.raises(FileExistsError):
        SharedLog.create(tmp_path / "log", 1)


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
            applied.append((step, "due", decisions.due(step)))
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
