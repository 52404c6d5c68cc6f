from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainrun.checkpoint import Manifest, begin, publish
from trainrun.cli.main import run
from trainrun.rundir import RunPaths, WorkerRecord, create
from trainrun.rundir.files import write_json


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    made = create(tmp_path, "digits")
    cost = [
        {"instance": f"plugin-{n}", "hook": "on_log", "calls": n, "total_seconds": n / 10, "max_seconds": 0.01}
        for n in range(12)
    ]
    status = {"state": "training", "step": 5, "steps": 9, "epoch": 2, "samples_per_second": 64.0, "updated": 1.0}
    write_json(made.status, {**status, "metrics": {"train/loss": 0.123456789}, "cost": cost})
    for attempt in (1, 2):
        made.attempt(attempt).mkdir()
        for rank in range(attempt):
            record = WorkerRecord(1, 1, 1, rank, "training", step=attempt, instance="slow", hook="on_log")
            write_json(made.worker_record(attempt, rank), record.to_json())
    return made


def test_status_of_the_latest_run(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--dir", str(paths.root.parent)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{paths.run_id}: died")
    assert "step 5 of 9, epoch 2, 64 samples/s" in shown
    assert "train/loss  0.12346" in shown
    assert "0     training  2     in on_log of slow" in shown
    assert "plugin-11" in shown
    assert "plugin-1 " not in shown, "only the dearest are shown"
    assert "… and 2 more" in shown


def test_json(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", str(paths.root), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["version"] == 1
    assert answer["run"] == paths.run_id
    assert len(answer["status"]["cost"]) == 12
    assert [worker["rank"] for worker in answer["workers"]] == [0, 1]


def test_a_run_of_which_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = create(tmp_path, "bare")
    for path in (paths.status, paths.outcome, paths.events):
        path.write_bytes(b"\xff garbage")
    assert run(["status", "--dir", str(tmp_path)]) == 0
    assert run(["status", "--dir", str(tmp_path), "--json"]) == 0
    assert run(["why", "--dir", str(tmp_path)]) == 0
    assert f"{paths.run_id}: died" in capsys.readouterr().out


def test_unknown_run(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "nothing", "--dir", str(paths.root.parent)]) == 2
    assert "no run 'nothing'" in capsys.readouterr().err


def test_newest_checkpoint(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", str(paths.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"] is None
    for step in (3, 5):
        about = {"run": paths.run_id, "attempt": 1, "epoch": 1, "samples_seen": 1, "world_size": 1, "created": 1.0}
        publish(begin(paths.checkpoints, step, attempt=1), Manifest(step=step, **about))
    assert run(["status", str(paths.root)]) == 0
    assert "newest checkpoint: checkpoints/step-000005" in capsys.readouterr().out
    assert run(["status", str(paths.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"] == "checkpoints/step-000005"
