from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from trainrun.plugin.background import Background, Lost, drain, snapshot

PATIENCE = 20.0

Make = Callable[..., Background]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes queues, and lets none of their threads outlive the test."""
    made: list[Background] = []

    def queue(size: int = 10, when_full: Any = "drop", name: str = "q") -> Background:
        made.append(Background(name, size, when_full))
        return made[-1]

    yield queue
    assert drain(made, PATIENCE) is not None
    for one in made:
        if one._thread is not None:
            one._thread.join(PATIENCE)
            assert not one._thread.is_alive()


class Gate:
    """A job that says when it began, and ends when it is let."""

    def __init__(self) -> None:
        self.begun, self.open = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.open.wait(PATIENCE)


def test_jobs_run_in_order_on_one_thread_of_the_queue(make: Make) -> None:
    queue, ran = make(), []
    for number in range(5):
        queue.put("h", lambda number=number: ran.append((number, threading.current_thread().name)))
    assert drain([queue], PATIENCE) == {}
    assert ran == [(number, "background q") for number in range(5)]


def test_no_thread_without_a_job(make: Make) -> None:
    assert make()._thread is None


def test_a_full_queue_drops_the_oldest_and_counts(make: Make) -> None:
    queue, gate, ran = make(size=2), Gate(), []
    queue.put("h", gate)
    assert gate.begun.wait(PATIENCE)
    for number in range(5):
        queue.put("h", lambda number=number: ran.append(number))
    gate.open.set()
    assert drain([queue], PATIENCE) == {"q": Lost(dropped=3)}
    assert ran == [3, 4]


def test_a_full_queue_may_block_its_caller_until_there_is_room(make: Make) -> None:
    queue, gate, ran = make(size=1, when_full="block"), Gate(), []
    queue.put("h", gate)
    assert gate.begun.wait(PATIENCE)
    queue.put("h", lambda: ran.append("waiting"))
    done = threading.Event()

    def third() -> None:
        queue.put("h", lambda: ran.append("late"))
        done.set()

    thread = threading.Thread(target=third)
    thread.start()
    assert not done.wait(0.05), "it blocks"
    gate.open.set()
    assert done.wait(PATIENCE)
    thread.join()
    assert drain([queue], PATIENCE) == {}
    assert ran == ["waiting", "late"]


def test_the_end_sets_a_blocked_caller_free(make: Make) -> None:
    queue, gate = make(size=1, when_full="block"), Gate()
    queue.put("h", gate)
    assert gate.begun.wait(PATIENCE)
    queue.put("h", lambda: None)
    thread = threading.Thread(target=queue.put, args=("h", lambda: None))
    thread.start()
    queue.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    gate.open.set()
    assert drain([queue], PATIENCE) == {"q": Lost(late=1)}


def test_a_hanging_queue_delays_no_other(make: Make) -> None:
    hanging, busy, gate, done = make(name="hanging"), make(name="busy"), Gate(), threading.Event()
    hanging.put("h", gate)
    for job in (lambda: None, done.set):
        busy.put("h", job)
    lost: list[dict[str, Lost]] = []
    drainer = threading.Thread(target=lambda: lost.append(drain([hanging, busy], PATIENCE)))
    drainer.start()
    try:
        assert done.wait(PATIENCE), "while the first is waited for"
    finally:
        gate.open.set()
        drainer.join()
    assert lost == [{}]


def test_a_queue_that_misses_the_deadline_is_left_behind(make: Make) -> None:
    queue, gate = make(), Gate()
    queue.put("h", gate)
    queue.put("h", lambda: None)
    assert gate.begun.wait(PATIENCE)
    try:
        assert drain([queue], 0.01) == {"q": Lost(unfinished=2, running="h")}
    finally:
        gate.open.set()


def test_what_comes_after_the_end_is_refused_and_counted(make: Make) -> None:
    queue = make()
    assert drain([queue], 0.0) == {}
    queue.put("h", lambda: pytest.fail("it ran"))
    assert drain([queue], 0.0) == {"q": Lost(late=1)}


def test_snapshots_do_not_change_with_their_originals() -> None:
    metrics = {"loss": 1.0, "parts": [{"a": 1}], "pair": (1, [2])}
    kept = snapshot(metrics)
    metrics["loss"] = 2.0
    metrics["parts"][0]["a"] = 9  # type: ignore[index]
    metrics["pair"][1].append(3)  # type: ignore[index]
    assert kept == {"loss": 1.0, "parts": [{"a": 1}], "pair": (1, [2])}
    assert snapshot("text") == "text"
    assert snapshot(Pair([1], 2)) == Pair([1], 2)


class Pair(NamedTuple):
    first: list[int]
    second: int


def test_what_was_lost_is_told_with_its_reason() -> None:
    assert Lost(dropped=3).told(10.0) == "3 of its background calls were lost: 3 because its queue was full"
    assert Lost(dropped=1, unfinished=2, running="on_log").told(10.0) == (
        "3 of its background calls were lost: 1 because its queue was full; 2 because they had not ended after 10 s,"
        " on_log was running"
    )
    assert Lost(late=1).told(10.0) == "1 of its background calls were lost: 1 because they came after the end"


def test_a_job_that_cannot_record_its_failure_ends_no_thread(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    queue, ran = make(), []

    def broken() -> None:
        raise SystemExit(1)

    queue.put("h", broken)
    queue.put("h", lambda: ran.append("next"))
    assert drain([queue], PATIENCE) == {}
    assert ran == ["next"]
    assert [one.exc_type for one in told] == [SystemExit]
