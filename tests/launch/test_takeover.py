"""The launching process and its lease: what it does when another process has taken the run over."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trainrun.errors import LeaseLost
from trainrun.launch.launch import launch
from trainrun.rundir import LeaseInfo, RunPaths, find, held, lease
from trainrun.rundir.files import read_lines, write_json
from trainrun.rundir.process import members
from trainrun.rundir.requests import write_stop

PATIENCE = 60.0


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def wait_for(runs: Path, what: Callable[[RunPaths], bool]) -> RunPaths:
    """The run that is being launched, once this can be said of it."""
    deadline = time.monotonic() + PATIENCE
    while not (runs / "latest").exists() or not what(find("latest", runs)):
        assert time.monotonic() < deadline, "it did not come to that"
        threading.Event().wait(0.01)
    return find("latest", runs)


def trains(paths: RunPaths) -> bool:
    return paths.worker_record(1, 0).exists() and paths.worker_record(1, 1).exists()


def restarts(paths: RunPaths) -> bool:
    return any(event["event"] == "restart" for event in read_lines(paths.events)[0])


def test_replaced_owner_ends_its_workers_and_leaves_the_files_alone(
    recipe: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", json.dumps({"0": "hang", "1": "hang"}))
    monkeypatch.setattr(lease, "BEAT", 0.05)
    other = replace(LeaseInfo.own(), host="elsewhere", boot="another boot", pid=7)

    def take_over() -> None:
        write_json(wait_for(runs, trains).lease / "2", {"version": 1, **other.to_json()})

    thread = threading.Thread(target=take_over)
    thread.start()
    with pytest.raises(LeaseLost, match="process 7 on elsewhere has taken this run over"):
        launch(recipe, ["launch.grace=1"], quiet=True)
    thread.join()
    paths = find("latest", runs)
    assert members(paths.root) == []
    assert not paths.outcome.exists()
    assert [event["event"] for event in read_lines(paths.events)[0]] == ["attempt_start"]
    owner = held(paths)
    assert owner is not None
    assert owner.pid == 7


@pytest.mark.parametrize("deed", ["raise:no luck", "stop"])
def test_request_to_stop_is_heard_while_training_and_between_attempts(
    recipe: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, deed: str
) -> None:
    """After a second attempt without progress the client waits, and for longer each time."""
    monkeypatch.setenv("FAKE", json.dumps({"0": deed, "1": deed}))

    def ask() -> None:
        write_stop(wait_for(runs, trains if deed == "stop" else restarts), now=False, reason="enough")

    thread = threading.Thread(target=ask)
    thread.start()
    outcome = launch(recipe, ["launch.max_restarts=100"], quiet=True)
    thread.join()
    assert outcome.attempt < 3
    assert not find("latest", runs).stop_request.exists()
    assert outcome.state == ("terminated" if deed == "stop" else "failed"), "fake workers only know of SIGTERM"
