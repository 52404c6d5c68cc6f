from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainrun.errors import UsageError
from trainrun.rundir import Lease, RunPaths, held
from trainrun.rundir.lease import LeaseInfo, recorded

# Takes the lease if it can, says so, and holds it until its stdin ends.
RACER = """
import sys
from pathlib import Path
from trainrun.errors import UsageError
from trainrun.rundir import Lease, RunPaths
try:
    Lease.acquire(RunPaths(Path(sys.argv[1])))
except UsageError as error:
    print("lost", error, flush=True)
else:
    print("won", flush=True)
sys.stdin.read()
"""


def start(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RACER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    lease = Lease.acquire(paths)
    owner = held(paths)
    assert owner is not None
    assert owner.pid == os.getpid()
    with pytest.raises(UsageError, match=f"owned by process {os.getpid()} on"):
        Lease.acquire(paths)
    lease.release()
    assert held(paths) is None
    Lease.acquire(paths).release()


def test_of_many_racers_one_wins(tmp_path: Path) -> None:
    racers = [start(tmp_path) for _ in range(8)]
    try:
        answers = [racer.stdout.readline() for racer in racers if racer.stdout]
    finally:
        for racer in racers:
            racer.communicate()
    assert sorted(answer.split()[0] for answer in answers) == ["lost"] * 7 + ["won"]
    winner = next(racer for racer, answer in zip(racers, answers, strict=True) if answer.startswith("won"))
    named = [answer for answer in answers if f"process {winner.pid} " in answer]
    assert len(named) >= 6  # one may have looked before the winner had written its name


def test_death_gives_the_lease_up(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    racer = start(tmp_path)
    assert racer.stdout is not None
    assert racer.stdout.readline() == "won\n"
    assert held(paths) is not None
    racer.kill()
    racer.communicate()
    assert held(paths) is None
    last = recorded(paths)
    assert last is not None
    assert last.pid == racer.pid
    Lease.acquire(paths).release()


def test_another_boot_is_dead_and_another_host_is_not(tmp_path: Path) -> None:
    own = LeaseInfo.own()
    assert own.is_alive
    assert not LeaseInfo(own.host, "another boot", own.pid, own.start_time, 0.0).is_alive
    assert not LeaseInfo(own.host, own.boot, own.pid, own.start_time + 1, 0.0).is_alive
    assert LeaseInfo("elsewhere", "another boot", 1, 1, 0.0).is_alive


@pytest.mark.parametrize("text", ["", "garbage", "{}", json.dumps({"host": "a", "boot": "b", "pid": "x"})])
def test_broken_record_names_nobody(tmp_path: Path, text: str) -> None:
    paths = RunPaths(tmp_path)
    paths.lease.write_text(text)
    assert held(paths) is None
