from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trainrun_callbacks.result import Result, ResultOptions, read_results

from trainrun import Outcome, Recipe

LINES = [
    {"step": 1, "time": 1.0, "train/loss": 3.0},
    {"step": 2, "time": 2.0, "eval/accuracy": 0.5, "eval/loss": 2.0},
    {"step": 4, "time": 3.0, "eval/accuracy": 0.7, "eval/loss": "NaN"},
    {"step": 6, "time": 4.0, "eval/accuracy": 0.6, "eval/loss": 2.5},
]


def finished(tmp_path: Path, outcome: Outcome, plugins: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    recipe = Recipe.from_data({"task": {"use": "digits"}, "train": {"steps": 1}, "plugins": plugins or {}})
    paths = SimpleNamespace(root=tmp_path, metrics=tmp_path / "metrics.jsonl", events=tmp_path / "events.jsonl")
    launch: Any = SimpleNamespace(paths=paths, recipe=recipe, run_id="run")
    plugin = Result(ResultOptions(**options))
    plugin.on_launch_start()
    plugin.on_launch_end(launch, outcome)
    found: dict[str, Any] = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture
def metrics(tmp_path: Path) -> None:
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 8, "eval/acc', encoding="utf-8")


@pytest.mark.usefixtures("metrics")
def test_last_and_best_metrics(tmp_path: Path) -> None:
    told = finished(tmp_path, Outcome("finished", 0, "all 6 steps were made", 6), best={"eval/loss": "min"})
    assert (told["ok"], told["state"], told["step"], told["failure"]) == (True, "finished", 6, None)
    assert told["metrics"]["train/loss"] == {"value": 3.0, "step": 1}
    assert told["metrics"]["eval/accuracy"] == {"value": 0.6, "step": 6}
    assert told["best"] == {"eval/loss": {"value": 2.0, "step": 2, "mode": "min"}}


@pytest.mark.usefixtures("metrics")
def test_what_others_monitor_has_a_best(tmp_path: Path) -> None:
    plugins = {
        "early-stopping": {"monitor": "eval/loss"},
        "mine": {"use": "best-checkpoint", "monitor": "eval/accuracy", "mode": "max"},
        "norms": {},
    }
    best = finished(tmp_path, Outcome("stopped", 0, ""), plugins)["best"]
    assert best["eval/accuracy"] == {"value": 0.7, "step": 4, "mode": "max"}
    assert best["eval/loss"]["step"] == 2


def test_a_run_that_failed_before_its_first_log(tmp_path: Path) -> None:
    told = finished(tmp_path, Outcome("failed", 4, "no device"))
    assert (told["ok"], told["reason"], told["metrics"], told["best"]) == (False, "no device", {}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json"]


@pytest.mark.usefixtures("metrics")
def test_a_metric_that_was_never_logged_is_told_with_those_there_were(tmp_path: Path) -> None:
    told = finished(tmp_path, Outcome("finished", 0, ""), best={"eval/acc": "max", "eval/loss": "min"})
    assert list(told["best"]) == ["eval/loss"]
    (event,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert event["event"] == "warning"
    known = "eval/accuracy, eval/loss, train/loss"
    assert event["reason"] == f"result: best names eval/acc, never logged; there were: {known}"


def test_results_of_several_runs_are_read_together(tmp_path: Path) -> None:
    assert read_results(tmp_path / "missing") == []
    for name in ("one", "two", "unfinished"):
        (tmp_path / name).mkdir()
    (tmp_path / "latest").symlink_to("two")
    written = [finished(tmp_path / name, Outcome("finished", 0, "")) for name in ("two", "one")]
    assert read_results(tmp_path) == written
