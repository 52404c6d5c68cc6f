from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainrun.errors import EnvironmentProblem
from trainrun.launch import agents, local
from trainrun.launch.agents import WarmAgent
from trainrun.launch.ends import read_ends, read_record
from trainrun.launch.handle import Launch
from trainrun.launch.local import Local, LocalWorkers
from trainrun.rundir import RunPaths, Stop, WorkerRecord, process
from trainrun.rundir.files import write_json

Launched = Callable[..., tuple[Launch, LocalWorkers]]


def follow(handle: LocalWorkers) -> int:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        code = handle.poll()
        if code is not None:
            return code
    raise AssertionError("the workers did not end")


def wait_for_records(launch: Launch, handle: LocalWorkers, ranks: tuple[int, ...] = (0, 1)) -> None:
    deadline = time.monotonic() + 20
    while not all(read_record(launch.paths, 1, rank) for rank in ranks):
        assert time.monotonic() < deadline
        assert handle.poll() is None


def test_all_finish(launched: Launched) -> None:
    launch, handle = launched()
    assert follow(handle) == 0
    assert read_ends(launch.paths, 1) == {}


def test_killed_worker_ends_the_others_at_once(launched: Launched) -> None:
    launch, handle = launched({"0": "hang", "1": "kill:9"})
    wait_for_records_or_end(launch, handle)
    began = time.monotonic()
    assert follow(handle) != 0
    assert time.monotonic() - began < 2
    assert {rank: end.code for rank, end in read_ends(launch.paths, 1).items()} == {1: -9}


def wait_for_records_or_end(launch: Launch, handle: LocalWorkers) -> None:
    deadline = time.monotonic() + 20
    while read_record(launch.paths, 1, 1) is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize(("deed", "code"), [("exit:0", 0), ("exit:3", 3), (f"kill:{int(signal.SIGSEGV)}", -11)])
def test_unexplained_end_is_noted_with_its_code(launched: Launched, deed: str, code: int) -> None:
    launch, handle = launched({"0": "hang", "1": deed})
    assert follow(handle) != 0
    assert read_ends(launch.paths, 1)[1].code in {code, None if code == 0 else code}


def test_error_record_ends_everything(launched: Launched) -> None:
    launch, handle = launched({"0": "hang", "1": "raise:no"})
    assert follow(handle) != 0
    record = read_record(launch.paths, 1, 1)
    assert record is not None
    assert record.error is not None


def test_worker_that_never_wrote_a_record_is_found_in_the_agents_log(launched: Launched) -> None:
    launch, handle = launched({"0": "unrecorded", "1": "hang"})
    began = time.monotonic()
    assert follow(handle) != 0
    assert time.monotonic() - began < 10
    assert read_ends(launch.paths, 1)[0].code == 7


def test_agents_own_failure(launched: Launched) -> None:
    launch, handle = launched({"agent": "5"})
    assert follow(handle) == 5
    assert "could not start anything" in launch.paths.agent_log.read_text()


def test_stop_reaches_every_worker(launched: Launched) -> None:
    launch, handle = launched({"0": "stop", "1": "stop"})
    handle.stop("test")  # before any worker has started: it is told when it has
    assert follow(handle) == 0
    record = read_record(launch.paths, 1, 1)
    assert record is not None
    assert record.stop == Stop("SIGTERM received", "SIGTERM", "signal")


