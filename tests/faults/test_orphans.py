"""After every death nothing is left: neither workers, nor loader processes, nor what plugins have started."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

GONE = 2.0  # seconds

Wait = Callable[[Callable[[], object]], None]


class Running:
    """A launch that has made its first step, with loader processes, children and grandchildren on each rank."""

    def __init__(self, project: Any, client: subprocess.Popen[str], terminal: int) -> None:
        self.project = project
        self.client = client
        self.terminal = terminal
        self.run: Path = (project.folder / "runs" / "latest").resolve()

    def worker(self, rank: int) -> int:
        return int(json.loads((self.run / f"attempts/1/rank-{rank}.json").read_text())["pid"])

    @property
    def agent(self) -> int:
        return parent(self.server) if self.is_warm else parent(self.worker(0))

    @property
    def server(self) -> int:
        return parent(self.worker(0))

    @property
    def is_warm(self) -> bool:
        return parent(parent(parent(self.worker(0)))) == self.client.pid

    def loader(self, rank: int) -> int:
        """A loader process: a child of the worker in its session that is no `sleep`."""
        worker = self.worker(rank)
        names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in children(worker)}
        return next(pid for pid, name in names.items() if name != "sleep")


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def running(project: Any, wait_for: Wait) -> Iterator[Callable[..., Running]]:
    """Start one."""
    clients: list[subprocess.Popen[str]] = []
    master, slave = pty.openpty()

    def begin(start: str = "warm", *, until_step: int = 1) -> Running:
        client = project.start_launch(
            "spawns", terminal=slave, launch__start=start, task__fault="is_slow", train__steps=1000, data__workers=1,
            train__log_every=1,
        )  # fmt: skip
        clients.append(client)
        status = project.folder / "runs" / "latest" / "status.json"
        if until_step:
            wait_for(lambda: client.poll() is not None or step(status) >= until_step)
        else:
            wait_for(lambda: client.poll() is not None or len(project.left()) > 2)
        assert client.poll() is None, client.communicate()
        return Running(project, client, master)

    yield begin
    for client in clients:
        with suppress(ProcessLookupError):
            os.killpg(client.pid, signal.SIGKILL)
        client.communicate()
    os.close(master)
    os.close(slave)


def step(status: Path) -> int:
    with suppress(OSError, ValueError):
        return int(json.loads(status.read_text())["step"])
    return 0


def kill(*pids: int, number: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids:
        os.kill(pid, number)


def press(run: Running, times: int) -> None:
    for _ in range(times):
        os.write(run.terminal, b"\x03")
        time.sleep(0.02)  # a burst of keys, not one signal


def stopped_agent(run: Running) -> None:
    kill(run.agent, number=signal.SIGSTOP)
    run.client.kill()


def stopped_worker(run: Running) -> None:
    kill(run.worker(1), number=signal.SIGSTOP)
    run.client.kill()


# What is done to the run, and what the client then ends with.
DEATHS: dict[str, tuple[Callable[[Running], object], int]] = {
    "client": (lambda run: run.client.kill(), -9),
    "client and agent": (lambda run: kill(run.client.pid, run.agent), -9),
    "client and server": (lambda run: kill(run.server, run.client.pid), -9),
    "client, its agent stands still": (stopped_agent, -9),
    "client, a worker stands still": (stopped_worker, -9),
    "client's group": (lambda run: os.killpg(run.client.pid, signal.SIGKILL), -9),
    "agent": (lambda run: kill(run.agent), 1),
    "server": (lambda run: kill(run.server), 1),
    "both ranks": (lambda run: kill(run.worker(0), run.worker(1)), 1),
    "loader": (lambda run: kill(run.loader(1)), 1),
    "SIGTERM": (lambda run: run.client.terminate(), 143),
    "Ctrl-C, once": (lambda run: press(run, 1), 130),
    "Ctrl-C, in a burst": (lambda run: press(run, 3), 130),
}
COLD = ["client", "agent", "Ctrl-C, in a burst"]


# Of a kind with others, or with those of end_to_end/test_endings.py.
LATER = (
    "client's group",
    "server",
    "both ranks",
    "client and server",
    "client, a worker stands still",
    "Ctrl-C, once",
    "Ctrl-C, in a burst",
)


@pytest.mark.parametrize(
    "death", [pytest.param(death, marks=[pytest.mark.long] * (death in LATER)) for death in DEATHS]
)
def test_warm(running: Callable[..., Running], death: str) -> None:
    check(running(), death)


@pytest.mark.long
@pytest.mark.parametrize("death", COLD)
def test_cold(running: Callable[..., Running], death: str) -> None:
    check(running("cold"), death)


def test_client_that_is_killed_while_workers_start(running: Callable[..., Running]) -> None:
    run = running(until_step=0)
    run.client.kill()
    run.client.wait()
    assert_gone(run)


def check(run: Running, death: str) -> None:
    assert len(run.project.left()) >= 9  # agent, server or sink, workers; a loader and two of the plugin for each
    strike, code = DEATHS[death]
    strike(run)
    assert run.client.wait(60) == code
    assert_gone(run)


def assert_gone(run: Running) -> None:
    deadline = time.monotonic() + GONE
    while (left := run.project.left()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left] == []
