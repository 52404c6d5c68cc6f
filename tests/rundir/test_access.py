"""Runs as a notebook looks at them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import trainrun
from trainrun.errors import UsageError
from trainrun.rundir import Outcome, RunPaths, create
from trainrun.rundir.files import append_line, write_json


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """A run that has ended, with metrics."""
    paths = create(tmp_path, "digits")
    records: list[dict[str, Any]] = [
        {"step": 2, "time": 2.0, "train/loss": 0.5},
        {"step": 1, "time": 1.0, "train/loss": 0.9},
        {"step": 2, "time": 2.5, "eval/loss": 0.4},
    ]
    for record in records:
        append_line(paths.metrics, record)
    write_json(paths.outcome, Outcome("finished", 0, "2/2 steps", step=2, run=str(paths.root)).to_json())
    return paths


def test_runs_are_those_of_the_folder(paths: RunPaths, tmp_path: Path) -> None:
    other = create(tmp_path, "other")
    assert {run.run for run in trainrun.runs(tmp_path)} == {paths.run_id, other.run_id}
    assert trainrun.runs(tmp_path / "nowhere") == []


def test_status_is_found_by_any_part_of_the_id(paths: RunPaths, tmp_path: Path) -> None:
    found = trainrun.status(paths.run_id[-5:], tmp_path)
    assert (found.summary.state, found.summary.step, found.is_live) == ("finished", 2, False)
    with pytest.raises(UsageError, match="no run 'nothing'"):
        trainrun.status("nothing", tmp_path)


def test_metrics_are_columns_with_a_row_for_each_step(paths: RunPaths, tmp_path: Path) -> None:
    assert trainrun.read_metrics("latest", tmp_path) == {
        "step": [1, 2],
        "time": [1.0, 2.5],
        "train/loss": [0.9, 0.5],
        "eval/loss": [None, 0.4],
    }


def test_metrics_as_a_frame(paths: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither package is installed for the tests: a module with the one name of theirs that is used stands in."""
    module = ModuleType("polars")
    module.DataFrame = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "polars", module)
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert trainrun.read_metrics(dir=tmp_path, frame="polars")["step"] == [1, 2]
    with pytest.raises(UsageError, match="pandas is not installed; pip install pandas"):
        trainrun.read_metrics(dir=tmp_path, frame="pandas")
