"""What the client does about what it sees in the pulses."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from trainrun.launch import stragglers, watchdog
from trainrun.launch.vigil import Hung, Vigil
from trainrun.rundir import RunPaths
from trainrun.rundir.files import read_lines
from trainrun.rundir.pulse import Pulse

MS = 1_000_000


class Clock:
    """A clock that a test sets, for every module."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def pulses(paths: RunPaths) -> list[Pulse]:
    paths.attempt(1).mkdir()
    made = [Pulse.create(paths.pulse(1, rank)) for rank in range(2)]
    for pulse in made:
        pulse.enter("training")
    return made


def test_a_straggler_is_told_once_and_kept(
    paths: RunPaths, make: Callable[..., Any], clock: Clock, pulses: list[Pulse], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stragglers, "_WINDOW", 3.0)
    own = iter(range(0, 10**12, 10 * MS))
    monkeypatch.setattr("trainrun.rundir.pulse.monotonic_ns", lambda: next(own))
    said: list[str] = []
    vigil = Vigil(make(paths), said.append)
    vigil.look()
    for step in range(1, 40):
        for rank, pulse in enumerate(pulses):
            pulse.begin_step(step)
            for _ in range(4 * rank):
                next(own)
            pulse.end_step()
        clock.now += 0.5
        vigil.look()
    assert said == ["warning: rank 1 is slow: it works 50 ms itself in each step, 5.0 times the usual 10 ms"]
    (event,) = read_lines(paths.events)[0]
    assert (event["event"], event["rank"], event["attempt"]) == ("straggler", 1, 1)
    assert event["reason"] == said[0].removeprefix("warning: ")


def test_a_hang_is_raised_and_told(
    paths: RunPaths, make: Callable[..., Any], clock: Clock, pulses: list[Pulse], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "_WRITING", 0.0)
    pulses[0].advance()
    said: list[str] = []
    vigil = Vigil(make(paths, launch={"timeout": 5.0}), said.append)
    with pytest.raises(Hung) as hung:
        look_on(vigil, clock)
    where = "between the hooks of training"
    told = f"no rank advanced for 5 s: rank 1 sits {where}; rank 0 sits {where}"
    assert str(hung.value) == hung.value.hang.message == told
    assert said == [f"{told}; ending the attempt"]


def look_on(vigil: Vigil, clock: Clock) -> None:
    for _ in range(20):
        vigil.look()
        clock.now += 0.5
