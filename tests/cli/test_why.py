from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainrun.cli.main import run
from trainrun.rundir import Failure, Outcome, RunPaths, create
from trainrun.rundir.files import append_line, write_json


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    made = create(tmp_path, "digits")
    append_line(made.events, {"event": "attempt_start", "attempt": 1})
    decision = {"event": "decision", "step": 7, "decision": "stop", "plugin": "early-stopping", "hook": "should_stop"}
    append_line(made.events, {**decision, "rank": 0, "ranks": [0, 1], "reason": "flat for 5 evaluations\nreally"})
    fault = {
        "event": "fault",
        "plugin": "shy",
        "hook": "on_status",
        "action": "disable",
        "traceback": "Traceback shy\n",
    }
    append_line(made.events, fault)
    failure = Failure(rank=1, message="no", kind="error", traceback="Traceback of rank 1\n", log="logs/rank-1.out")
    outcome = Outcome("failed", 1, "no", step=7, first_failure=failure, started=1.0, ended=2.5)
    write_json(made.outcome, outcome.to_json())
    return made


def test_an_attempt_whose_client_was_killed_is_lost(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    append_line(paths.events, {"event": "attempt_start", "attempt": 2})
    assert run(["why", "--dir", str(paths.root.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = lines.index(next(line for line in lines if line.startswith("attempt")))
    assert lines[place + 1].split(None, 3) == ["1", "0", "lost", "its client was gone at its end"]
    assert lines[place + 2].split() == ["2", "0"]


def test_why_tells_the_end_decisions_and_errors(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["why", "--dir", str(paths.root.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{paths.run_id}: failed: no"
    assert lines[1].startswith("step 7, exit code 1, ended ")
    assert lines[1].endswith("after 1.5 s")
    assert lines[2] == "log: logs/rank-1.out"
    assert lines[4].split() == ["step", "decision", "plugin", "what", "rank", "reason"]
    assert lines[5].split(None, 5) == ["7", "stop", "early-stopping", "should_stop", "0,1", "flat for 5 evaluations"]
    assert "plugin shy failed in on_status (disable):" in lines
    assert "Traceback shy" in lines
    assert lines[-2:] == ["rank 1:", "Traceback of rank 1"]


def test_json(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["why", str(paths.root), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["version"], answer["run"], answer["state"]) == (1, paths.run_id, "failed")
    assert [event["event"] for event in answer["events"]] == ["attempt_start", "decision", "fault"]
    assert answer["outcome"]["first_failure"]["rank"] == 1


def test_run_without_an_outcome(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create(tmp_path, "digits")
    assert run(["why", "--dir", str(tmp_path)]) == 0
    assert ": died" in capsys.readouterr().out


def test_attempts_tell_where_they_started_and_what_became_of_checkpoints(
    paths: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    for attempt, step in ((2, 5), (3, 7)):
        checkpoint = f"{paths.checkpoints}/step-{step:06}"
        append_line(paths.events, {"event": "attempt_start", "attempt": attempt})
        append_line(paths.events, {"event": "resume", "attempt": attempt, "step": step, "checkpoint": checkpoint})
        append_line(paths.events, {"event": "attempt_end", "attempt": attempt, "state": "failed", "reason": "no"})
    bad = {"event": "quarantine", "checkpoint": f"{paths.checkpoints}/bad-step-000009", "reasons": ["a is missing"]}
    append_line(paths.events, bad)
    assert run(["why", str(paths.root)]) == 0
    shown = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in shown]
    assert ["attempt", "from", "step", "took", "state", "then", "reason"] in rows
    assert [row[:2] for row in rows if row[-2:] == ["failed", "no"]] == [["2", "5"], ["3", "7"]]
    assert "warning: bad-step-000009 is damaged and was skipped: a is missing" in shown


def test_changes_since_the_checkpoint_are_told_with_was_and_is(
    paths: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    differences = {
        "recipe": {"optimizer.lr": [0.01, 0.0001], "train.clip_grad_norm": [None, 1.0]},
        "plugins": {"ema": ["ema (mine 1.0)", None]},
        "versions": {"torch": ["2.12", "2.13"]},
        "world": [2, 1],
    }
    append_line(paths.events, {"event": "resume", "attempt": 1, "step": 100, "differences": differences})
    assert run(["why", str(paths.root)]) == 0
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    begin = rows.index("from step changed was is")
    assert rows[begin + 1 : begin + 6] == [
        "100 optimizer.lr 0.01 0.0001",
        "100 train.clip_grad_norm not set 1.0",
        "100 plugin ema ema (mine 1.0) not set",
        "100 version of torch 2.12 2.13",
        "100 number of workers 2 1",
    ]
