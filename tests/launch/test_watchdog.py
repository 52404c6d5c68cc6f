"""Noticing that nothing goes on, from pulses; and stacks of real processes, whatever they sit in."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trainrun.launch.watchdog import Hang, Watchdog, Where
from trainrun.rundir import RunPaths, WorkerRecord
from trainrun.rundir.process import start_time
from trainrun.rundir.pulse import CRUMB, STACKS_SIGNAL, Beat, Pulse, read_pulse
from trainrun.worker.parent import die_with_parent

PATIENCE = 20.0


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    found = RunPaths(tmp_path)
    found.attempt(1).mkdir(parents=True)
    return found


class Watched:
    """A watchdog over pulses, looked at once in half a second of a clock that stands still otherwise."""

    def __init__(self, paths: RunPaths, size: int, timeout: float) -> None:
        self.dog = Watchdog(paths, 1, range(size), timeout)
        self.now = 1000.0

    def wait(self, seconds: float, each: Callable[[], None] = lambda: None) -> Hang | None:
        """The hang that was noticed within that time."""
        until = self.now + seconds
        while self.now < until:
            self.now += 0.5
            each()
            if (hang := self.dog.poll(self.now)) is not None:
                return hang
        return None


def training(paths: RunPaths, size: int) -> list[Pulse]:
    """The pulses of ranks that train."""
    pulses = [Pulse.create(paths.pulse(1, rank)) for rank in range(size)]
    for pulse in pulses:
        pulse.enter("training")
    return pulses


# --- when it is a hang ---


def test_no_advance_of_any_rank_is_a_hang(paths: RunPaths) -> None:
    pulses = training(paths, 2)
    watched = Watched(paths, 2, 10.0)

    def one_goes_on() -> None:
        pulses[1].advance()

    assert watched.wait(60.0, one_goes_on) is None
    began = watched.now
    hang = watched.wait(60.0)
    assert hang is not None
    assert hang.seconds == 10.0
    assert 9.0 <= watched.now - began <= 11.0


@pytest.mark.parametrize(("timeout", "counted"), [(100.0, 100), (10.0, 60)])
def test_time_without_a_pulse_counts(paths: RunPaths, timeout: float, counted: int) -> None:
    watched = Watched(paths, 2, timeout)
    assert watched.wait(counted - 1) is None
    hang = watched.wait(60.0)
    assert hang is not None
    assert hang.message == f"no rank advanced for {counted} s: ranks 0 and 1 have not begun"


def test_getting_ready_to_train_may_take_a_minute(paths: RunPaths) -> None:
    pulses = training(paths, 2)
    pulses[1].enter("setup")
    watched = Watched(paths, 2, 10.0)
    assert watched.wait(59.0) is None
    hang = watched.wait(5.0)
    assert hang is not None
    assert "rank 1 sits in setup" in hang.message
    pulses[1].enter("training")
    assert watched.wait(9.0) is None
    assert watched.wait(5.0) is not None


def test_the_first_pulse_is_an_advance(paths: RunPaths) -> None:
    watched = Watched(paths, 2, 100.0)
    assert watched.wait(90.0) is None
    Pulse.create(paths.pulse(1, 1))
    assert watched.wait(90.0) is None
    assert watched.wait(20.0) is not None


def test_a_timeout_of_zero_is_for_ever(paths: RunPaths) -> None:
    assert Watched(paths, 2, 0.0).wait(10_000.0) is None


def test_while_it_was_itself_stopped_it_saw_nothing(paths: RunPaths) -> None:
    (pulse,) = training(paths, 1)
    watched = Watched(paths, 1, 10.0)
    assert watched.wait(5.0, pulse.advance) is None
    watched.now += 3600.0
    assert watched.wait(5.0) is None
    pulse.advance()
    assert watched.wait(5.0) is None


def test_it_does_not_look_at_every_call(paths: RunPaths) -> None:
    dog = Watchdog(paths, 1, range(1), 10.0)
    Pulse.create(paths.pulse(1, 0))
    dog.poll(1.0)
    first = dog.beats
    for hundredth in range(20):
        dog.poll(1.0 + hundredth / 100)
    assert dog.beats is first
    dog.poll(1.3)
    assert dog.beats is not first


# --- whom it blames ---


def where(
    rank: int, advances: int = 9, hook: str | None = None, *, waiting: bool = False, stopped: bool = False
) -> Where:
    instance = None if hook is None else "providers" if hook == "backward" else "sleepy"
    return Where(rank, Beat(7, advances, "training", instance, hook, waiting, 0, 0, 0), stopped)


BACKWARD = "in backward of plugin providers at step 7"


@pytest.mark.parametrize(
    ("ranks", "told"),
    [
        (
            [where(0, hook="backward", waiting=True), where(1, hook="on_step_start")],
            f"rank 1 sits in on_step_start of plugin sleepy at step 7; rank 0 waits {BACKWARD}",
        ),
        (
            [where(0, 10, hook="backward", waiting=True), where(1, hook="on_step_end")],
            f"rank 1 sits in on_step_end of plugin sleepy at step 7; rank 0 waits {BACKWARD}",
        ),
        (
            [where(rank, hook="backward", waiting=True) for rank in range(3)],
            f"ranks 0, 1 and 2 wait {BACKWARD}",
        ),
        (
            [where(0, hook="backward", waiting=True, stopped=True), where(1, hook="backward", waiting=True)],
            f"rank 0 is stopped {BACKWARD}; rank 1 waits {BACKWARD}",
        ),
        (
            [where(0), where(1, hook="on_log")],
            "rank 1 sits in on_log of plugin sleepy at step 7; rank 0 sits between the hooks of training at step 7",
        ),
        (
            [where(0), Where(1, None)],
            "rank 1 has not begun; rank 0 sits between the hooks of training at step 7",
        ),
        (
            [*(where(rank, 10, hook="backward", waiting=True) for rank in range(12)), where(12, hook="on_log")],
            "rank 12 sits in on_log of plugin sleepy at step 7; "
            f"ranks 0, 1, 2, 3, 4, 5, 6, 7 and 4 more wait {BACKWARD}",
        ),
    ],
)
def test_who_sits_where(ranks: list[Where], told: str) -> None:
    assert Hang(10.0, tuple(ranks)).message == f"no rank advanced for 10 s: {told}"


# --- the stacks of real processes ---


def sleeps() -> None:
    while True:
        signal.pause()


def spins() -> None:
    while True:
        pass


def holds_the_lock() -> None:
    re.match(r"(a|a)*$", "a" * 64 + "b")


@pytest.fixture
def worker(paths: RunPaths) -> Iterator[Callable[[int, Callable[[], None]], WorkerRecord]]:
    """Start a process that shows itself as a worker does and then does something for ever."""
    started: list[int] = []

    def start(rank: int, then: Callable[[], None]) -> WorkerRecord:
        pid = os.fork()
        if pid == 0:
            die_with_parent()
            faulthandler.register(STACKS_SIGNAL, file=paths.stacks(1, rank).open("w"), all_threads=True)
            pulse = Pulse.create(paths.pulse(1, rank))
            pulse.enter("training")
            pulse.begin_step(7)
            pulse.slots[CRUMB] = pulse.crumb("sleepy", "on_step_start")
            then()
            os._exit(1)
        started.append(pid)
        deadline = time.monotonic() + PATIENCE
        while (beat := read_pulse(paths.pulse(1, rank))) is None or beat.hook is None:
            assert time.monotonic() < deadline
            os.sched_yield()
        return WorkerRecord(pid, pid, start_time(pid) or 0, rank, "training")

    yield start
    for pid in started:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def hang(paths: RunPaths, size: int) -> tuple[Watchdog, Hang]:
    watched = Watched(paths, size, 2.0)
    found = watched.wait(60.0)
    assert found is not None
    return watched.dog, found


@pytest.mark.parametrize("then", [sleeps, spins, holds_the_lock])
def test_each_writes_its_stacks(paths: RunPaths, worker: Callable[..., WorkerRecord], then: Callable[[], None]) -> None:
    records = {rank: worker(rank, then) for rank in range(2)}
    dog, found = hang(paths, 2)
    dumped = dog.dump(found, records)
    for place in dumped.ranks:
        assert place.stacks == paths.stacks(1, place.rank)
        assert f"in {then.__name__}" in place.stacks.read_text()
    assert dumped.message == (
        "no rank advanced for 2 s: ranks 0 and 1 sit in on_step_start of plugin sleepy at step 7; "
        "stacks: attempts/1/stacks-*.txt"
    )


def test_a_stopped_one_is_named_and_continued(paths: RunPaths, worker: Callable[..., WorkerRecord]) -> None:
    records = {rank: worker(rank, sleeps) for rank in range(2)}
    os.kill(records[1].pid, signal.SIGSTOP)
    os.waitpid(records[1].pid, os.WUNTRACED)
    dog, found = hang(paths, 2)
    dumped = dog.dump(found, records)
    assert [place.rank for place in dumped.blamed] == [1]
    assert "rank 1 is stopped in on_step_start" in dumped.message
    assert all(place.stacks is not None for place in dumped.ranks)


def test_who_cannot_write_is_not_waited_for_for_ever(paths: RunPaths, worker: Callable[..., WorkerRecord]) -> None:
    def deaf() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [STACKS_SIGNAL])
        (paths.root / "deaf").touch()
        sleeps()

    records = {0: worker(0, sleeps), 1: worker(1, deaf)}
    deadline = time.monotonic() + PATIENCE
    while not (paths.root / "deaf").exists():
        assert time.monotonic() < deadline
        os.sched_yield()
    dog, found = hang(paths, 2)
    began = time.monotonic()
    dumped = dog.dump(found, records)
    assert time.monotonic() - began < 10.0
    assert [place.stacks is not None for place in dumped.ranks] == [True, False]


def test_one_that_is_gone_or_another_process_is_not_signalled(paths: RunPaths) -> None:
    training(paths, 2)
    dog, found = hang(paths, 2)
    own = start_time(os.getpid()) or 0
    records = {
        0: WorkerRecord(os.getpid(), os.getpgrp(), own + 1, 0, "training"),  # the signal would end this test
        1: WorkerRecord(2**22 + 1, 1, 1, 1, "training"),
    }
    assert dog.dump(found, records).message == found.message
