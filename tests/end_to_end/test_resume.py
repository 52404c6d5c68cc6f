"""Stopped from outside, and gone on with: nothing is lost, and the exit codes say what a scheduler is to do."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainrun.checkpoint import scan
from trainrun.rundir import RunPaths
from trainrun.rundir.files import read_json, read_lines

Start = Callable[..., Any]
Check = Callable[[RunPaths], None]


def resumed(paths: RunPaths, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainrun", "resume", str(paths.root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=paths.root)


def events(paths: RunPaths, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_lines(paths.events)[0] if event["event"] == kind]


@pytest.fixture
def stopped(start_long: Start, nothing_left: Check) -> tuple[RunPaths, int]:
    """A run that was told to stop, and the step after which it did."""
    client = start_long()
    client.send(signal.SIGTERM)
    assert client.wait() == 75, client.text
    nothing_left(client.paths)
    step = (read_json(client.paths.outcome) or {})["step"]
    assert [found.step for found in scan(client.paths.checkpoints)] == [step]
    assert f"checkpoint: checkpoints/step-{step:06}" in client.text
    assert f"resume: trainrun resume {client.paths.run_id}" in client.text
    return client.paths, step


def test_run_that_was_stopped_goes_on_at_the_next_step(stopped: tuple[RunPaths, int], nothing_left: Check) -> None:
    paths, step = stopped
    # The learning rate of this recipe depends on the number of steps.
    done = resumed(paths, "-o", f"train.steps={step + 3}", "-o", "train.log_every=1", "--allow-changes")
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {step} (checkpoints/step-{step:06})" in done.stderr
    nothing_left(paths)
    outcome = read_json(paths.outcome) or {}
    assert (outcome["state"], outcome["step"], outcome["attempt"]) == ("finished", step + 3, 2)
    steps = [record["step"] for record in read_lines(paths.metrics)[0] if record["step"] > step]
    assert sorted(set(steps)) == [step + 1, step + 2, step + 3]
    assert [event["step"] for event in events(paths, "resume")] == [step]
    again = resumed(paths)
    assert (again.returncode, "there is nothing to do" in again.stdout) == (0, True)
    assert len(events(paths, "attempt_start")) == 2


def test_changes_of_the_training_are_refused_and_damage_is_found(stopped: tuple[RunPaths, int]) -> None:
    paths, step = stopped
    refused = resumed(paths, "-o", "train.batch_size=32")
    assert refused.returncode == 2
    assert "train.batch_size: 64 → 32" in refused.stderr
    weights = next((paths.checkpoints / f"step-{step:06}" / "state").glob("*.distcp"))
    flip(weights)
    lost = resumed(paths)
    assert lost.returncode == 4
    assert "none of the checkpoints is good" in lost.stderr
    assert len(events(paths, "attempt_start")) == 1
    assert (read_json(paths.outcome) or {})["exit_code"] == 75


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
