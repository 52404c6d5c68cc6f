from __future__ import annotations

from pathlib import Path

from trainrun.rundir import Lease, Outcome, RunPaths, create
from trainrun.rundir.files import write_json
from trainrun.rundir.summary import summarize


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
