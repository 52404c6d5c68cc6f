from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainrun.errors import EnvironmentProblem
from trainrun.rundir import scratch

# Makes what a launch has outside its run directory: a folder, and a semaphore whose name stays until it is removed.
HOLDER = """
import multiprocessing, os, sys, time
from multiprocessing import resource_tracker
from trainrun.rundir import scratch
folder = scratch.make()
os.environ[scratch.VARIABLE] = str(folder)
scratch.adopt()
lock = multiprocessing.get_context("spawn").Lock()
resource_tracker.unregister(lock._semlock.name, "semaphore")  # the tracker would remove it when this process is killed
from multiprocessing import util
assert util.get_temp_dir() == str(folder)
print(scratch.name(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for temporary files with a path short enough for sockets, which that of tmp_path need not be."""
    tmp_path_factory.getbasetemp()  # pytest's own folder is made before, and stays
    with tempfile.TemporaryDirectory(prefix="trainrun-test-", dir="/tmp") as made:
        monkeypatch.setenv("TMPDIR", made)
        monkeypatch.setattr(tempfile, "tempdir", made)
        yield Path(made)


def start() -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-c", HOLDER]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    return started, started.stdout.readline().strip()


def there(folder: Path, name: str) -> tuple[bool, int]:
    return (folder / name).is_dir(), len(list(Path("/dev/shm").glob(f"sem.{name}-*")))


def test_what_a_killed_launch_has_left_is_swept_and_nothing_else(folder: Path) -> None:
    (killed, dead), (other, alive) = start(), start()
    elsewhere = folder / dead.replace(dead.split("-")[1], "abcdef")  # of another machine, or of another container
    elsewhere.mkdir()
    mine = scratch.make()
    try:
        assert there(folder, dead) == there(folder, alive) == (True, 1)
        scratch.sweep()
        assert there(folder, dead) == there(folder, alive) == (True, 1)
        killed.kill()
        killed.wait()
        scratch.sweep()
        assert there(folder, dead) == (False, 0)
        assert there(folder, alive) == (True, 1)
        assert elsewhere.is_dir()
        scratch.clear()
        assert not mine.exists()
        assert there(folder, alive) == (True, 1)
    finally:
        for process in (killed, other):
            process.kill()
            process.communicate()
        scratch.sweep()
    assert there(folder, alive) == (False, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_what_another_user_owns_is_left_and_not_used(folder: Path) -> None:
    mine = scratch.make()
    os.chown(mine, 65534, 65534)
    scratch.clear()
    assert mine.is_dir()
    with pytest.raises(EnvironmentProblem, match="not this user's folder; remove it, or set TMPDIR"):
        scratch.make()


def test_a_link_in_place_of_the_folder_is_refused_and_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (folder / scratch.name()).symlink_to(tmp_path / "target")
    with pytest.raises(EnvironmentProblem):
        scratch.make()
    scratch.clear()
    assert (tmp_path / "target").is_dir()
    assert not (folder / scratch.name()).is_symlink()
