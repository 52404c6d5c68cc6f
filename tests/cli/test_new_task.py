from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from trainrun.cli.new_task import command

NAME = "sine-curve"


def new_task(*arguments: str | Path) -> str:
    result = CliRunner().invoke(command, list(map(str, arguments)))
    return str(result.exception) if result.exception else result.stdout


@pytest.fixture
def environment(trainrun_cache: Path) -> Mapping[str, str]:
    return {**os.environ, "TRAINRUN_CACHE_DIR": str(trainrun_cache)}


def call(folder: Path, environment: Mapping[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_writes_a_task_a_recipe_and_a_test(tmp_path: Path, environment: Mapping[str, str]) -> None:
    assert "trainrun smoke" in new_task(NAME, "--dir", tmp_path)
    folder = tmp_path / NAME
    assert sorted(path.name for path in folder.iterdir()) == ["sine_curve.py", "test_sine_curve.py", "train.toml"]
    assert all("$" not in path.read_text() for path in folder.iterdir())
    assert call(folder, environment, "trainrun", "check").startswith("train.toml: ok")
    checked = ["ruff", "check", "--isolated", "--select", "E,F,I,UP,B", "--line-length", "120"]
    call(folder, environment, *checked)
    call(folder, environment, "ruff", "format", "--isolated", "--check", "--line-length", "120")


@pytest.mark.long
def test_its_own_test_passes(tmp_path: Path, environment: Mapping[str, str]) -> None:
    new_task(NAME, "--dir", tmp_path)
    assert "2 passed" in call(tmp_path / NAME, environment, "pytest", "-p", "no:cacheprovider")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_smoke_finds_nothing(tmp_path: Path, environment: Mapping[str, str]) -> None:
    new_task(NAME, "--dir", tmp_path)
    shown = call(tmp_path / NAME, environment, "trainrun", "smoke")
    assert shown.count("ok: ") == 6, shown


@pytest.mark.parametrize(
    ("name", "what"),
    [("Upper", "new-task: NAME must be lower-case letters"), ("json", "new-task: 'json' is taken")],
)
def test_names_are_checked(tmp_path: Path, name: str, what: str) -> None:
    assert what in new_task(name, "--dir", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    assert "exists already; nothing was written" in new_task(NAME, "--dir", tmp_path)
    assert list((tmp_path / NAME).iterdir()) == []
