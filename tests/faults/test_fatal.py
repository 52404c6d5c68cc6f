"""Plugins whose errors end the run: one message, one traceback, exit code 1, and nothing left running."""

from __future__ import annotations

from typing import Any

import pytest

from trainrun import HookFailed, TrainingError
from trainrun.testing import RunRecipe


def where(name: str, hook: str) -> str:
    """What must be said of the plugin: who raised what, where, and how to do without it."""
    return (
        f"plugin '{name}' raised ValueError in {hook}: the plugin's mistake; "
        f"to run without it: -p no:{name} (from faulty-plugins 1.2)"
    )


# Errors of all kinds of hooks but events fail the run, also where the recipe asks for another policy.
HOOKS = {
    "event": "on_step_end",
    "observes": "on_log",
    "ends": "on_worker_end",
    "changes": "on_gradients_ready",
    "provides": "move_batch",
    "votes": "should_stop",
    "wraps": "on_step_start",
    "forgets": "state_dict",
}
NEVER_SURVIVED = ["changes", "provides", "votes", "wraps", "forgets"]


@pytest.mark.parametrize(
    ("plugin", "policy", "rank"),
    [
        ("event", "fail", 1),
        pytest.param("event", "fail", -1, marks=pytest.mark.long),
        ("provides", "disable", 1),
        pytest.param("observes", "fail", 1, marks=pytest.mark.long),
    ],
)
def test_launch(project: Any, plugin: str, policy: str, rank: int) -> None:
    settings = {f"plugins.{plugin}.on_error": policy, f"plugins.{plugin}.rank": rank}
    ended = project.launch(plugin, **settings)
    assert ended.code == 1
    assert ended.verdict.startswith("failed: rank 1 failed at step " if rank == 1 else "failed: rank ")
    assert ended.verdict.endswith(f": {where(plugin, HOOKS[plugin])}")
    assert ended.tracebacks == 1
    assert ended.stderr.count("ValueError: the plugin's mistake") == 1
    failure = ended.outcome["first_failure"]
    assert (failure["instance"], failure["hook"], failure["kind"]) == (plugin, HOOKS[plugin], "error")


@pytest.mark.parametrize("plugin", HOOKS)
def test_in_one_process(run_recipe: RunRecipe, project: Any, plugin: str) -> None:
    check_fails(run_recipe, project, plugin, "fail")


@pytest.mark.parametrize("plugin", NEVER_SURVIVED)
@pytest.mark.parametrize("policy", ["disable", "warn"])
def test_whatever_the_policy(run_recipe: RunRecipe, project: Any, plugin: str, policy: str) -> None:
    check_fails(run_recipe, project, plugin, policy)


def check_fails(run_recipe: RunRecipe, project: Any, plugin: str, policy: str) -> None:
    result = run_recipe(project.recipe, plugin, overrides=[f"plugins.{plugin}.on_error={policy}"], fails=True)
    assert isinstance(result.error, HookFailed)
    assert str(result.error) == where(plugin, HOOKS[plugin])
    assert isinstance(result.error.__cause__, ValueError)


def test_clients_hook(project: Any) -> None:
    ended = project.launch("starts")
    assert ended.code == 1
    assert ended.verdict == "failed: " + where("starts", "on_attempt_start")
    assert ended.tracebacks == 1
    assert ended.outcome["first_failure"]["rank"] is None


def test_clients_hook_while_workers_run(project: Any) -> None:
    ended = project.launch("watches")
    assert ended.code == 1
    assert ended.verdict == "failed: " + where("watches", "on_status")
    assert ended.tracebacks == 1


def test_before_anything_is_created(project: Any) -> None:
    ended = project.launch("checks")
    assert ended.code == 1
    assert "error: " + where("checks", "check_recipe") in ended.stderr
    assert ended.tracebacks == 1
    assert not ended.runs.exists()


@pytest.mark.long
def test_sys_exit_is_a_failure(project: Any) -> None:
    ended = project.launch("event", plugins__event__ends="true", plugins__event__rank=1)
    assert ended.code == 1
    assert "rank 1 failed at step 3: plugin 'event' raised SystemExit in on_step_end: 0" in ended.verdict


def test_state_that_cannot_be_kept(project: Any) -> None:
    ended = project.launch("keeps")
    assert ended.code == 1
    assert "plugin 'keeps': state['inner']['callback'][1] is a function" in ended.verdict
    assert ended.verdict.endswith("to run without it: -p no:keeps (from faulty-plugins 1.2)")
    assert ended.tracebacks == 0
    assert ended.calls("keeps") == []


def test_later_errors_do_not_hide_the_first(run_recipe: RunRecipe, project: Any) -> None:
    settings = ["plugins.event.on_error=fail", "plugins.ends.on_error=fail"]
    result = run_recipe(project.recipe, "event", "ends", overrides=settings, fails=True)
    assert isinstance(result.error, HookFailed)
    assert result.error.instance == "event"
    assert [note.partition(" raised")[0] for note in result.error.__notes__] == ["then: plugin 'ends'"] * 2


def test_late_error_of_an_observer(run_recipe: RunRecipe, project: Any) -> None:
    # The last log comes after the last step: only the end of the run can still notice.
    settings = ["plugins.observes.on_error=fail", "plugins.observes.at=8"]
    result = run_recipe(project.recipe, "observes", overrides=settings, fails=True)
    assert isinstance(result.error, TrainingError)
    assert "plugin 'observes' raised ValueError in on_log" in str(result.error)
