from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from trainrun.rundir.files import write_atomic
from trainrun.rundir.paths import RunPaths
from trainrun.tracking import Ending, Mark, Opened, Record, RunFacts
from trainrun.tracking import shipper as module
from trainrun.tracking.cursor import Cursor
from trainrun.tracking.shipper import Shipper

Log = Callable[..., None]
ENDING = Ending("finished", 0, "all steps were made", 9, {"loss": 0.1})


class Memory:
    """A tracker that keeps what it is sent, and fails as told."""

    def __init__(self, whole_steps: bool = False) -> None:
        self.whole_steps = whole_steps
        self.got: list[int] = []
        self.opened: list[Mark] = []
        self.ended: list[str] = []
        self.closed = 0
        self.has: int | None = None
        self.error: Exception | None = None
        self.loses_answer = False

    def open(self, facts: RunFacts, mark: Mark) -> Opened:
        self.opened.append(mark)
        self.fail()
        return Opened({"run": "r1"}, self.has)

    def send(self, records: Sequence[Record]) -> Mark:
        self.fail()
        self.got += [record.step for record in records]
        if self.loses_answer:
            raise TimeoutError("no answer")
        return {"run": "r1", "count": len(self.got)}

    def finish(self, ending: Ending) -> None:
        self.fail()
        self.ended.append(ending.state)

    def close(self) -> None:
        self.closed += 1

    def fail(self) -> None:
        if self.error is not None:
            raise self.error


class Fixture:
    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        self.told: list[tuple[str, str]] = []
        self.made: list[Shipper] = []

    def __call__(self, tracker: Memory) -> Shipper:
        facts = RunFacts.read(self.paths)
        self.made.append(Shipper("memory", tracker, facts, lambda kind, reason: self.told.append((kind, reason))))
        return self.made[-1]

    @property
    def cursor(self) -> Cursor:
        return Cursor.read(self.paths.tracker("memory"))


@pytest.fixture
def ship(paths: RunPaths) -> Iterator[Fixture]:
    fixture = Fixture(paths)
    yield fixture
    for shipper in fixture.made:
        shipper.close()


@pytest.fixture
def tracker() -> Memory:
    return Memory()


def test_sends_what_there_is_and_goes_on(ship: Fixture, tracker: Memory, log: Log) -> None:
    log(1, 2)
    shipper = ship(tracker)
    assert shipper.turn() == 0.0
    log(3)
    shipper.turn()
    assert tracker.got == [1, 2, 3]
    assert (ship.cursor.step, ship.cursor.count, ship.cursor.sent) == (3, 1, 3)
    assert len(tracker.opened) == 1


def test_another_process_goes_on_where_the_first_left_it(ship: Fixture, tracker: Memory, log: Log) -> None:
    log(1, 2)
    ship(tracker).turn()
    log(2, 3)
    ship(tracker).turn()
    assert tracker.got == [1, 2, 2, 3]
    assert tracker.opened == [{}, {"run": "r1", "count": 2}]


def test_a_resumed_run_sends_no_step_twice(ship: Fixture, tracker: Memory, log: Log, paths: RunPaths) -> None:
    log(1, 2, 3, 4)
    shipper = ship(tracker)
    shipper.turn()
    kept = paths.metrics.read_bytes().splitlines(keepends=True)[:2]
    write_atomic(paths.metrics, b"".join(kept))
    shipper.turn()
    log(3)
    shipper.turn()
    log(4, 5)
    shipper.turn()
    assert tracker.got == [1, 2, 3, 4, 5]


