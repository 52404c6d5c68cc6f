"""The process that sends, as a real process: at its input's end, when a tracker hangs, and when another sends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainrun.plugin.instance import Instance
from trainrun.rundir import process
from trainrun.rundir.paths import RunPaths
from trainrun.rundir.records import Outcome
from trainrun.tracking.cursor import sole_sender
from trainrun.tracking.delivery import Delivery, TrackerProcess
from trainrun.tracking.process import Order

FILE_TRACKER = Path(__file__).with_name("file_tracker.py")
FINISHED = Outcome("finished", 0, "all 3 steps were made", step=3)

Log = Callable[..., None]
Until = Callable[..., None]


@pytest.fixture
def start(paths: RunPaths, server: Any) -> Iterator[Callable[..., TrackerProcess]]:
    started: list[TrackerProcess] = []

    def start_one(deadline: float = 30.0) -> TrackerProcess:
        instance = Instance("to-file", "plugin", f"{FILE_TRACKER}:ToFile", options={"folder": str(server.folder)})
        order = Order(str(paths.root), instance, resumed=False, interval=0.05, deadline=deadline)
        started.append(TrackerProcess(paths, order))
        return started[-1]

    yield start_one
    for one in started:
        one.kill()


def test_sends_while_the_run_goes_on_and_then_its_end(
    start: Any, server: Any, paths: RunPaths, log: Log, until: Until
) -> None:
    sender = start()
    log(1, 2)
    until(lambda: server.steps == [1, 2])
    log(3, loss=0.5)
    sender.end(FINISHED)
    delivery = sender.join()
    assert delivery == Delivery("to-file", sent=3, left=0, ended="finished", trouble=None)
    assert delivery.complete
    assert str(delivery) == "all 3 records were sent"
    assert server.steps == [1, 2, 3]
    assert server.lines("ended") == [{"state": "finished", "step": 3, "metrics": {"loss": 0.5}}]


def test_when_its_client_is_gone_it_sends_the_rest_and_leaves(start: Any, server: Any, log: Log) -> None:
    sender = start()
    log(1, 2)
    sender.end(None)  # its input ends, as when the client is killed
    delivery = sender.join()
    assert server.steps == [1, 2]
    assert server.lines("ended") == []
    assert not delivery.complete


def test_a_tracker_that_hangs_is_left_at_the_deadline(start: Any, server: Any, log: Log, until: Until) -> None:
    server.set("hangs")
    sender = start(deadline=0.2)
    log(1, 2)
    until(lambda: server.has("hanging"))
    began = time.monotonic()
    sender.end(FINISHED)
    delivery = sender.join()
    assert time.monotonic() - began < 5
    assert str(delivery) == "2 of 2 records could not be sent (there was no response in time)"
    helper = int((server.folder / "hanging").read_text())
    until(lambda: not process.running(helper), 5)


@pytest.mark.long
def test_one_that_is_down_at_the_end_is_given_up_soon(start: Any, server: Any, log: Log, until: Until) -> None:
    server.set("down")
    sender = start()
    log(1)
    until(lambda: Delivery.read(sender.paths, "to-file").trouble)
    sender.end(FINISHED)
    began = time.monotonic()
    delivery = sender.join()
    assert time.monotonic() - began < 15
    assert str(delivery) == "1 of 1 records could not be sent (ConnectionError: the server is down)"


def test_only_one_process_sends(start: Any, server: Any, paths: RunPaths, log: Log, until: Until) -> None:
    log(1)
    with sole_sender(paths, "to-file") as alone:
        assert alone
        with sole_sender(paths, "to-file") as another:
            assert not another
        sender = start()
        sender.end(FINISHED)
        assert sender.join().left == 1
    sender = start()
    sender.end(FINISHED)
    assert sender.join().complete
    assert server.steps == [1]


def test_a_plugin_that_is_no_tracker_is_refused(start: Any, paths: RunPaths, server: Any) -> None:
    instance = Instance("other", "plugin", "trainrun.builtin.journal:Journal")
    sender = TrackerProcess(paths, Order(str(paths.root), instance, resumed=False, interval=1.0, deadline=1.0))
    sender.end(None)
    sender.join()
    assert "is no tracker" in paths.tracker_log("other").read_text()


def test_a_killed_sender_is_found_out(start: Any, server: Any, paths: RunPaths, log: Log, until: Until) -> None:
    sender = start()
    log(1)
    until(lambda: server.steps == [1])
    sender.kill()
    log(2)
    sender.end(FINISHED)
    assert sender.join().left == 1
    assert not process.running(sender.pid)
