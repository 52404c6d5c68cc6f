from __future__ import annotations

from typing import Any

import pytest
from trainrun_callbacks import EpochTimer


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[tuple[str, float, str]] = []

    def log(self, name: str, value: float, reduce: str) -> None:
        self.logged.append((name, value, reduce))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def run() -> Any:
    return FakeRun()


def test_epochs_and_evaluations_are_timed(clock: Clock, run: Any) -> None:
    timer = EpochTimer(clock)
    timer.on_epoch_start(resumed=False)
    clock.now += 2
    timer.on_evaluation_start()
    clock.now += 1
    timer.on_evaluation_end(run, split="eval")
    timer.on_epoch_end(run)
    timer.on_epoch_start(resumed=False)
    clock.now += 5
    timer.on_epoch_end(run)
    assert run.logged == [("seconds/eval", 1, "max"), ("seconds/epoch", 3, "max"), ("seconds/epoch", 5, "max")]


def test_a_resumed_epoch_counts_both_parts(clock: Clock, run: Any) -> None:
    timer = EpochTimer(clock)
    timer.on_epoch_start(resumed=False)
    clock.now += 2
    state = timer.state_dict()
    clock.now += 1000
    timer = EpochTimer(clock)
    timer.load_state_dict(state)
    timer.on_epoch_start(resumed=True)
    clock.now += 3
    timer.on_epoch_end(run)
    assert run.logged == [("seconds/epoch", 5, "max")]


def test_state_saved_between_epochs_adds_nothing(clock: Clock, run: Any) -> None:
    timer = EpochTimer(clock)
    timer.on_epoch_start(resumed=False)
    clock.now += 2
    timer.on_epoch_end(run)
    assert timer.state_dict() == {"elapsed": 0.0}
