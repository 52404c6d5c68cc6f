"""Limits that are too low for a run: they are named before anything is started, each with its value and the need."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from trainrun.errors import EnvironmentProblem
from trainrun.launch import cgroup, limits

RECIPE = Path(__file__).resolve().parents[2] / "train.toml"
LAUNCH = f"{sys.executable} -m trainrun launch {RECIPE} -o train.steps=1 -o launch.workers=2 --dir runs"


def shell(folder: Path, script: str, *before: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, "bash", "-c", script],
        cwd=folder,
        env={**os.environ, "TRAINRUN_CACHE_DIR": str(folder / "cache"), "HOME": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )


@pytest.mark.parametrize("value", [24, 32])
def test_open_files(tmp_path: Path, value: int) -> None:
    done = shell(tmp_path, f"ulimit -n {value} && {LAUNCH}")
    assert done.returncode == 4, done.stdout + done.stderr
    said = f"error: ulimit -n (open files) is {value}, and 48 are needed; ulimit -n 1024"
    assert said in done.stderr
    assert "(for 2 workers)" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_so_few_open_files_that_nothing_works(tmp_path: Path) -> None:
    done = shell(tmp_path, f"ulimit -n 6 && {LAUNCH}")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "ulimit -n" in done.stderr
    assert "a bug in trainrun" not in done.stderr


def test_shared_memory(tmp_path: Path) -> None:
    mounting = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    if shell(tmp_path, mounting, "unshare", "-m").returncode:
        pytest.skip("no file system can be mounted here, also not in a mount namespace")
    done = shell(tmp_path, f"{mounting} && {LAUNCH}", "unshare", "-m")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "error: free space in /dev/shm is 64 KiB of 64 KiB, and 192 KiB are needed; remove what" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
def test_processes_of_a_user() -> None:
    may_read = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")  # this Python may be in a home
    user = ("setpriv", "--reuid=64123", "--clear-groups", *may_read)
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # pytest's own may be entered by its user only
        folder = Path(name)
        folder.chmod(0o777)
        if shell(folder, f"{sys.executable} -c 'import trainrun' && touch file", *user).returncode:
            pytest.skip("another user may not read this Python")
        done = shell(folder, f"ulimit -u 12 && {LAUNCH}", *user)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "error: ulimit -u (processes and threads of this user) is 12, of which " in done.stderr
    assert "end some, or ulimit -u " in done.stderr


def test_limit_of_a_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "limits", lambda: cgroup.Limits(processes=20))
    with pytest.raises(EnvironmentProblem, match=r"\(pids.max\) is 20, and 34 are needed; .* \(for 2 workers\)"):
        limits.require(2, 1)


def test_a_hard_limit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (30, 40))
    assert "ask the administrator" in str(limits.shortages(2, 1)[0])


def test_this_machine_is_enough() -> None:
    limits.require(2, 1)