def test_an_outage_is_told_once_and_everything_follows(ship: Fixture, tracker: Memory, log: Log) -> None:
    tracker.error = ConnectionError("nobody\nthere")
    shipper = ship(tracker)
    log(1)
    waits = [shipper.turn() for _ in range(9)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert [kind for kind, _ in ship.told] == ["tracker_outage"]
    assert ship.told[0][1].startswith("ConnectionError: nobody there; what is logged stays in metrics.jsonl")
    assert ship.cursor.trouble == "ConnectionError: nobody there"
    log(2)
    tracker.error = None
    assert shipper.turn() == 0.0
    assert tracker.got == [1, 2]
    assert [kind for kind, _ in ship.told] == ["tracker_outage", "tracker_back"]
    assert ship.cursor.trouble is None


def test_an_outage_midway_opens_anew(ship: Fixture, tracker: Memory, log: Log) -> None:
    shipper = ship(tracker)
    log(1)
    shipper.turn()
    tracker.error = BrokenPipeError("gone")
    log(2)
    assert shipper.turn() > 0
    tracker.error = None
    shipper.turn()
    assert tracker.got == [1, 2]
    assert len(tracker.opened) == 2
    assert tracker.closed == 1


def test_hurrying_starts_with_short_waits_again(ship: Fixture, tracker: Memory) -> None:
    tracker.error = ConnectionError()
    shipper = ship(tracker)
    for _ in range(8):
        shipper.turn()
    shipper.hurry()
    assert shipper.turn() == 0.5


def test_what_the_tracker_knows_counts(ship: Fixture, tracker: Memory, log: Log) -> None:
    log(1, 2, 3)
    ship(tracker).turn()
    tracker.has = 1  # its own process died with steps 2 and 3
    ship(tracker).turn()
    assert tracker.got == [1, 2, 3, 2, 3]
    log(4)
    tracker.has = 4  # it has step 4, of which nobody took note
    ship(tracker).turn()
    assert tracker.got == [1, 2, 3, 2, 3]


def test_the_end_is_told_once_and_again_after_a_resume(ship: Fixture, tracker: Memory, log: Log) -> None:
    shipper = ship(tracker)
    log(1)
    shipper.turn(ending=ENDING)
    shipper.turn(ending=ENDING)
    assert tracker.ended == ["finished"]
    assert ship.cursor.ended == "finished"
    ship(tracker).turn()
    assert ship.cursor.ended is None
    ship(tracker).turn(ending=replace(ENDING, state="failed"))
    assert tracker.ended == ["finished", "failed"]


def test_the_end_waits_until_everything_is_sent(ship: Fixture, tracker: Memory, log: Log) -> None:
    tracker.error = ConnectionError()
    shipper = ship(tracker)
    log(1)
    assert shipper.turn(ending=ENDING) > 0
    assert tracker.ended == []
    tracker.error = None
    shipper.turn(ending=ENDING)
    assert (tracker.got, tracker.ended) == ([1], ["finished"])


def test_whole_steps_are_sent_when_the_run_has_ended(ship: Fixture, log: Log) -> None:
    tracker = Memory(whole_steps=True)
    shipper = ship(tracker)
    log(1, 2)
    shipper.turn()
    assert tracker.got == [1]
    shipper.turn(final=True)
    assert tracker.got == [1, 2]


def test_what_was_sent_is_not_sent_again_when_it_cannot_be_noted(
    ship: Fixture, tracker: Memory, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: this process knows better than the file, and writes it when there is room."""
    shipper = ship(tracker)
    log(1)
    shipper.turn()
    full = True
    write = Cursor.write

    def failing(cursor: Cursor, path: Path) -> None:
        if full:
            raise OSError(28, "No space left on device")
        write(cursor, path)

    monkeypatch.setattr(Cursor, "write", failing)
    log(2)
    assert shipper.turn() > 0
    assert shipper.turn() > 0
    assert ship.told[0][1].startswith("OSError: [Errno 28] No space left on device")
    full = False
    assert shipper.turn() == 0.0
    assert tracker.got == [1, 2]
    assert ship.cursor.step == 2


def test_a_close_that_fails_is_survived(ship: Fixture, tracker: Memory, capsys: pytest.CaptureFixture[str]) -> None:
    tracker.close = lambda: 1 / 0  # type: ignore[method-assign,return-value]
    ship(tracker).close()
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_long_errors_are_cut(ship: Fixture, tracker: Memory) -> None:
    tracker.error = ValueError("x" * 10_000)
    ship(tracker).turn()
    assert len(ship.cursor.trouble or "") < module._SHOWN + 30


@pytest.mark.parametrize("content", ["", "[]", "{", '{"step": 3}'])
def test_a_broken_cursor_is_none(paths: RunPaths, content: str) -> None:
    paths.tracker("memory").write_text(content)
    assert Cursor.read(paths.tracker("memory")) == Cursor()
