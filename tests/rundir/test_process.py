from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from trainrun.rundir import process

# Starts a sleeping child, says its pid, and ends, or sleeps too if it is told to.
LEADER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session="apart" in sys.argv)
print(child.pid, flush=True)
if "stay" in sys.argv:
    time.sleep(600)
"""


@dataclass(frozen=True)
class Known:
    pid: int
    pgid: int
    start_time: int


@pytest.fixture
def leaders() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for leader in started:
        leader.kill()
        leader.communicate()


def start(leaders: list[subprocess.Popen[str]], *arguments: str, run_dir: Path | None = None) -> tuple[Known, Known]:
    environment = {**os.environ, **({process.RUN_DIR_VARIABLE: str(run_dir)} if run_dir else {})}
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )
    leaders.append(leader)
    started = process.start_time(leader.pid)
    assert started is not None
    assert leader.stdout is not None
    child = int(leader.stdout.readline())
    child_started = process.start_time(child)
    assert child_started is not None
    return Known(leader.pid, leader.pid, started), Known(child, leader.pid, child_started)


def wait_until_gone(known: Known) -> None:
    descriptor = _open(known.pid)
    if descriptor is not None:
        import select

        assert select.select([descriptor], [], [], 10)[0]
        os.close(descriptor)
    assert not process.alive(known.pid, known.start_time)


def _open(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def test_alive_knows_the_very_process() -> None:
    started = process.start_time(os.getpid())
    assert started is not None
    assert process.alive(os.getpid(), started)
    assert not process.alive(os.getpid(), started + 1)
    assert process.start_time(2**30) is None


def test_zombie_is_dead_and_tells_its_exit_code() -> None:
    for ending, code in (("import sys; sys.exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)):
        child = subprocess.Popen([sys.executable, "-c", ending])
        started = process.start_time(child.pid)
        assert started is not None
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not process.alive(child.pid, started)
        assert process.exit_code(child.pid, started) == code
        child.wait()
        assert process.exit_code(child.pid, started) is None


def test_kill_group_takes_leader_and_children(leaders: list[subprocess.Popen[str]]) -> None:
    leader, child = start(leaders, "stay")
    process.kill_group(leader)
    leaders[0].wait(10)
    wait_until_gone(child)


def test_kill_group_works_after_its_leader_died(leaders: list[subprocess.Popen[str]]) -> None:
    leader, child = start(leaders)
    leaders[0].wait(10)
    assert process.alive(child.pid, child.start_time)
    process.kill_group(leader)
    wait_until_gone(child)


def test_reused_number_is_left_alone(leaders: list[subprocess.Popen[str]]) -> None:
    leader, child = start(leaders, "stay")
    process.kill_group(Known(leader.pid, leader.pgid, leader.start_time - 1))
    assert process.alive(leader.pid, leader.start_time)
    assert not process.send(Known(leader.pid, leader.pgid, leader.start_time - 1), signal.SIGKILL)
    assert process.alive(child.pid, child.start_time)
    process.kill_group(leader)
    wait_until_gone(child)


def test_own_group_is_never_killed() -> None:
    process.kill_group(Known(2**30, os.getpgrp(), 1))


def test_sweep_finds_who_made_a_session_of_its_own(leaders: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    leader, child = start(leaders, "apart", run_dir=tmp_path)
    leaders[0].wait(10)
    process.kill_group(leader)
    assert process.alive(child.pid, child.start_time)
    assert process.members(tmp_path) == [child.pid]
    assert process.members(tmp_path / "other") == []
    assert process.sweep(tmp_path) == [child.pid]
    wait_until_gone(child)


def test_a_process_that_is_only_just_starting_is_found(tmp_path: Path) -> None:
    environment = {process.RUN_DIR_VARIABLE: str(tmp_path)}
    for _ in range(50):
        started = subprocess.Popen(["sleep", "60"], env=environment, start_new_session=True)
        found = process.members(tmp_path)
        started.kill()
        started.wait()
        assert found == [started.pid]


def test_clear_waits_until_all_are_gone(leaders: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    start(leaders, "apart", run_dir=tmp_path)
    process.clear(tmp_path)
    assert process.members(tmp_path) == []


def test_zombie_does_not_run() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process.start_time(child.pid) is not None
    assert not process.running(child.pid)
    child.wait()
    assert not process.running(child.pid)
    assert process.running(os.getpid())
