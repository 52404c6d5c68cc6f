from __future__ import annotations

from pathlib import Path

import pytest
import tomli

from trainrun.plugin.discovery import Installed
from trainrun.plugin.distributions import OWNERS
from trainrun.plugin.resolve import resolve

ROOT = Path(__file__).resolve().parents[2]


def test_own_plugins_are_those_of_the_distributions() -> None:
    found = {}
    for path in ROOT.glob("plugins/*/pyproject.toml"):
        project = tomli.loads(path.read_text())["project"]
        found |= dict.fromkeys(project["entry-points"]["trainrun"], project["name"])
    assert found == OWNERS


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("early-stopping", "plugin 'early-stopping' is not installed; pip install trainrun-callbacks"),
        ("wandb", "plugin 'wandb' is not installed; pip install trainrun-wandb"),
    ],
)
def test_own_plugin_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, text: str
) -> None:
    monkeypatch.setattr("trainrun.plugin.resolve.discover", lambda: Installed((), "none"))
    recipe = tmp_path / "train.toml"
    recipe.write_text(f"[task]\nuse = 'mine.py'\n[plugins.{name}]\n")
    problems = [str(problem) for problem in resolve(recipe).problems]
    assert any(text in problem for problem in problems), problems
