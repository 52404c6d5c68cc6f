"""Many processes want to own one run: one does, whatever the file system offers, and also after its death."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import trainrun
from trainrun.rundir import RunPaths, held
from trainrun.rundir.files import read_lines

PATIENCE = 60.0  # seconds for a hundred processes on two cores

SOURCES = Path(trainrun.__file__).parents[1]

# All begin when the pipe `go` ends. The winner holds the run until the pipe `stop` ends.
RACER = """
import fcntl, os, sys
from pathlib import Path

def no_locks(*_):
    raise OSError(38, "no locks")

sys.path.insert(0, sys.argv[1])
from trainrun.errors import UsageError
from trainrun.rundir import Lease, RunPaths

if sys.argv[3] == "without locks":
    fcntl.flock = no_locks
go, stop = int(sys.argv[4]), int(sys.argv[5])
print("ready", flush=True)
os.read(go, 1)
try:
    lease = Lease.acquire(RunPaths(Path(sys.argv[2])))
except UsageError as error:
    print(error, flush=True)
    sys.exit(int(error.exit_code))
print("won", flush=True)
os.read(stop, 1)
lease.release()
"""

# Takes the run, looks whether somebody else is inside, and gives it up, again and again.
VISITOR = """
import fcntl, os, sys
from pathlib import Path

def no_locks(*_):
    raise OSError(38, "no locks")

sys.path.insert(0, sys.argv[1])
from trainrun.errors import UsageError
from trainrun.rundir import Lease, RunPaths

fcntl.flock = no_locks
inside, visits = Path(sys.argv[2], "inside"), 0
while visits < 30:
    try:
        lease = Lease.acquire(RunPaths(Path(sys.argv[2])))
    except UsageError:
        continue
    inside.touch(exist_ok=False)
    inside.unlink()
    lease.release()
    visits += 1
"""

Racer = subprocess.Popen[str]


@contextmanager
def race(root: Path, locks: str, count: int) -> Iterator[tuple[Racer, list[Racer]]]:
    """`count` processes go for one run: the one that has won and still holds it, and those that have lost and ended."""
    (go_in, go_out), (stop_in, stop_out) = os.pipe(), os.pipe()
    stop = os.fdopen(stop_out, "wb")
    command = [sys.executable, "-I", "-S", "-c", RACER, str(SOURCES), str(root), locks, str(go_in), str(stop_in)]
    racers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=(go_in, stop_in)) for _ in range(count)
    ]
    try:
        assert [_line(racer) for racer in racers] == ["ready"] * count
        os.close(go_out)
        answers = {racer: _line(racer) for racer in racers}
        winners = [racer for racer, answer in answers.items() if answer == "won"]
        assert len(winners) == 1, f"{len(winners)} winners"
        losers = [racer for racer in racers if racer not in winners]
        assert {loser.wait(PATIENCE) for loser in losers} == {2}
        told = f"this run is owned by process {winners[0].pid} on "
        assert [answers[loser] for loser in losers if told not in answers[loser]] == []
        yield winners[0], losers
        stop.close()
        # Killed while it gives the run up, it would leave the file that it was writing.
        winners[0].wait(PATIENCE)
    finally:
        for descriptor in (go_in, stop_in):
            os.close(descriptor)
        stop.close()
        for racer in racers:
            racer.kill()
            racer.communicate()


def _line(racer: Racer) -> str:
    assert racer.stdout is not None
    return racer.stdout.readline().strip()


def takeovers(paths: RunPaths) -> list[dict[str, Any]]:
    return [event for event in read_lines(paths.events)[0] if event["event"] == "lease_takeover"]


@pytest.mark.parametrize(
    ("locks", "count"), [("with locks", 100), pytest.param("without locks", 40, marks=pytest.mark.long)]
)
def test_racers_have_one_winner_and_again_after_its_death(tmp_path: Path, locks: str, count: int) -> None:
    paths = RunPaths(tmp_path)
    with race(tmp_path, locks, count) as (first, _):
        owner = held(paths)
        assert owner is not None
        assert owner.pid == first.pid
        first.kill()
        first.wait(PATIENCE)
        assert held(paths) is None
        with race(tmp_path, locks, count // 5) as (second, _):
            owner = held(paths)
            assert owner is not None
            assert owner.pid == second.pid
    (event,) = takeovers(paths)
    assert event["former"].startswith(f"process {first.pid} on ")
    assert event["reason"] == "it died"
    assert [entry.name for entry in paths.lease.iterdir() if entry.name.startswith(".")] == []


def test_two_owners_are_never_inside_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", "-c", VISITOR, str(SOURCES), str(tmp_path)]
    visitors = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    try:
        complaints = [visitor.communicate(timeout=PATIENCE)[1] for visitor in visitors]
        assert complaints == [""] * len(visitors)
    finally:
        for visitor in visitors:
            visitor.kill()
            visitor.communicate()
    assert takeovers(RunPaths(tmp_path)) == []
