"""However a run ends: the right exit code, the right words, and nothing left running."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from trainrun.rundir import RunPaths, process
from trainrun.rundir.files import read_json

Start = Callable[..., Any]
Check = Callable[[RunPaths], None]


def outcome(paths: RunPaths) -> dict[str, Any]:
    found = read_json(paths.outcome)
    assert found is not None
    return found


def test_ctrl_c_once(start_long: Start, nothing_left: Check) -> None:
    client = start_long(terminal=True)
    client.press(b"\x03")
    assert client.wait() == 130, client.text
    nothing_left(client.paths)
    assert "press Ctrl-C again to stop now" in client.text
    ended = outcome(client.paths)
    assert ended["state"] == "interrupted"
    records = [client.worker(rank) for rank in (0, 1)]
    assert {record["phase"] for record in records} == {"finished"}
    assert len({record["step"] for record in records}) == 1, "the ranks stopped at different steps"
    assert ended["step"] == records[0]["step"] > 0


def test_ctrl_c_in_a_burst(start_long: Start, nothing_left: Check) -> None:
    client = start_long(terminal=True)
    os.kill(client.worker(1)["pid"], signal.SIGSTOP)  # so that no orderly end is possible
    began = time.monotonic()
    while client.running:  # so that one falls into each part of the ending
        client.press(b"\x03")
        time.sleep(0.0005)
    assert client.wait() == 130, client.text
    assert time.monotonic() - began < 25
    nothing_left(client.paths)
    assert outcome(client.paths)["reason"] == "stopped at once, because Ctrl-C was pressed again"


def test_ctrl_c_before_the_first_step(start: Start, nothing_left: Check) -> None:
    client = start(terminal=True)
    paths = client.paths
    client.press(b"\x03")
    assert client.wait() == 130, client.text
    nothing_left(paths)
    assert outcome(paths)["state"] == "interrupted"


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.long)])
def test_sigterm_and_sighup(start_long: Start, nothing_left: Check, number: signal.Signals) -> None:
    client = start_long()
    client.send(number)
    client.send(number)  # schedulers repeat themselves; this is no wish for a quicker end
    assert client.wait() == 75, client.text
    nothing_left(client.paths)
    assert outcome(client.paths)["state"] == "terminated"
    assert client.worker(0)["phase"] == "finished"


def test_grace_has_an_end(start_long: Start, nothing_left: Check) -> None:
    client = start_long("-o", "launch.grace=0.5")
    os.kill(client.worker(1)["pid"], signal.SIGSTOP)
    client.send(signal.SIGTERM)
    assert client.wait() == 143, client.text
    nothing_left(client.paths)
    assert "launch.grace (0.5 s)" in outcome(client.paths)["reason"]


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_killed_worker(start_long: Start, nothing_left: Check, rank: int) -> None:
    client = start_long()
    os.kill(client.worker(rank)["pid"], signal.SIGKILL)
    began = time.monotonic()
    assert client.wait() == 1, client.text
    assert time.monotonic() - began < 25, "the peers were given the agent's 30 s"
    nothing_left(client.paths)
    failure = outcome(client.paths)["first_failure"]
    assert (failure["rank"], failure["signal"]) == (rank, "SIGKILL")
    assert failure["step"] > 0
    assert f"rank {rank} was killed by SIGKILL at step" in client.text
    assert "Traceback" not in client.text


@pytest.mark.long
def test_worker_that_gets_sigterm_from_outside(start_long: Start, nothing_left: Check) -> None:
    client = start_long("-o", "launch.max_preemptions=0")
    os.kill(client.worker(1)["pid"], signal.SIGTERM)
    assert client.wait() == 75, client.text
    nothing_left(client.paths)
    assert client.worker(0)["step"] == client.worker(1)["step"]


@pytest.mark.long
def test_killed_client_leaves_nothing(start_long: Start, nothing_left: Check) -> None:
    client = start_long()
    paths = client.paths
    client.send(signal.SIGKILL)
    assert client.wait() == -signal.SIGKILL
    nothing_left(paths)


@pytest.mark.long
def test_killed_agent(start_long: Start, nothing_left: Check) -> None:
    client = start_long()
    agent = next(pid for pid in process.members(client.paths.root) if _parent(pid) == client.pid)
    os.kill(agent, signal.SIGKILL)
    assert client.wait() == 1, client.text
    nothing_left(client.paths)
    assert "the workers' agent was killed by SIGKILL" in outcome(client.paths)["reason"]


def test_output_without_a_reader_does_not_end_a_run(start: Start) -> None:
    client = start("-o", "train.steps=5", "-o", "launch.workers=1", deaf=True)
    assert client.wait(120) == 0
    assert outcome(client.paths)["state"] == "finished"


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        return int(file.read().rpartition(")")[2].split()[1])
