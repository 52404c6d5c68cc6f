"""Many launches in a row, in one process, warm and cold: each ends by itself, and soon."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import trainrun
from trainrun.rundir import process

LONGEST = 60.0  # seconds; a destructor that hangs would take for ever


@pytest.fixture
def cache(trainrun_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(trainrun_cache))


def test_none_hangs(project: Any, cache: None) -> None:
    """Also where the task keeps the parallel model, which then outlives the process group: gloo's destructor may hang.

    A longer series is part of `make soak`.
    """
    for number in range(2):
        began = time.monotonic()
        settings = [f"launch.start={['warm', 'cold'][number % 2]}", "task.fault=keeps_model"]
        outcome = trainrun.launch(project.recipe, settings, dir=project.folder / "runs", quiet=True)
        assert (outcome.exit_code, outcome.step) == (0, 8), outcome.reason
        assert time.monotonic() - began < LONGEST
        assert process.members(Path(outcome.run)) == []
