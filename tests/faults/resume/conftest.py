"""What two runs of one training must have in common: the newest checkpoint, the order of the samples, the metrics."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from trainrun.checkpoint import layout, scan, verify
from trainrun.rundir import RunPaths
from trainrun.rundir.files import read_lines
from trainrun.worker.checkpoint import reader

RECIPE = """\
[run]
name = "kept"

[task]
use = "kept_tasks:Task"

[train]
steps = 12
batch_size = 16
log_every = 2
device = "cpu"

[optimizer]
name = "adamw"
lr = 0.01

[evaluate]
every = 4
splits = ["validation"]

[checkpoint]
every = 3

[launch]
workers = 2
max_restarts = 0
"""

LONGEST = 600.0  # seconds for one command

Samples = dict[int, list[int]]


@dataclass(frozen=True)
class Kept:
    """One run, looked at when it is over."""

    run: Path

    def contents(self) -> dict[str, str]:
        """The SHA-256 of every tensor and every value in the newest checkpoint, by name."""
        newest = scan(RunPaths(self.run).checkpoints)[0].path
        assert verify(newest) == []
        tensors = reader.read_tensors(newest, "")
        files = [newest / layout.TRAINING, *sorted(newest.glob("rank-*.pt")), *sorted(newest.glob("plugins/*.pt"))]
        values = {file.name: reader.read_values(file) for file in files}
        return {name: _hashed(value) for name, value in {**tensors, **_flat(values)}.items()}

    def records(self) -> dict[int, list[dict[str, Any]]]:
        """What each rank wrote down of its steps, in order: attempt, step and samples."""
        return {rank: read_lines(self.run / f"samples-{rank}")[0] for rank in (0, 1)}

    def samples(self) -> dict[int, Samples]:
        """The samples of each rank's steps, in order. A step that was made again must have had the same ones."""
        return {rank: _once(lines) for rank, lines in self.records().items()}

    def metrics(self) -> list[dict[str, Any]]:
        """The logged metrics but for what depends on the clock."""
        lines = read_lines(RunPaths(self.run).metrics)[0]
        return [{key: one for key, one in line.items() if key != "time" and "per_second" not in key} for line in lines]

    def starts(self) -> dict[int, int]:
        """The step that each attempt went on from."""
        events = read_lines(RunPaths(self.run).events)[0]
        begun = {event["attempt"]: 0 for event in events if event["event"] == "attempt_start"}
        return begun | {event["attempt"]: event["step"] for event in events if event["event"] == "resume"}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}/{key}": one for name, value in values.items() for key, one in value.items()}


def _hashed(value: Any) -> str:
    return hashlib.sha256(repr(_plain(value)).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A value in which equal bits look equal, whatever order they came in."""
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), list(value.shape), bytes(value.contiguous().reshape(-1).view(torch.uint8).tolist())]
    if isinstance(value, Mapping):
        return sorted((repr(key), _plain(one)) for key, one in value.items())
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _once(lines: list[dict[str, Any]]) -> Samples:
    found: Samples = {}
    for line in lines:
        assert found.setdefault(line["step"], line["samples"]) == line["samples"], line
    assert list(found) == list(range(1, len(found) + 1))
    return found


@pytest.fixture
def kept(project: Any) -> Any:
    """A project with a recipe whose end shows every draw on the way."""
    project.recipe.write_text(RECIPE)
    return project


@pytest.fixture
def over(project: Any) -> Callable[[subprocess.Popen[str]], Any]:
    """Wait for the end of a command that may be killed, and of all that it has started."""

    def wait(command: subprocess.Popen[str]) -> Any:
        deadline = time.monotonic() + LONGEST
        while command.poll() is None or project.left():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)
        return project.finish(command)

    return wait


@pytest.fixture
def look() -> Callable[[Path], Kept]:
    """A run to compare with another."""
    return Kept
