from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from trainrun.cli.main import run
from trainrun.rundir import Lease, Outcome, create
from trainrun.rundir.files import write_json


def test_runs_newest_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dead, ended, alive = (create(tmp_path, name) for name in ("dead", "ended", "alive"))
    write_json(ended.outcome, Outcome("failed", 1, "rank 1 broke\nmore", step=7, started=100.0, ended=175.0).to_json())
    write_json(alive.status, {"state": "training", "step": 3, "steps": 9})
    lease = Lease.acquire(alive)
    try:
        assert run(["ps", "--dir", str(tmp_path)]) == 0
        header, *rows = capsys.readouterr().out.splitlines()
        assert run(["ps", "--dir", str(tmp_path), "--json"]) == 0
    finally:
        lease.release()
    assert header.split() == ["run", "state", "step", "attempt", "started", "took", "why"]
    assert [row.split()[:3] for row in rows] == [
        [alive.run_id, "training", "3/9"],
        [ended.run_id, "failed", "7"],
        [dead.run_id, "died", "0"],
    ]
    assert "1 min 15 s" in rows[1]
    assert rows[1].endswith("rank 1 broke")
    answer = json.loads(capsys.readouterr().out)
    assert answer["version"] == 1
    assert [one["state"] for one in answer["runs"]] == ["training", "failed", "died"]


def test_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ps", "--dir", str(tmp_path / "none")]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "no runs in" in shown.err


def test_a_terminal_of_80_columns_shows_how_long_each_run_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    run_of_today = create(tmp_path, "digits")
    ended = Outcome("finished", 0, "300/300 steps", step=300, started=now - 75, ended=now)
    write_json(run_of_today.outcome, ended.to_json())
    write_json(run_of_today.status, {"state": "finished", "step": 300, "steps": 300})
    monkeypatch.setattr("trainrun.cli.ps.terminal_width", lambda: 80)
    assert run(["ps", "--dir", str(tmp_path)]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert "took" in header
    assert "1 min 15 s" in row
