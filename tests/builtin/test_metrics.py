from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trainrun.builtin.metrics import Metrics
from trainrun.rundir import RunPaths
from trainrun.rundir.files import read_lines


def test_each_log_is_a_line(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(paths=RunPaths(tmp_path))
    metrics = Metrics()
    metrics.on_log(run, {"train/loss": 0.5}, 10)
    metrics.on_log(run, {"train/loss": float("nan"), "eval/accuracy": 1.0}, 20)
    records = read_lines(run.paths.metrics)[0]
    assert [{key: value for key, value in record.items() if key != "time"} for record in records] == [
        {"step": 10, "train/loss": 0.5},
        {"step": 20, "train/loss": "nan", "eval/accuracy": 1.0},
    ]
    assert records[0]["time"] <= records[1]["time"]


def test_a_new_attempt_drops_the_steps_that_it_makes_again(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(paths=RunPaths(tmp_path), step=10)
    metrics = Metrics()
    metrics.on_train_start(run)  # nothing is there yet
    for step in (5, 10, 15):
        metrics.on_log(run, {"train/loss": 1.0}, step)
    metrics.on_train_start(run)
    assert [record["step"] for record in read_lines(run.paths.metrics)[0]] == [5, 10]


def test_half_a_line_of_a_killed_worker_is_dropped(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(paths=RunPaths(tmp_path), step=10)
    metrics = Metrics()
    metrics.on_log(run, {"train/loss": 1.0}, 5)
    with run.paths.metrics.open("a") as file:
        file.write('{"step": 6, "tra')
    metrics.on_train_start(run)
    metrics.on_log(run, {"train/loss": 1.0}, 11)
    assert [record["step"] for record in read_lines(run.paths.metrics)[0]] == [5, 11]
