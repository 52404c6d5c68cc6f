from __future__ import annotations

from typing import Any

import pytest
import torch
from trainrun_callbacks import EpochTimer

from trainrun import hookimpl
from trainrun.testing import ForkRecipe

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { epochs = 2, batch_size = 500, log_every = 1 }
evaluate = { splits = [] }

[plugins.epoch-timer]
"""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeRun:
    step, total_steps = 1, 100
    epoch_progress = 1.0

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


class Stop:
    """Stops after two steps, within the first epoch."""

    @hookimpl
    def should_stop(self, run: Any) -> str | None:
        return "enough" if run.step == 1 and run.attempt == 1 else None  # it takes effect a step later


def test_an_epoch_that_is_stopped_within_is_logged_when_it_is_over(fork_recipe: ForkRecipe) -> None:
    saves = ["checkpoint.at_end=true"]
    first = fork_recipe(RECIPE, Stop, overrides=saves)
    assert first.outcome.step == 2
    assert first.series("seconds/epoch") == {}
    elapsed = torch.load(first.paths.checkpoints / "step-000002" / "plugins" / "epoch-timer.pt", weights_only=True)
    second = fork_recipe(RECIPE, Stop, overrides=saves, after=first)
    one, two = second.series("seconds/epoch").values()
    assert one > elapsed["elapsed"] > 0
    assert two > 0


def test_steps_that_end_within_an_epoch_log_none(fork_recipe: ForkRecipe) -> None:
    steps = RECIPE.replace("epochs = 2", "steps = 2")
    assert fork_recipe(steps).series("seconds/epoch") == {}
