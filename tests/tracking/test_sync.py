"""`trainrun sync`, on run directories that a launch has left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainrun.cli.main import run as command
from trainrun.plugin.instance import Instance
from trainrun.rundir.files import write_json
from trainrun.rundir.lease import Lease
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.records import Outcome
from trainrun.tracking.cursor import Cursor
from trainrun.tracking.delivery import TrackerProcess
from trainrun.tracking.process import Order

FILE_TRACKER = Path(__file__).with_name("file_tracker.py")


@pytest.fixture
def left(paths: RunPaths, server: Any, log: Callable[..., None]) -> RunPaths:
    """A run that has ended, with three records of which the tracker has one."""
    instance = Instance("to-file", "plugin", f"{FILE_TRACKER}:ToFile", options={"folder": str(server.folder)})
    write_json(paths.manifest, {"instances": [instance.to_json()]})
    write_json(paths.outcome, Outcome("stopped", 75, "asked for", step=3).to_json())
    log(1, 2, 3)
    Cursor(step=1, count=1, sent=1, mark={"folder": "x"}, trouble="it was down").write(paths.tracker("to-file"))
    return paths


def sync(paths: RunPaths, *options: str) -> int:
    return command(["sync", paths.run_id, "--dir", str(paths.root.parent), *options])


def test_sends_what_is_left_and_how_it_ended(left: RunPaths, server: Any, capsys: Any) -> None:
    assert sync(left) == 0
    assert capsys.readouterr().out == "to-file: all 3 records were sent\n"
    assert server.steps == [2, 3]
    assert server.lines("opened")[0]["mark"] == {"folder": "x"}
    assert server.lines("ended")[0]["state"] == "stopped"
    assert sync(left, "--json") == 0
    (answer,) = json.loads(capsys.readouterr().out)["trackers"]
    assert (answer["sent"], answer["left"], answer["complete"]) == (3, 0, True)
    assert len(server.lines("opened")) == 1  # nothing was left, so nothing was started


def test_a_tracker_that_is_still_down_is_an_error(left: RunPaths, server: Any, capsys: Any) -> None:
    server.set("down")
    assert sync(left, "--timeout", "5") == 4
    said = capsys.readouterr()
    assert said.out == "to-file: 2 of 3 records could not be sent (ConnectionError: the server is down)\n"
    assert "to-file: not everything could be sent; try again later" in said.err


def test_the_run_of_a_killed_client_is_complete_without_its_end(left: RunPaths, server: Any, capsys: Any) -> None:
    left.outcome.unlink()
    assert sync(left) == 0
    assert (server.steps, server.lines("ended")) == ([2, 3], [])


def test_a_run_that_goes_on_is_refused(left: RunPaths, capsys: Any) -> None:
    lease = Lease.acquire(left)
    try:
        assert sync(left) == 2
    finally:
        lease.release()
    assert "the run has not ended, and sends to its trackers itself" in capsys.readouterr().err


def test_an_unknown_tracker_is_told_with_those_there_are(left: RunPaths, capsys: Any) -> None:
    assert sync(left, "--tracker", "other") == 2
    assert "--tracker other: one has these trackers: to-file" in capsys.readouterr().err


def test_a_run_without_a_tracker_is_an_error(paths: RunPaths, capsys: Any) -> None:
    assert sync(paths) == 2
    assert "one: it was launched without a tracker" in capsys.readouterr().err


def test_a_manifest_that_does_not_know_the_tracker_is_an_error(left: RunPaths, capsys: Any) -> None:
    write_json(left.manifest, {"instances": []})
    assert sync(left) == 4
    assert "does not say what the tracker to-file is" in capsys.readouterr().err


@pytest.mark.parametrize("opens", [True, False])
def test_tracker_that_never_opened_gets_everything(
    left: RunPaths, server: Any, until: Callable[..., None], opens: bool
) -> None:
    left.tracker("to-file").unlink()
    (listed,) = json.loads(left.manifest.read_text())["instances"]
    server.set("hangs")
    started = TrackerProcess(left, Order(str(left.root), Instance.from_json(listed), False, 0.1, 0.5))
    if opens:
        until(lambda: server.has("hanging"))
    else:
        started.kill()  # before it could import anything
    started.end(Outcome("stopped", 75, "asked for", step=3))
    delivery = started.join()
    assert (delivery.sent, delivery.left, delivery.complete) == (0, 3, False)
    server.set("hangs", on=False)
    assert sync(left) == 0
    assert (server.steps, server.lines("ended")[0]["state"]) == ([1, 2, 3], "stopped")


def test_run_of_which_only_the_lock_of_a_tracker_is_left(left: RunPaths, server: Any) -> None:
    left.tracker("to-file").rename(left.tracker_lock("to-file"))
    assert sync(left) == 0
    assert server.steps == [1, 2, 3]
