from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _session_cache(trainrun_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptions are kept from test to test, and apart from the user's own."""
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(trainrun_cache))
