"""Offline runs of W&B, read back from its own file; and a server that refuses or hangs."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from trainrun_wandb import Wandb, WandbOptions

from trainrun import Recipe
from trainrun.rundir.files import append_line
from trainrun.rundir.paths import RunPaths

USE = "trainrun_wandb:Wandb"
OFFLINE = {"mode": "offline", "system": False}
HISTOGRAM = {"low": -1.0, "high": 1.0, "counts": [1.0, 3.0]}

Read = Callable[[RunPaths], list[dict[str, Any]]]


def rows(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if not key.startswith("_") or key == "_step"} for row in part["rows"]
    ]


def recipe(**run: str) -> Recipe:
    return Recipe.from_data({"run": run, "task": {"use": "digits"}, "train": {"steps": 1}})


def test_an_offline_run(make_run: Any, read: Read) -> None:
    files = ["*.toml", "logs/*.txt", "wandb/**/*"]
    run = make_run(USE, **OFFLINE, project="p", group="g", tags=["a", "b"], code=True, artifacts=files)
    run.paths.source.mkdir()
    (run.paths.logs / "note [1].txt").write_text("hello")
    (run.paths.source / "task.py").write_text("print()\n")
    append_line(run.paths.tracker_extra("watch"), {"step": 2, "time": 1.0, "histograms": {"gradients/w": HISTOGRAM}})
    run.log(1, 2)
    run.log(2, **{"eval/accuracy": 0.5})
    run.log(4, a=math.nan, b=math.inf)
    run.start()
    assert str(run.end("failed", 1)) == "all 4 records were sent"
    (part,) = read(run.paths)
    assert part["run"] == {"id": "run-1", "project": "p", "group": "g", "tags": ["a", "b"], "name": "run-1"}
    assert part["config"]["optimizer.lr"] == 0.1
    first, second, last = rows(part)
    assert first == {"_step": 1, "train/loss": 1.0}
    assert (second["_step"], second["train/loss"], second["eval/accuracy"]) == (2, 0.5, 0.5)
    assert (second["gradients/w.values"], second["gradients/w.bins"]) == ([1, 3], [-1, 0, 1])
    assert second["gradients/w._type"] == "histogram"
    assert math.isnan(last["a"])
    assert (last["_step"], last["b"]) == (4, math.inf)
    assert part["rows"][0]["_timestamp"] == 1_700_000_001.5
    said = {"outcome": "failed", "outcome_step": 9, "train/loss": 0.5, "eval/accuracy": 0.5}
    assert said.items() <= part["summary"].items()
    assert part["exit"] == 1
    assert part["code"] == ["task.py"]
    assert set(part["files"]) - {"requirements.txt"} == {"logs/note [1].txt", "recipe.toml"}  # that is W&B's own


@pytest.mark.long
def test_a_resume_goes_on_without_overlap(make_run: Any, read: Read) -> None:
    run = make_run(USE, **OFFLINE)
    run.log(1, 2, 3)
    run.start()
    run.end("interrupted", 130)
    run.log(3, **{"eval/accuracy": 0.5})  # the evaluation that the stop had cut short
    run.log(4, 5)
    run.start(resumed=True)
    run.end()
    parts = read(run.paths)
    assert [part["run"]["id"] for part in parts] == ["run-1", "run-1"]
    assert [row["_step"] for part in parts for row in rows(part)] == [1, 2, 3, 4, 5, 6]
    assert rows(parts[1])[0] == {"_step": 4, "eval/accuracy": 0.5}
    assert parts[1]["summary"]["outcome"] == "finished"


@pytest.fixture
def hanging() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def refusing() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.long
@pytest.mark.parametrize("server", ["hanging", "refusing"])
def test_a_server_that_does_not_answer(
    server: str, make_run: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", request.getfixturevalue(server))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    run = make_run(USE, system=False, timeout=1.0)
    run.log(1, 2)
    run.start(deadline=5.0)
    until(lambda: run.events == ["tracker_outage"])
    delivery = run.end()
    assert (delivery.left, delivery.sent) == (2, 0)
    assert delivery.trouble is not None


def test_two_instances_differ_in_project_or_mode() -> None:
    def place(**options: Any) -> str | None:
        return Wandb.place(WandbOptions(**options), recipe(name="digits"))

    assert place(project="a") != place(project="b")
    assert place(project="a") == place(project="a", tags=["x"])
    assert place() == place(project="digits")
    assert place(mode="disabled") is None
    assert not Wandb(WandbOptions(mode="disabled")).is_on


def test_metrics_that_are_called_as_what_wandb_keeps_in_a_row(make_run: Any, read: Read) -> None:
    run = make_run(USE, **OFFLINE)
    run.log(1, **{"_step": 7.0, "/_step": 8.0, "_timestamp": 9.0, "_mine": 1.0})
    run.start()
    assert str(run.end()) == "all 1 records were sent"
    (row,) = read(run.paths)[0]["rows"]
    assert (row["_step"], row["_timestamp"], row["_mine"]) == (1, 1_700_000_001.5, 1.0)
    assert (row["/_step"], row["//_step"], row["/_timestamp"]) == (7.0, 8.0, 9.0)
