from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainrun.cli.figures import duration
from trainrun.cli.main import run


def test_durations() -> None:
    assert duration(14.52) == "14.5 s"
    assert duration(61) == "1 min 01 s"
    assert duration(-86400.0) == "?"


def test_a_clock_that_was_set_back_during_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs/2026-11-28-digits-early-bat"
    for name in ("attempts", "logs"):
        (root / name).mkdir(parents=True)
    outcome = {"state": "finished", "exit_code": 0, "reason": "all steps", "started": 2e9, "ended": 2e9 - 86400}
    (root / "outcome.json").write_text(json.dumps(outcome))
    assert run(["ps", "--dir", str(tmp_path / "runs")]) == 0
    assert "-24 h" not in capsys.readouterr().out
