from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainrun.rundir.files import append_line
from trainrun.rundir.paths import RunPaths

RECIPE = """
run = { name = "digits" }
task = { use = "digits" }
train = { steps = 8, batch_size = 16 }
optimizer = { name = "adamw", lr = 0.1, betas = [0.9, 0.99] }

[plugins.chat]
token = "<redacted>"
"""

Log = Callable[..., None]


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """A run directory with a recipe and no metrics."""
    paths = RunPaths(tmp_path / "runs" / "one")
    for folder in (paths.root, paths.logs, paths.attempts, paths.trackers):
        folder.mkdir(parents=True, exist_ok=True)
    paths.recipe.write_text(RECIPE)
    return paths


@pytest.fixture
def log(paths: RunPaths) -> Log:
    """Adds records of the given steps to the run's metrics."""

    def add(*steps: int, **metrics: float) -> None:
        for step in steps:
            append_line(paths.metrics, {"step": step, "time": 1000.0 + step, **(metrics or {"loss": 1.0 / (step + 1)})})

    return add


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
