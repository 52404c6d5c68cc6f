from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainrun.recipe import Document, base_schema, check, merge, read

Write = Callable[..., Path]

MINIMAL = '[task]\nuse = "x"\n[train]\nsteps = 3\n'


@pytest.fixture(scope="session")
def schema() -> dict[str, Any]:
    return base_schema()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a recipe into an empty working directory and return its relative path."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes, name: str = "train.toml") -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


@pytest.fixture
def document(write: Write) -> Callable[..., Document]:
    return lambda text, *overrides: read(write(text), overrides)


@pytest.fixture
def problems(document: Callable[..., Document], schema: dict[str, Any]) -> Callable[..., list[str]]:
    """What is wrong with a text, each problem's first line."""

    def problems(text: str, *overrides: str, **plugins: dict[str, Any]) -> list[str]:
        found = check(document(text, *overrides), merge(schema, None, plugins))
        return [str(problem).partition("\n")[0] for problem in found]

    return problems