def test_finished_workers_that_linger_are_ended(launched: Launched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_LINGER", 0.1)
    _, handle = launched({"0": "linger"})
    assert follow(handle) == 0


def test_strays_are_swept(launched: Launched) -> None:
    launch, handle = launched({"1": "stray"})
    assert follow(handle) != 0
    assert process.members(launch.paths.root) == []


def test_kill_is_idempotent_and_complete(launched: Launched) -> None:
    launch, handle = launched({"0": "hang", "1": "hang"})
    wait_for_records(launch, handle)
    handle.kill()
    handle.kill()
    assert process.members(launch.paths.root) == []


def test_agent_that_is_killed_is_noticed(launched: Launched) -> None:
    launch, handle = launched({"0": "hang", "1": "hang"})
    wait_for_records(launch, handle)
    agent = next(pid for pid in process.members(launch.paths.root) if os.getpgid(pid) == pid and _is_child(pid))
    os.kill(agent, signal.SIGKILL)
    assert follow(handle) == -9


def _is_child(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        return int(file.read().rpartition(")")[2].split()[1]) == os.getpid()


class WarmStub:
    """A warm agent that tells how its workers ended when all are gone, as elastic also logs of one of them."""

    session = 0

    def __init__(self, launch: Launch, codes: dict[int, int]) -> None:
        self._log = launch.paths.node_log(0)
        self._codes = codes

    def poll(self) -> None:
        return None

    own_end = halt = poll

    def ends(self, seconds: float) -> dict[int, int]:
        self._log.write_text("failed (exitcode: -9) local_rank: 0 (pid: 1)")
        return self._codes


@pytest.fixture
def warm(paths: RunPaths, make: Callable[..., Launch]) -> Iterator[Callable[..., LocalWorkers]]:
    """A handle to sleeping workers that a `WarmStub` has started, whose parent is the process `parent`."""
    sleeping: list[subprocess.Popen[bytes]] = []
    launch: Launch = make(paths)
    paths.attempt(1).mkdir()

    def begin(codes: list[int], parent: int) -> tuple[LocalWorkers, list[subprocess.Popen[bytes]]]:
        sleeping.extend(subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in codes)
        for rank, worker in enumerate(sleeping):
            started = process.start_time(worker.pid) or 0
            record = WorkerRecord(worker.pid, worker.pid, started, rank, "training", parent=parent)
            write_json(paths.worker_record(1, rank), record.to_json())
        agent: Any = WarmStub(launch, {worker.pid: code for worker, code in zip(sleeping, codes, strict=True)})
        output: Any = SimpleNamespace(poll=lambda: None, close=lambda: None)
        return LocalWorkers(agent, launch, 0, output), sleeping

    yield begin
    for worker in sleeping:
        worker.kill()
        worker.wait()


def test_workers_that_were_killed_for_the_end_of_another_are_not_blamed(
    paths: RunPaths, warm: Callable[..., Any]
) -> None:
    handle, workers = warm([-9, -11], os.getpid())
    assert handle.poll() is None
    workers[1].send_signal(signal.SIGSEGV)
    workers[1].wait()
    assert follow(handle) != 0
    assert workers[0].wait() == -signal.SIGKILL
    assert read_ends(paths, 1).keys() == {1}
    assert (read_ends(paths, 1)[1].code, read_ends(paths, 1)[1].orphaned) == (-signal.SIGSEGV, False)


@pytest.mark.parametrize("reaped", [True, False])
def test_workers_that_die_with_their_fork_server(paths: RunPaths, warm: Callable[..., Any], reaped: bool) -> None:
    server = subprocess.Popen(["sleep", "60"])
    handle, workers = warm([-9, -9], server.pid)
    assert handle.poll() is None
    for one in (server, workers[1]):
        one.kill()
        os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
    if reaped:
        workers[1].wait()
    assert follow(handle) != 0
    server.wait()
    assert (read_ends(paths, 1)[1].code, read_ends(paths, 1)[1].orphaned) == (-signal.SIGKILL, True)


def test_another_backend_is_not_ours(paths: RunPaths, make: Callable[..., Launch]) -> None:
    tables: dict[str, Any] = {"launch": {"backend": "cluster"}}
    assert Local().start_workers(make(paths, **tables)) is None


@pytest.mark.parametrize("begin", [lambda launch: local.start(["agent"], launch), WarmAgent], ids=["cold", "warm"])
def test_an_agent_that_cannot_be_started_leaves_nothing_open(
    begin: Callable[[Launch], Any], paths: RunPaths, make: Callable[..., Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise EnvironmentProblem("no process can be started")

    for module in (local, agents):
        monkeypatch.setattr(module, "spawn", fail)
    launch = make(paths)
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(EnvironmentProblem):
        begin(launch)
    assert sorted(Path("/proc/self/fd").iterdir()) == before
