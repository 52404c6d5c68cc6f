"""Decisions between nodes. The nodes are emulated: each has shared memory of its own, and they share a store."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch.distributed as dist

from trainrun import hookimpl
from trainrun.errors import EnvironmentProblem, TrainingError
from trainrun.worker import relay
from trainrun.worker.relay import Relay, connect, room
from trainrun.worker.shared_log import AREA, SharedLog
from trainrun.worker.world import World

NODES = 2
DELAY = 3


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a store that stands for the one of torchrun's first agent; the environment names it, as torchrun does."""
    hosted = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(hosted.port))
    yield hosted.port
    del hosted


# --- one rank's end ---


class Node:
    """A node of two ranks: the relay of its leader and of the other rank, and what they read."""

    def __init__(self, folder: Path, number: int) -> None:
        path = folder / f"node-{number}"
        worlds = [World(2 * number + place, place, number, 4, 2, NODES) for place in range(2)]
        SharedLog.create(path, 2, room(worlds[0]))
        self.logs = [SharedLog(path, place, 2, room(worlds[0])) for place in range(2)]
        self.leader, self.other = (
            Relay(connect("run/1"), log, world, DELAY) for log, world in zip(self.logs, worlds, strict=True)
        )

    @property
    def news(self) -> list[list[bytes]]:
        return [log.news() for log in self.logs]


@pytest.fixture
def nodes(tmp_path: Path, port: int) -> list[Node]:
    return [Node(tmp_path, number) for number in range(NODES)]


def test_the_leader_brings_what_other_nodes_sent_to_all_its_ranks(nodes: list[Node]) -> None:
    here, there = nodes
    there.leader.send(b"one", 1)
    there.other.send("zwei \N{GRINNING FACE}".encode(), 1)
    here.other.fetch()
    assert here.news == [[], []], "only the leader fetches"
    here.leader.fetch()
    assert here.news == [[b"one", "zwei \N{GRINNING FACE}".encode()]] * 2
    here.leader.fetch()
    assert here.news == [[], []]
    there.leader.fetch()
    assert there.news == [[], []], "its own ranks have these from the shared memory"


def test_attempts_do_not_hear_one_another(nodes: list[Node], port: int, tmp_path: Path) -> None:
    nodes[1].leader.send(b"of attempt 1", 1)
    path = tmp_path / "later"
    world = World(0, 0, 0, 4, 2, NODES)
    SharedLog.create(path, 2, room(world))
    log = SharedLog(path, 0, 2, room(world))
    Relay(connect("run/2"), log, world, DELAY).fetch()
    assert log.news() == []


def test_what_everybody_has_fetched_leaves_the_store(nodes: list[Node], port: int) -> None:
    here, there = nodes
    store = connect("run/1")
    for step in range(1, 101):
        there.other.send(b"entry", step)
        there.other.send(b"entry", step)
        here.leader.fetch()
        there.leader.fetch()
    kept = [number for number in range(1, 201) if store.check([str(number)])]  # type: ignore[attr-defined]
    assert kept == list(range(200 - 2 * (DELAY + 1) + 1, 201))
    assert here.news == [[b"entry"] * 200] * 2


def test_an_announced_entry_that_does_not_come_is_an_error(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_PATIENCE", timedelta(milliseconds=200))
    store = connect("run/1")
    store.add("posted", 1)
    log = nodes[0].logs[0]
    with pytest.raises(TrainingError, match=r"the job's store failed .*the node that hosts it may be lost"):
        Relay(store, log, World(0, 0, 0, 4, 2, NODES), DELAY).fetch()


def test_a_lost_store_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    host = os.fork()
    if host == 0:
        hosted = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(writing, str(hosted.port).encode())
        signal.pause()
    try:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", os.read(reading, 10).decode())
        node = Node(tmp_path, 0)
        node.leader.fetch()
    finally:
        os.kill(host, signal.SIGKILL)
        os.waitpid(host, 0)
        os.close(reading)
        os.close(writing)
    with pytest.raises(TrainingError, match="the job's store failed"):
        node.leader.fetch()


@pytest.mark.parametrize(("host", "port"), [("", ""), ("127.0.0.1", ""), ("127.0.0.1", "x")])
def test_workers_on_several_nodes_need_a_store(host: str, port: str) -> None:
    with pytest.raises(EnvironmentProblem, match="MASTER_ADDR, MASTER_PORT: expected the job's store"):
        connect("run/1", {"MASTER_ADDR": host, "MASTER_PORT": port})


def test_a_store_that_is_not_there_is_named(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_PATIENCE", timedelta(milliseconds=300))
    with pytest.raises(EnvironmentProblem, match=r"no connection to the job's store at 127\.0\.0\.1:1: "):
        connect("run/1", {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})


def test_the_ring_for_other_nodes_has_room_for_all_their_ranks() -> None:
    assert room(World(size=2, local_size=2)) == 0
    assert room(World(size=4, local_size=2, nodes=2)) == 2 * AREA
    assert room(World(size=4096, local_size=8, nodes=512)) == 64 * AREA


# --- trainings on two nodes ---


@pytest.fixture
def soak(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script of the long version."""
    path = request.config.rootpath / "tests" / "soak" / "decisions.py"
    spec = importlib.util.spec_from_file_location("soak_decisions", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_all_ranks_of_two_nodes_apply_each_decision_at_the_same_step(
    soak: ModuleType, fork_ranks: Any, tmp_path: Path, port: int
) -> None:
    plan = soak.Plan(tmp_path, port, posts=int(os.environ.get("TRAINRUN_TEST_POSTS", "1000")))
    reports = fork_ranks(soak.training(plan), 4)
    for report in reports:
        if isinstance(report, Exception):
            raise report
    assert soak.problems(plan, reports) == []
    assert sum(len(report.posted) for report in reports) > plan.posts
    assert {how for _, how, _ in reports[0].applied} == {"due", "settle", "end"}


class StopFrom:
    """Asks for a stop on the last rank, and notes the step at which each rank is told of it."""

    told: list[tuple[int, str]]

    @hookimpl
    def on_step_end(self, run: Any, step: int) -> None:
        if step == self.at and run.world.rank == run.world.size - 1:
            run.request_stop("enough")

    @hookimpl
    def on_stop_requested(self, run: Any, reason: str) -> None:
        type(self).told.append((run.step, reason))

    @classmethod
    def report(cls) -> list[tuple[int, str]]:
        return cls.told


@pytest.mark.parametrize(("at", "stopped"), [(5, 7), (19, 20), (20, 20)], ids=["middle", "last but one", "last"])
def test_a_training_on_two_nodes_stops_everywhere_at_the_same_step(
    training: Any, regression: Any, port: int, at: int, stopped: int
) -> None:
    plugin = type("StopFrom", (StopFrom,), {"at": at, "told": []})
    trained = training(regression, plugin, ranks=4, nodes=2, report=plugin.report, train={"steps": 20})
    assert trained.reports == [[(stopped, "enough")]] * 4
    (decision,) = trained.decisions
    assert (decision["decision"], decision["rank"], decision["posted"]) == ("stop", 3, at)
    assert trained.outcome.step == stopped
