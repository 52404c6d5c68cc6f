from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trainrun.launch import closing
from trainrun.rundir import Failure, Outcome, RunPaths
from trainrun.rundir.create import create
from trainrun.rundir.files import append_line


@pytest.fixture
def ended(paths: RunPaths) -> Outcome:
    return Outcome("finished", 0, "10/10 steps", step=10, run=str(paths.root))


def test_good_run(ended: Outcome, paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(paths.root.parent.parent)
    paths.recipe.write_text('[evaluate]\nsplits = ["eval"]\n')
    record = {"step": 5, "time": 1.0, "train/loss": 0.1, "seconds/epoch": 3.0, "eval/accuracy": 0.9, "eval/loss": 0.3}
    append_line(paths.metrics, record)
    append_line(paths.metrics, {"step": 9, "time": 1.0, "train/loss": 0.1, "eval/accuracy": 0.8, "eval/loss": 0.2})
    assert list(closing.lines(ended)) == [
        "finished: 10/10 steps",
        f"run: runs/{paths.run_id}",
        "best: eval/accuracy 0.9 at step 5, eval/loss 0.2 at step 9",
        f"details: trainrun why {paths.run_id}",
    ]
    assert closing.trace(ended) is None


def test_failed_run_shows_the_log_and_the_trace(ended: Outcome, paths: RunPaths) -> None:
    log = str(paths.rank_output(1))
    failure = Failure(rank=1, message="no", kind="error", traceback="Traceback\n  boom\n", log=log)
    failed = replace(ended, state="failed", reason="no", first_failure=failure)
    lines = list(closing.lines(failed))
    assert lines[0] == "failed: no"
    assert f"log: {log}" in lines
    assert f"--dir {paths.root.parent}" in lines[-1]
    assert closing.trace(failed) == "Traceback\n  boom"


def test_survived_errors_are_told_once_each(ended: Outcome, paths: RunPaths) -> None:
    for _ in range(3):
        append_line(
            paths.events, {"event": "decision", "decision": "warn", "plugin": "a", "hook": "on_log", "reason": "E"}
        )
    append_line(paths.events, {"event": "decision", "decision": "disable", "plugin": "b", "hook": "x", "reason": "F"})
    append_line(paths.events, {"event": "decision", "decision": "stop", "plugin": "c", "hook": "x", "reason": "G"})
    append_line(paths.events, {"event": "fault", "action": "disable", "plugin": "d", "hook": "y", "reason": "H"})
    assert [line for line in closing.lines(ended) if line.startswith("warning")] == [
        "warning: plugin a failed in on_log (3 times) (the run continued): E",
        "warning: plugin b failed in x (disabled): F",
        "warning: plugin d failed in y (disabled): H",
    ]


def test_repeated_warnings_of_training_are_one_line(ended: Outcome, paths: RunPaths) -> None:
    for step in (5, 10, 15):
        append_line(paths.events, {"event": "warning", "step": step, "reason": f"train/loss is nan at step {step}"})
    assert "warning: train/loss is nan at step 5 (3 times)" in list(closing.lines(ended))


def test_values_that_are_no_numbers_are_never_best(ended: Outcome, paths: RunPaths) -> None:
    paths.recipe.write_text('[evaluate]\nsplits = ["eval"]\n')
    append_line(paths.metrics, {"step": 1, "eval/loss": float("nan")})
    assert closing.bests(paths) == []
    assert closing.bests(RunPaths(Path("nowhere"))) == []


def test_run_that_can_go_on_says_from_where_and_how(
    ended: Outcome, paths: RunPaths, write_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(paths.root.parent.parent)
    write_checkpoint(paths.checkpoints, 5)
    assert "checkpoint: checkpoints/step-000005" in list(closing.lines(ended))
    assert not any(line.startswith("resume") for line in closing.lines(ended))
    stopped = replace(ended, state="terminated", exit_code=75)
    assert f"resume: trainrun resume {paths.run_id}" in list(closing.lines(stopped))
    monkeypatch.chdir(paths.root)
    assert f"resume: trainrun resume {paths.run_id} --dir {paths.root.parent}" in list(closing.lines(stopped))


def test_run_without_a_checkpoint_has_nothing_to_go_on_from(ended: Outcome) -> None:
    failed = replace(ended, state="failed", exit_code=1)
    assert not any(line.startswith(("checkpoint", "resume")) for line in closing.lines(failed))


@pytest.mark.parametrize("folder", ["my runs", "it's; exit 3", "$HOME/`ls`"])
def test_commands_that_are_offered_work_in_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_checkpoint: Callable[..., Path], folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = create(tmp_path / folder, "digits")
    write_checkpoint(paths.checkpoints, 5)
    lines = list(closing.lines(Outcome("terminated", 75, "asked for", step=10, run=str(paths.root))))
    offered = {name: command for name, _, command in (line.partition(": ") for line in lines)}
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def shell(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=False)

    why = shell(offered["details"])
    assert (why.returncode, paths.run_id in why.stdout) == (0, True), why.stderr
    going_on = shell(offered["resume"])
    assert "extra argument" not in going_on.stderr
    assert f"{paths.root}" in going_on.stderr  # it has found the run, which has no recipe here
