from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainrun.builtin.progress import Progress
from trainrun.rundir import Outcome, RunPaths
from trainrun.rundir.files import read_json
from trainrun.rundir.pulse import Pulse

COST = [{"instance": "a", "hook": "on_log", "calls": 1, "total_seconds": 0.1, "max_seconds": 0.1}]


@pytest.fixture
def run(tmp_path: Path) -> Any:
    return SimpleNamespace(
        paths=RunPaths(tmp_path),
        attempt=1,
        step=0,
        total_steps=50,
        epoch=0,
        samples_seen=0,
        phase="setup",
        cost=lambda: COST,
        recipe=SimpleNamespace(evaluate=SimpleNamespace(every=5)),
    )


@pytest.fixture
def progress() -> Progress:
    return Progress(Progress.Options(interval=5.0))


def test_status_follows_the_run(run: Any, progress: Progress) -> None:
    progress.on_worker_start(run)
    assert (read_json(run.paths.status) or {})["state"] == "setup"
    progress.on_train_start(run)
    run.step, run.epoch, run.samples_seen, run.phase = 10, 1, 640, "training"
    progress.on_log(run, {"train/loss": 0.5})
    progress.on_train_end(run)
    progress.on_worker_end(run, Outcome("finished", 0, "done"))
    status = read_json(run.paths.status)
    assert status is not None
    assert status.pop("updated") > 0
    assert status.pop("samples_per_second") > 0
    clock = status.pop("clock")
    assert clock.pop("training") >= 0
    assert clock == {"steps": 10, "evaluations": 0, "evaluation": 0, "evaluate_every": 5}
    assert status == {
        "state": "finished",
        "attempt": 1,
        "step": 10,
        "steps": 50,
        "epoch": 1,
        "metrics": {"train/loss": 0.5},
        "cost": COST,
    }


def test_frequent_logs_are_not_written_each_time(run: Any, progress: Progress) -> None:
    progress.on_worker_start(run)
    before = run.paths.status.stat().st_ino
    for step in range(100):
        run.step = step
        progress.on_log(run, {"train/loss": 1.0})
    assert run.paths.status.stat().st_ino == before
    progress.on_train_end(run)
    assert (read_json(run.paths.status) or {})["step"] == 99


def test_client_shows_and_closes(progress: Progress, run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pulse = run.paths.pulse(1, 0)
    pulse.parent.mkdir(parents=True)
    written = Pulse.create(pulse)
    written.enter("training")
    written.end_step()
    recipe = SimpleNamespace(launch=SimpleNamespace(nodes=1))
    launch: Any = SimpleNamespace(quiet=False, workers=2, recipe=recipe, paths=run.paths, attempt=1)
    progress.on_status(launch, {"state": "training", "step": 1, "steps": 3})
    progress.on_status(launch, {"state": "training", "step": 2, "steps": 3})
    progress.on_attempt_end()
    progress.on_launch_end()
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "step 1/3"
    assert shown[-1] == "step 2/3"


def test_quiet_launch_shows_nothing(progress: Progress, capsys: pytest.CaptureFixture[str]) -> None:
    launch: Any = SimpleNamespace(quiet=True)
    progress.on_status(launch, {"state": "training", "step": 1, "steps": 3})
    progress.on_attempt_end()
    assert capsys.readouterr().err == ""
