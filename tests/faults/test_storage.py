"""The run directory fills up, is made read-only or removed while a run trains with processes that load data."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from trainrun.rundir.files import read_json, read_lines

LONGEST = 30.0  # seconds from the fault to the end

Wait = Callable[[Callable[[], object]], None]

TRAINING = {"task__fault": "is_slow", "train__steps": 2000, "train__log_every": 1, "data__workers": 1}


@pytest.fixture
def small(project: Any) -> Iterator[Path]:
    """The folder of the runs, with room for 3 MB."""
    folder = project.folder / "runs"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
    yield folder
    project.sweep()
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def run_in(folder: Path) -> Path | None:
    return next((path for path in folder.glob("2*") if path.is_dir()), None)


def trains(folder: Path) -> bool:
    """Whether the run has a checkpoint and has trained on."""
    run = run_in(folder)
    saved = run is not None and any((run / "checkpoints").glob("*[0-9]/manifest.json"))
    return saved and (read_json(run / "status.json") or {}).get("step", 0) > 4  # type: ignore[operator]


def fill(run: Path) -> None:
    with suppress(OSError), (run / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))


def remove(run: Path) -> None:
    while run.exists():
        shutil.rmtree(run, ignore_errors=True)


def seal(run: Path) -> None:
    done = subprocess.run(["chattr", "-R", "-f", "+i", str(run)], capture_output=True, text=True, check=False)
    try:
        (run / "more").touch()  # chattr fails for pipes, and for what it cannot do
    except OSError:
        return
    pytest.skip(f"no file can be made immutable here: {done.stderr}")


@pytest.mark.parametrize(
    ("harm", "code", "told"),
    [
        (fill, 75, "No space left on device"),
        (remove, 4, "it has been removed; there is no checkpoint to resume"),
        pytest.param(seal, 75, "Operation not permitted", marks=pytest.mark.long),
    ],
)
def test_the_run_ends_and_names_directory_and_checkpoint(
    project: Any, small: Path, wait_for: Wait, harm: Callable[[Path], None], code: int, told: str
) -> None:
    started = project.start_launch(**TRAINING, checkpoint__every=3)
    wait_for(lambda: trains(small))
    run = run_in(small)
    assert run is not None
    harm(run)
    ended = project.finish(started)
    assert ended.seconds < LONGEST * 4  # on a machine that does much else
    assert ended.verdict.startswith(f"failed: the run directory {run} cannot be written any more: {told}")
    assert (ended.code, ended.tracebacks) == (code, 0), ended.stderr
    if code == 75:
        assert f"newest checkpoint: {run}/checkpoints/" in ended.verdict


@pytest.mark.long
def test_a_resume_with_room_continues(project: Any, small: Path, wait_for: Wait) -> None:
    settings = {**TRAINING, "train__steps": 12, "checkpoint__every": 3}
    started = project.start_launch(**settings)
    wait_for(lambda: trains(small))
    run = run_in(small)
    assert run is not None
    fill(run)
    assert project.finish(started).code == 75
    os.unlink(run / "ballast")  # noqa: PTH108
    resumed = project("resume", str(run))
    assert (resumed.code, resumed.verdict) == (0, "finished: 12/12 steps"), resumed.stderr
    shutil.move(run, project.folder / "resumed")
    straight = project.launch(**settings)
    assert losses(project.folder / "resumed") == losses(straight.run)


def losses(run: Path) -> dict[int, float]:
    return {record["step"]: record["train/loss"] for record in read_lines(run / "metrics.jsonl")[0]}
