from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from trainrun.testing.distribution import DistributionInstaller

RECIPE = """
[task]
use = "tasks/nothing.py"
[train]
steps = 1
"""

TASK = """
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


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(shared_cache))
    return shared_cache


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
