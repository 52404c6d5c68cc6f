from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any

from trainrun_callbacks.heartbeat import Heartbeat, HeartbeatOptions

from trainrun.testing import ForkRecipe

RECIPE = """
task = { use = "digits", channels = 1, hidden = 2 }
train = { steps = 6, batch_size = 16, log_every = 2 }
evaluate.splits = []

[plugins.heartbeat]
steps = 3
"""


def beats(result: Any, rank: int) -> list[dict[str, Any]]:
    log = result.paths.rank_log(rank)
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [line for line in lines if line["event"] == "heartbeat"]


def test_rank_0_says_where_it_is(fork_recipe: ForkRecipe) -> None:
    result = fork_recipe(RECIPE)
    third, sixth = [line for line in beats(result, 0) if line["step"] in (3, 6)]
    assert (third["step"], third["epoch"], third["phase"]) == (3, 1, "training")
    assert sixth["loss"] == result.series("train/loss")[6]
    assert sixth["loss_age"] >= 0
    assert sixth["step_age"] >= 0
    assert beats(result, 1) == []
    assert list(result.series("heartbeat/longest_step")) == [2, 4, 6]


class FakeRun:
    """As much of `run` as the plugin reads."""

    world = SimpleNamespace(rank=0)
    step, epoch, phase = 7, 1, "training"
    logs_now = False

    def __init__(self) -> None:
        self.beaten = threading.Event()
        self.lines: list[dict[str, Any]] = []
        self.logged: list[float] = []
        self.logger = self

    def info(self, event: str, **line: Any) -> None:
        self.lines.append(line)
        if len(self.lines) == 3:
            self.beaten.set()

    def log(self, name: str, value: float, reduce: str) -> None:
        assert (name, reduce) == ("heartbeat/longest_step", "max")
        self.logged.append(value)


def test_it_beats_while_a_step_does_not_end() -> None:
    run: Any = FakeRun()
    plugin = Heartbeat(HeartbeatOptions(seconds=0.05))
    plugin.on_train_start(run)
    assert run.beaten.wait(10)
    plugin.on_worker_end()
    assert {line["step"] for line in run.lines} == {7}
    assert run.lines[0]["loss_age"] is None


def test_ages_and_the_longest_step() -> None:
    run: Any = FakeRun()
    run.world = SimpleNamespace(rank=1)
    now = [0.0]
    plugin = Heartbeat(HeartbeatOptions(steps=1), lambda: now[0])
    plugin.on_train_start(run)
    for at in (3.0, 4.0):
        now[0] = at
        run.logs_now = at == 4.0
        plugin.on_update_end(run)
    assert run.logged == [3.0]
    plugin.on_log({"train/loss": 0.5})
    now[0] = 9.0
    plugin.on_step_end(run, step=2)
    assert (run.lines[-1]["loss"], run.lines[-1]["loss_age"], run.lines[-1]["step_age"]) == (0.5, 5.0, 5.0)
