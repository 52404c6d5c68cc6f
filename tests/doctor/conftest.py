from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trainrun.doctor.finding import Context, Finding, Settings
from trainrun.doctor.process import load
from trainrun.testing.distribution import DistributionInstaller

Ask = Callable[..., Finding]


@pytest.fixture
def ask() -> Ask:
    """Run one check here; the settings are given by name."""

    def run(target: str, **settings: object) -> Finding:
        context = Context(Settings()._replace(**settings), lambda _: None, lambda _: None)
        (finding,) = load(target)(context)
        return finding

    return run


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DistributionInstaller]:
    installer = DistributionInstaller(tmp_path / "site", monkeypatch)
    yield installer
    installer.remove()
