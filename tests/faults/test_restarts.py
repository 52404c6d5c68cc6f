"""When another attempt follows, and when no more would be of use; and what is no reason for one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainrun.rundir import RunPaths
from trainrun.rundir.files import read_lines
from trainrun.rundir.process import stopped
from trainrun.rundir.pulse import read_pulse

Wait = Callable[[Callable[[], object]], None]


def restarts(ended: Any) -> list[float]:
    """How long the client waited before each."""
    return [event["wait"] for event in ended.events if event["event"] == "restart"]


@pytest.mark.parametrize(
    ("fault", "waits", "furthest"),
    [("kill:rank1@3!", [0.0, 1.0, 2.0], 3), pytest.param("kill:all@setup!", [1.0, 2.0], 0, marks=pytest.mark.long)],
)
def test_fault_that_always_comes_back_ends_the_run_for_good(
    project: Any, fault: str, waits: list[float], furthest: int
) -> None:
    ended = project.inject(fault, launch__max_restarts=10)
    assert ended.code == 93
    assert restarts(ended) == waits
    assert f"no progress in 3 attempts in a row, the furthest step was {furthest}" in ended.outcome["reason"]
    assert ended.outcome["first_failure"]["signal"] == "SIGKILL"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("raise:rank1@3", "plugin 'inject' raised InjectedFault in on_step_start"),
        pytest.param("exit:rank1:0@3", "plugin 'inject' raised SystemExit in on_step_start: 0", marks=pytest.mark.long),
        pytest.param("raise:task.build_model", "'task' raised InjectedFault in build_model", marks=pytest.mark.long),
    ],
)
def test_error_of_the_code_ends_the_run_at_once(project: Any, fault: str, error: str) -> None:
    """It is reproducible, so nothing but time would be lost by another attempt."""
    ended = project.inject(fault, launch__max_restarts=10)
    assert ended.code == 1
    assert ended.attempts == [ended.outcome["reason"]]
    assert error in ended.verdict
    assert (ended.stdout + ended.stderr).count(error) == 1


def test_error_of_the_code_is_retried_after_a_new_checkpoint_and_not_twice_at_one_step(project: Any) -> None:
    saved = {"checkpoint__every": 2, "checkpoint__background": "false"}
    ended = project.inject("raise:rank1@3!", launch__max_restarts=10, **saved)
    assert ended.code == 1
    assert len(ended.attempts) == 2
    assert restarts(ended) == [0.0]
    assert ended.outcome["reason"].endswith("; attempt 1 raised the same at the same step")


@pytest.mark.long
def test_error_that_passes_is_retried_from_the_new_checkpoint(project: Any) -> None:
    saved = {"checkpoint__every": 2, "checkpoint__background": "false"}
    ended = project.inject("raise:rank1@3", "raise:rank0@5", launch__max_restarts=10, **saved)
    assert ended.code == 0, ended.stderr
    assert len(ended.attempts) == 3


def test_memory_that_runs_out_at_the_same_step_twice_ends_the_run_for_good(project: Any) -> None:
    ended = project.inject("oom:rank0@3!", launch__max_restarts=10)
    assert ended.code == 93
    assert len(ended.attempts) == 2
    assert "out of memory at step 3 twice" in ended.outcome["reason"]


@pytest.mark.long
def test_restarts_are_used_up(project: Any) -> None:
    ended = project.inject("kill:rank1@3!", launch__max_restarts=1)
    assert ended.code == 1
    assert len(ended.attempts) == 2
    assert "rank 1 was killed by SIGKILL at step 3" in ended.outcome["reason"]


@pytest.mark.parametrize(
    ("number", "state", "code"),
    [(signal.SIGTERM, "terminated", 143), pytest.param(signal.SIGINT, "interrupted", 130, marks=pytest.mark.long)],
)
def test_stop_while_waiting_for_the_next_attempt(
    project: Any, wait_for: Wait, number: signal.Signals, state: str, code: int
) -> None:
    table = {"plugins__inject__use": "trainrun.builtin.inject:Inject", "launch__max_restarts": 10}
    client = project.start_launch(**table, plugins__inject__faults=json.dumps(["kill:all@setup!"]))
    events = project.folder / "runs" / "latest" / "events.jsonl"
    wait_for(lambda: client.poll() is not None or _waits(events) == [1.0, 2.0])
    client.send_signal(number)
    ended = project.finish(client)
    assert (ended.code, ended.outcome["state"]) == (code, state)
    assert len(ended.attempts) == 2
    assert f"stopped by {number.name} before attempt 3 began; attempt 2 had failed: " in ended.outcome["reason"]
    assert "SIGKILL" in ended.outcome["reason"]


def _waits(events: Path) -> list[float]:
    return [event["wait"] for event in read_lines(events)[0] if event["event"] == "restart"]


# --- no reason for another attempt ---


@pytest.fixture
def slow(project: Any, wait_for: Wait) -> Callable[..., tuple[subprocess.Popen[str], RunPaths]]:
    """Start a run of some seconds, and wait for its first step."""

    def start(**settings: object) -> tuple[subprocess.Popen[str], RunPaths]:
        client = project.start_launch(task__fault="is_slow", train__log_every=1, **settings)
        paths = RunPaths(project.folder / "runs" / "latest")
        wait_for(lambda: client.poll() is not None or at_step(paths, 1))
        return client, paths

    return start


def at_step(paths: RunPaths, step: int) -> bool:
    beats = [read_pulse(paths.pulse(1, rank)) for rank in (0, 1)]
    return all(beat is not None and beat.step >= step for beat in beats)


def worker(paths: RunPaths, rank: int) -> int:
    return int(json.loads(paths.worker_record(1, rank).read_text())["pid"])


def test_worker_that_was_stopped_for_a_while(project: Any, slow: Any, wait_for: Wait) -> None:
    client, paths = slow(train__steps=8)
    pid = worker(paths, 1)
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: stopped(pid) and waits(paths, 0))
    os.kill(pid, signal.SIGCONT)
    ended = project.finish(client)
    assert ended.code == 0
    assert len(ended.attempts) == 1


def waits(paths: RunPaths, rank: int) -> bool:
    beat = read_pulse(paths.pulse(1, rank))
    return beat is not None and beat.waiting


def test_sigterm_to_a_worker_and_its_loader_processes(project: Any, slow: Any) -> None:
    """As a scheduler does that warns all processes of a job: the ranks still end in good order, and start again."""
    client, paths = slow(train__steps=12, data__workers=1, launch__max_preemptions=1)
    os.killpg(worker(paths, 1), signal.SIGTERM)
    ended = project.finish(client)
    assert ended.code == 0, ended.stderr
    first = [json.loads(paths.worker_record(1, rank).read_text()) for rank in (0, 1)]
    assert [record["phase"] for record in first] == ["finished", "finished"]
    assert first[0]["step"] == first[1]["step"] < 12
    assert ended.attempts == [f"stopped at step {first[0]['step']}: SIGTERM received", "12/12 steps"]


@pytest.mark.long
def test_no_terminal_at_all(project: Any) -> None:
    """Standard input, output and error are closed, as a careless daemon does."""
    script = 'exec "$@" <&- >&- 2>&-'
    command = [sys.executable, "-m", "trainrun", "launch", "train.toml", "-o", "train.steps=3"]
    done = subprocess.run(["sh", "-c", script, "sh", *command], cwd=project.folder, check=False, timeout=120)
    assert done.returncode == 0
    outcome = json.loads((project.folder / "runs" / "latest" / "outcome.json").read_text())
    assert (outcome["state"], outcome["step"], outcome["attempt"]) == ("finished", 3, 1)
    assert project.left() == []
