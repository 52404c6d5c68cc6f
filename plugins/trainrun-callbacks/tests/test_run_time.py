from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trainrun_callbacks.run_time import RunTime

from trainrun.testing import ForkRecipe

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 4, batch_size = 16, log_every = 2 }
evaluate = { splits = [] }
checkpoint = { every = 4 }

[plugins.run-time]
"""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_training_is_logged_and_goes_on_over_attempts(fork_recipe: ForkRecipe) -> None:
    first = fork_recipe(RECIPE)
    second = fork_recipe(RECIPE, overrides=["train.steps=8"], after=first)
    seconds = second.series("run_time/training")
    assert list(seconds) == [2, 4, 6, 8]
    assert sorted(seconds.values()) == list(seconds.values())


def test_time_between_attempts_does_not_count() -> None:
    clock = Clock()
    plugin = RunTime(clock)
    plugin.on_train_start()
    clock.now += 5
    state = plugin.state_dict()
    clock.now += 1000
    plugin = RunTime(clock)
    plugin.load_state_dict(state)
    plugin.on_train_start()
    clock.now += 2
    assert plugin.state_dict() == {"training": 7.0}


def test_the_event_has_the_launch_and_its_attempts(tmp_path: Path) -> None:
    clock = Clock()
    plugin = RunTime(clock)
    plugin.on_launch_start()
    for attempt, seconds in ((1, 3.0), (2, 4.0)):
        clock.now += 1
        plugin.on_attempt_start()
        clock.now += seconds
        plugin.on_attempt_end(attempt)
    paths = SimpleNamespace(events=tmp_path / "events.jsonl", metrics=tmp_path / "metrics.jsonl")
    paths.metrics.write_text('{"run_time/training": 2.0}\n{"run_time/training": 5.5}\n{"x": 1}\n', encoding="utf-8")
    launch: Any = SimpleNamespace(paths=paths)
    plugin.on_launch_end(launch)
    event = json.loads((tmp_path / "events.jsonl").read_text(encoding="utf-8"))
    assert (event["event"], event["seconds"], event["training"]) == ("run_time", 9.0, 5.5)
    assert event["attempts"] == {"1": 3.0, "2": 4.0}
    assert event["reason"] == "9 s in all: attempt 1 3 s, attempt 2 4 s"
