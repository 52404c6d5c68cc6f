"""A user without HOME and without an entry in the user database, as containers have."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Python imports it at its start, in each process.
NOBODY = """
import pwd

def unknown(user):
    raise KeyError(f"getpwuid(): uid not found: {user}")

pwd.getpwuid = pwd.getpwnam = unknown
"""
Homeless = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def homeless(recipe: Path) -> Homeless:
    site = recipe.parent / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(NOBODY)
    unset = {"HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "TRAINRUN_CACHE_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "trainrun", *arguments],
            cwd=recipe.parent,
            env={**environment, "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_check_works_without_a_cache(homeless: Homeless, recipe: Path) -> None:
    done = homeless("check", recipe.name)
    assert (done.returncode, done.stdout.partition(" · ")[0]) == (0, "train.toml: ok"), done.stderr
    assert not (recipe.parent / "~").exists()


def test_home_that_is_not_known_is_a_missing_file(homeless: Homeless, recipe: Path) -> None:
    for target in ("~/task.py", "~somebody/task.py"):
        done = homeless("check", recipe.name, "-o", f"task.use={target}")
        assert done.returncode == 2, done.stderr
        assert f"there is no file '{target}'" in done.stderr
