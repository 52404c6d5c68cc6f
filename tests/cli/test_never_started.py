"""A launch that is killed before its recipe is written, and what the commands say of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).resolve().parents[2] / "train.toml"
TRAINRUN = [sys.executable, "-m", "trainrun"]


def call(folder: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TRAINRUN, *arguments],
        cwd=folder,
        env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The folder of a run whose launch was killed by the first program that it started: git, for the manifest."""
    (tmp_path / "bin").mkdir()
    git = tmp_path / "bin/git"
    git.write_text("#!/bin/sh\nkill -9 $PPID\n")
    git.chmod(0o755)
    done = call(tmp_path, "launch", str(RECIPE), "-o", "train.steps=3", path=str(git.parent))
    assert done.returncode == -signal.SIGKILL, done.stderr
    return (tmp_path / "runs/latest").resolve()


def test_resume_says_so_and_gives_the_command(killed: Path, tmp_path: Path) -> None:
    again = f"trainrun launch {RECIPE} -o train.steps=3"
    done = call(tmp_path, "resume")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {killed}: this run never started: its launch was ended before it had written the recipe; "
        f"to start it anew: {again}\n"
    )
    (tmp_path / "elsewhere").mkdir()
    done = call(tmp_path / "elsewhere", "resume", str(killed))
    assert f"to start it anew: cd {tmp_path} && {again}\n" in done.stderr
    (killed / "manifest.json").unlink()  # killed when the folder had just been made
    done = call(tmp_path, "resume")
    assert "never started" in done.stderr
    assert "to start it anew: trainrun launch RECIPE" in done.stderr


def test_the_other_commands_live_with_it(killed: Path, tmp_path: Path) -> None:
    for command in ("ps", "status", "why", "logs", "checkpoints"):
        done = call(tmp_path, command)
        assert done.returncode in (0, 2), f"{command}: {done.stderr}"
        assert "a bug in trainrun" not in done.stderr
    assert call(tmp_path, "sync").returncode == 2
