from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trainrun.testing.distribution import DistributionInstaller

Trainrun = Callable[..., "subprocess.CompletedProcess[str]"]

RECIPE = """\
[task]
use = "tasks/nothing.py"

[train]
steps = 1
"""

TASK = """\
from trainrun import hookimpl

@hookimpl
def build_model(device):
    return None

@hookimpl
def build_dataset(split):
    return None

@hookimpl
def training_step(batch):
    return None

@hookimpl
def evaluation_step(batch):
    return {}
"""


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests: describing the built-ins takes as long as importing torch."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DistributionInstaller]:
    installer = DistributionInstaller(tmp_path / "site", monkeypatch)
    yield installer
    installer.remove()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe whose task imports nothing slow; tests append tables to it."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "nothing.py").write_text(TASK)
    path = tmp_path / "train.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def trainrun(tmp_path: Path, shared_cache: Path) -> Trainrun:
    """Run the command line as its user does, in the test's folder."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "trainrun", *arguments],
            cwd=tmp_path,
            env={**os.environ, "TRAINRUN_CACHE_DIR": str(shared_cache), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run
