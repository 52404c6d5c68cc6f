"""The kit for plugin authors: a pytest plugin that comes with trainrun.

    def test_counts_steps(run_recipe):
        result = run_recipe(RECIPE, StepCounter)
        assert result.series("step-counter/steps")[4] == 4

Fixtures: `run_recipe` trains in the test's own process, `fork_recipe` on several ranks forked from it, `launch_recipe`
with two real workers. `hook_recorder` is a plugin for any of them that writes down every hook call.
`install_distribution` stands in for pip.

pytest imports this module in every session in which trainrun is installed, so it imports nothing heavy.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from trainrun.testing.calls import Call
    from trainrun.testing.distribution import DistributionInstaller
    from trainrun.testing.ranks import RankError
    from trainrun.testing.recorder import HookRecorder
    from trainrun.testing.result import Result
    from trainrun.testing.running import ForkRecipe, LaunchRecipe, RunRecipe

__all__ = [
    "Call",
    "DistributionInstaller",
    "ForkRecipe",
    "HookRecorder",
    "LaunchRecipe",
    "RankError",
    "Result",
    "RunRecipe",
]

_HOMES = {
    "Call": "calls",
    "DistributionInstaller": "distribution",
    "ForkRecipe": "running",
    "HookRecorder": "recorder",
    "LaunchRecipe": "running",
    "RankError": "ranks",
    "Result": "result",
    "RunRecipe": "running",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


@pytest.fixture
def run_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainrun_cache: Path) -> Iterator[RunRecipe]:
    """Call it to train with a recipe in this process.

    The process is the only rank. See `trainrun.testing.RunRecipe`.
    """
    from trainrun.testing.running import RunRecipe  # noqa: PLC0415 - every import in this file waits for its use
    from trainrun.testing.settings import kept_settings  # noqa: PLC0415

    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(trainrun_cache))
    runner = RunRecipe(tmp_path, monkeypatch)
    with kept_settings():
        yield runner
    runner.close()


@pytest.fixture
def fork_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainrun_cache: Path) -> Iterator[ForkRecipe]:
    """Call it to train with a recipe on two ranks.

    They are forked from this process. See `trainrun.testing.ForkRecipe`.
    """
    from trainrun.testing.running import ForkRecipe  # noqa: PLC0415
    from trainrun.testing.settings import kept_settings, one_thread  # noqa: PLC0415

    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(trainrun_cache))
    runner = ForkRecipe(tmp_path, monkeypatch)
    with kept_settings(), one_thread():
        yield runner
    runner.close()


@pytest.fixture
def launch_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainrun_cache: Path) -> LaunchRecipe:
    """Call it with a recipe to train with two real workers. See `trainrun.testing.LaunchRecipe`."""
    from trainrun.testing.running import LaunchRecipe  # noqa: PLC0415

    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(trainrun_cache))
    return LaunchRecipe(tmp_path)


@pytest.fixture
def hook_recorder() -> type[HookRecorder]:
    """Return a plugin to pass to `run_recipe` or `launch_recipe`.

    The calls that it saw are in the result's `calls`.
    """
    from trainrun.testing.recorder import HookRecorder  # noqa: PLC0415

    return HookRecorder


@pytest.fixture
def install_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DistributionInstaller]:
    """Call it to install a throw-away distribution with entry points.

    It is there until the end of the test.
    """
    from trainrun.testing.distribution import DistributionInstaller  # noqa: PLC0415

    installer = DistributionInstaller(tmp_path / "installed", monkeypatch)
    yield installer
    installer.remove()


@pytest.fixture(scope="session")
def trainrun_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the plugin cache of a session.

    The runs of the session share it. It is apart from the user's own cache.
    """
    return tmp_path_factory.mktemp("trainrun-cache")
