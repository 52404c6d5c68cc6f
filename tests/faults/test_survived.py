"""Plugins whose errors the run survives: recorded, told at the end, and the same on all ranks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trainrun.testing import RunRecipe
from trainrun.worker import main

# Several instances of the faulty plugins, all in one launch: one rank and all ranks, disable and warn.
INSTANCES = {
    "disable-one": {"use": "event", "on_error": "disable", "rank": 1},
    "disable-all": {"use": "event", "on_error": "disable"},
    "warn-one": {"use": "event", "on_error": "warn", "rank": 1},
    "warn-all": {"use": "event", "on_error": "warn"},
    "leave-one": {"use": "event", "on_error": "disable", "rank": 0, "ends": "true"},
    "behind-disable": {"use": "observes", "on_error": "disable", "rank": 1, "at": 1},
    "behind-warn": {"use": "observes", "on_error": "warn", "at": 1},
    "ends-warn": {"use": "ends", "on_error": "warn", "rank": 1},
    "starts": {"on_error": "warn"},
    "watches": {"on_error": "disable"},
    "hangs": {"on_error": "disable"},
}
STEPS = 8
AT = 3


def settings(instances: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"plugins.{name}.{key}": value for name, table in instances.items() for key, value in table.items()}


def test_one_launch_survives_them_all(project: Any) -> None:
    ended = project.launch(**settings(INSTANCES), train__steps=STEPS, task__fault="is_slow")
    assert ended.code == 0, ended.stderr
    assert ended.verdict == f"finished: {STEPS}/{STEPS} steps"
    assert ended.tracebacks == 0
    assert ended.outcome["first_failure"] is None
    events = project.events()

    decisions = {event["plugin"]: event for event in events if event["event"] == "decision"}
    assert set(decisions) == set(INSTANCES) - {"starts", "watches"}
    for name in ("disable-one", "disable-all", "leave-one"):
        check_disabled(ended.calls(name), decisions[name])
    for name in ("warn-one", "warn-all"):
        assert decisions[name]["decision"] == "warn"
        assert sorted(ended.calls(name)) == sorted((rank, step) for rank in (0, 1) for step in range(1, STEPS + 1))
    assert [decisions[name]["ranks"] for name in ("disable-one", "disable-all", "warn-one", "warn-all")] == [
        [1], [0, 1], [1], [0, 1]
    ]  # fmt: skip
    assert decisions["leave-one"]["reason"] == "SystemExit: 0"
    assert decisions["behind-disable"]["decision"] == "disable"
    assert len(ended.calls("behind-disable")) < len(ended.calls("behind-warn")) == STEPS
    assert (decisions["ends-warn"]["hook"], decisions["ends-warn"]["ranks"]) == ("on_worker_end", [1])

    faults = {event["plugin"]: event for event in events if event["event"] == "fault"}
    assert {name: fault["action"] for name, fault in faults.items()} == {"starts": "warn", "watches": "disable"}
    assert faults["watches"]["traceback"].count("the plugin's mistake") == 2  # the line of code and the message
    assert len(ended.calls("watches")) == 1

    # The hanging one delays neither training nor the other observers, and the end by no more than its ten seconds.
    assert decisions["hangs"]["decision"] == "lost"
    assert len(ended.calls("hangs")) == 1
    assert len(metrics(ended)) == STEPS / 2
    assert 9 < ended.outcome["ended"] - metrics(ended)[-1]["time"] < 60
    assert "warning: plugin hangs: 4 of its background calls were lost" in ended.stdout

    for name in INSTANCES.keys() - {"hangs"}:
        told = [line for line in ended.stdout.splitlines() if line.startswith(f"warning: plugin {name} failed in ")]
        assert len(told) == 1, name


def check_disabled(calls: list[tuple[int, int]], decision: dict[str, Any]) -> None:
    """It was called on both ranks up to one and the same step, and never after it."""
    assert (decision["decision"], decision["reason"].partition(":")[0]) in {
        ("disable", "ValueError"),
        ("disable", "SystemExit"),
    }
    assert decision["posted"] == AT
    last = decision["step"]  # applied at the start of the step after this one
    assert AT <= last < STEPS
    assert sorted(calls) == sorted((rank, step) for rank in (0, 1) for step in range(1, last + 1))


@pytest.mark.parametrize("policy", ["disable", "warn"])
@pytest.mark.parametrize("plugin", ["event", "observes", "ends"])
def test_in_one_process(run_recipe: RunRecipe, project: Any, plugin: str, policy: str) -> None:
    result = run_recipe(project.recipe, plugin, overrides=[f"plugins.{plugin}.on_error={policy}"])
    assert result.outcome.ok
    assert {(event["decision"], event["plugin"]) for event in result.events} == {(policy, plugin)}
    assert '"hook failed"' in result.paths.rank_log(0).read_text()


def test_hanging_observer(run_recipe: RunRecipe, project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "_DRAIN", 0.2)
    result = run_recipe(project.recipe, "hangs", overrides=["plugins.hangs.on_error=warn"])
    assert result.outcome.ok
    assert len(result.series("train/loss")) == STEPS / 2
    assert result.outcome.ended - result.outcome.started < 60
    [event] = result.events
    assert (event["decision"], event["plugin"]) == ("lost", "hangs")
    assert event["reason"].startswith("4 of its background calls were lost")


def metrics(ended: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ended.run / "metrics.jsonl").read_text().splitlines()]
