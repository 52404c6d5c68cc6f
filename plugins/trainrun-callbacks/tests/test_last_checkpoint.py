from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from trainrun_callbacks.last_checkpoint import LastCheckpoint, LastCheckpointOptions

from trainrun import hookimpl
from trainrun.testing import ForkRecipe, Result, RunRecipe

RECIPE = """
task = { use = "digits", channels = 2, hidden = 8 }
train = { steps = 7, batch_size = 16, log_every = 4 }
evaluate = { splits = [] }
checkpoint = { every = 3, keep = 9 }

[plugins.last-checkpoint]
"""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def last(clock: Clock, every: float | None = 10.0) -> LastCheckpoint:
    return LastCheckpoint(LastCheckpointOptions(every=every), clock)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def run(tmp_path: Any) -> Any:
    return SimpleNamespace(step=0, paths=SimpleNamespace(checkpoints=tmp_path), logger=Mock())


def link(result: Result, name: str = "last") -> str:
    return str((result.paths.checkpoints / name).readlink())


def test_the_link_leads_to_the_newest(fork_recipe: ForkRecipe) -> None:
    assert link(fork_recipe(RECIPE)) == "step-000006"
    result = fork_recipe(RECIPE, overrides=["checkpoint.at_end=true", 'plugins.last-checkpoint.link="newest"'])
    assert link(result, "newest") == "step-000007"


def test_the_link_is_repaired_where_an_older_checkpoint_is_gone_on_from(fork_recipe: ForkRecipe) -> None:
    class Look:
        @hookimpl(ranks="zero", trylast=True)
        def on_train_start(self, run: Any) -> None:
            path = run.paths.checkpoints / "last"
            (run.paths.root / f"seen-{run.attempt}").write_text(str(path.readlink()) if path.is_symlink() else "none")

    first = fork_recipe(RECIPE, Look)
    shutil.rmtree(first.paths.checkpoints / "step-000006")
    fork_recipe(RECIPE, Look, after=first)
    assert [(first.paths.root / f"seen-{attempt}").read_text() for attempt in (1, 2)] == ["none", "step-000003"]
    assert link(first) == "step-000006"


def test_by_time(run_recipe: RunRecipe) -> None:
    overrides = ["checkpoint={at_end=false}", 'plugins.last-checkpoint.every="1ms"']
    result = run_recipe(RECIPE, overrides=overrides)
    decisions = [event for event in result.events if event.get("hook") == "should_checkpoint"]
    assert {event["plugin"] for event in decisions} == {"last-checkpoint"}
    assert {event["reason"] for event in decisions} == {"every = 0.001 s"}
    assert link(result).startswith("step-")


def test_time_goes_on_over_attempts(clock: Clock, run: Any) -> None:
    plugin = last(clock)
    plugin.on_train_start(run)
    clock.now += 6
    assert plugin.should_checkpoint() is None
    state = plugin.state_dict()
    clock.now += 1000
    plugin = last(clock)
    plugin.load_state_dict(state)
    plugin.on_train_start(run)
    clock.now += 3
    assert plugin.should_checkpoint() is None
    clock.now += 1
    assert plugin.should_checkpoint() == "every = 10 s"
    assert plugin.should_checkpoint() is None
    clock.now += 10
    assert plugin.should_checkpoint() is not None


def test_without_a_time_it_asks_for_nothing(clock: Clock, run: Any) -> None:
    plugin = last(clock, None)
    plugin.on_train_start(run)
    clock.now += 1e9
    assert plugin.should_checkpoint() is None


def test_a_link_to_nothing_is_removed(clock: Clock, run: Any) -> None:
    (run.paths.checkpoints / "last").symlink_to("step-000004")
    last(clock).on_train_start(run)
    assert list(run.paths.checkpoints.iterdir()) == []


def test_what_is_no_checkpoint_is_passed_over(clock: Clock, run: Any) -> None:
    run.step = 9
    for name in ("step-x", "step-000004", "step-000008.tmp", "step-000010"):
        (run.paths.checkpoints / name).mkdir()
    last(clock).on_train_start(run)
    assert str((run.paths.checkpoints / "last").readlink()) == "step-000004"


def test_a_link_that_cannot_be_made_fails_nothing(clock: Clock, run: Any) -> None:
    (run.paths.checkpoints / "last").mkdir()
    plugin = last(clock)
    plugin.on_checkpoint_saved(run, checkpoint="x/step-000004")
    run.logger.warning.assert_called_once()
    (run.paths.checkpoints / "last").rmdir()
    plugin.on_checkpoint_saved(run, checkpoint="x/step-000005")
    assert str((run.paths.checkpoints / "last").readlink()) == "step-000005"


def test_what_is_known_to_be_wrong_vetoes_the_launch() -> None:
    options = LastCheckpointOptions.from_table({"every": "0s", "link": "step-1"})
    first, second = LastCheckpoint(options).check_recipe()
    assert first == "every = 0: expected a time between two checkpoints; leave it out for none"
    assert "could be taken for a checkpoint" in second
    assert LastCheckpoint(LastCheckpointOptions.from_table({"every": "10m"})).check_recipe() == []
