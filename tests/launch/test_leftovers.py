from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from trainrun.launch import leftovers
from trainrun.rundir import RunPaths, WorkerRecord, process
from trainrun.rundir.files import write_json
from trainrun.rundir.lease import LeaseInfo

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def orphan(paths: RunPaths) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of the run that nobody looks after."""
    environment = {**os.environ, process.RUN_DIR_VARIABLE: str(paths.root)}
    started = subprocess.Popen(SLEEP, env=environment, start_new_session=True)
    since = process.start_time(started.pid)
    assert since is not None
    paths.attempt(1).mkdir()
    record = WorkerRecord(pid=started.pid, pgid=started.pid, start_time=since, rank=0, phase="training")
    write_json(paths.worker_record(1, 0), record.to_json())
    yield started
    started.kill()
    started.wait()


def lease(paths: RunPaths, **changes: object) -> None:
    paths.lease.mkdir(exist_ok=True)
    (paths.lease / "1").write_text(json.dumps(asdict(replace(LeaseInfo.own(), **changes))))


def test_orphans_of_a_dead_client_are_ended(paths: RunPaths, orphan: subprocess.Popen[bytes]) -> None:
    lease(paths, start_time=1)
    assert leftovers.clear(paths.root.parent) == [paths.run_id]
    assert orphan.wait(10) == -9
    assert leftovers.clear(paths.root.parent) == []


def test_a_living_clients_workers_are_left_alone(paths: RunPaths, orphan: subprocess.Popen[bytes]) -> None:
    lease(paths)
    assert leftovers.clear(paths.root.parent) == []
    assert orphan.poll() is None


def test_nothing_is_ended_on_the_word_of_another_machine(paths: RunPaths, orphan: subprocess.Popen[bytes]) -> None:
    lease(paths, boot="another", start_time=1)
    assert leftovers.clear(paths.root.parent) == []
    assert orphan.poll() is None


def test_no_runs_at_all(tmp_path: Path) -> None:
    assert leftovers.clear(tmp_path / "none") == []


def test_temporary_files_and_semaphores_of_a_killed_launch_are_removed(tmp_path: Path) -> None:
    script = (
        "import os, sys; from trainrun.rundir import scratch; open(f'/dev/shm/sem.{scratch.name()}-x', 'w').close();"
        "print(scratch.make(), flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False)
    folder = Path(killed.stdout.strip())
    semaphore = Path(f"/dev/shm/sem.{folder.name}-x")
    assert (folder.is_dir(), semaphore.exists()) == (True, True)
    assert leftovers.clear(tmp_path / "none") == []
    assert (folder.exists(), semaphore.exists()) == (False, False)
