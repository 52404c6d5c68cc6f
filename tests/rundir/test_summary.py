from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from trainrun.rundir import Lease, Outcome, RunPaths, create
from trainrun.rundir.files import append_line, write_json
from trainrun.rundir.summary import Attempt, attempts, is_over, summarize


def test_states_of_a_run(tmp_path: Path) -> None:
    paths = create(tmp_path, "x")
    assert summarize(paths).state == "died"
    lease = Lease.acquire(paths)
    assert summarize(paths).state == "starting"
    write_json(paths.status, {"state": "training", "step": 7, "steps": 10})
    running = summarize(paths)
    assert (running.state, running.step, running.steps) == ("training", 7, 10)
    assert running.owner is not None
    write_json(paths.outcome, Outcome("stopped", 0, "a vote", step=8, started=1.0, ended=2.0).to_json())
    lease.release()
    ended = summarize(paths)
    assert (ended.state, ended.step, ended.exit_code, ended.reason, ended.owner) == ("stopped", 8, 0, "a vote", None)


def test_garbage_is_left_out(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    paths.status.write_text('{"state": 3, "step": "many"}')
    paths.outcome.write_text('{"first_failure": 7}')
    paths.manifest.write_text("no json")
    summary = summarize(paths)
    assert (summary.state, summary.step) == ("died", 0)


def test_client_that_died_is_named(tmp_path: Path) -> None:
    paths = create(tmp_path, "x")
    lease = Lease.acquire(paths)
    write_json(paths.lease / "2", {"version": 1, **lease.info.to_json(), "start_time": 1})
    died = summarize(paths)
    assert (died.state, died.owner) == ("died", None)
    assert died.reason == f"its launcher (pid {lease.info.pid} on {lease.info.host}) is gone and left no outcome"
    lease.release()


def test_between_two_attempts(tmp_path: Path) -> None:
    paths = create(tmp_path, "x")
    lease = Lease.acquire(paths)
    paths.attempt(1).mkdir()
    write_json(paths.status, {"state": "failed", "attempt": 1, "step": 7})
    assert summarize(paths).state == "ending"
    append_line(paths.events, {"event": "restart", "attempt": 1})
    assert summarize(paths).state == "restarting"
    paths.attempt(2).mkdir()
    again = summarize(paths)
    assert (again.state, again.attempt) == ("starting", 2)
    write_json(paths.status, {"state": "training", "attempt": 2, "step": 1})
    assert summarize(paths).state == "training"
    lease.release()


def test_run_that_is_taken_up_again(tmp_path: Path) -> None:
    paths = create(tmp_path, "x")
    lease = Lease.acquire(paths)
    paths.attempt(1).mkdir()
    write_json(paths.status, {"state": "finished", "attempt": 1, "step": 7})
    append_line(paths.events, {"event": "outcome", "state": "finished"})
    assert summarize(paths).state == "starting"
    lease.release()


def test_attempts_as_events_tell_them() -> None:
    events: list[dict[str, Any]] = [
        {"event": "attempt_start", "time": 1.0, "attempt": 1},
        {"event": "decision", "step": 3},
        {"event": "attempt_end", "time": 2.0, "attempt": 1, "state": "failed", "reason": "x"},
        {"event": "restart", "attempt": 1, "reason": "x", "why": "restart 1 of 3"},
        {"event": "attempt_start", "time": 3.0, "attempt": 2},
        {"event": "odd", "attempt": "two"},
    ]
    assert attempts(events) == [Attempt(1, 1.0, 2.0, "failed", "x", "restart 1 of 3"), Attempt(2, 3.0)]


def test_when_nothing_more_is_to_come(tmp_path: Path) -> None:
    paths = create(tmp_path, "x")
    assert not is_over(paths), "its client has not claimed it yet"
    lease = Lease.acquire(paths)
    assert not is_over(paths)
    lease.release()
    assert is_over(paths)
    old = create(tmp_path, "y")
    os.utime(old.root, (1.0, 1.0))
    assert is_over(old)
