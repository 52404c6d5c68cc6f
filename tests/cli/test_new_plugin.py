from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trainrun.cli.new_plugin import command

NAME = "weight-watcher"


def new_plugin(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, list(map(str, arguments)))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_writes_a_distribution(tmp_path: Path) -> None:
    result = new_plugin(NAME, "--dir", tmp_path)
    assert result.exit_code == 0
    assert f"pip install -e '{tmp_path / NAME}[test]'" in result.stdout
    assert files(tmp_path / NAME) == [
        ".github/workflows/ci.yml",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "src/weight_watcher/__init__.py",
        "src/weight_watcher/py.typed",
        "tests/test_weight_watcher.py",
    ]


def test_no_placeholder_is_left(tmp_path: Path) -> None:
    new_plugin(NAME, "--dir", tmp_path)
    for file in files(tmp_path):
        assert "$" not in (tmp_path / file).read_text()


@pytest.mark.parametrize("made", ["folder", "file"])
def test_never_overwrites(tmp_path: Path, made: str) -> None:
    target = tmp_path / NAME
    target.mkdir() if made == "folder" else target.write_text("mine")
    result = new_plugin(NAME, "--dir", tmp_path)
    assert "exists already; nothing was written" in str(result.exception)
    assert files(tmp_path) == ([] if made == "folder" else [NAME])


@pytest.mark.parametrize(
    "name", ["", "Upper", "under_score", "-a", "a-", "a--b", "1a", "../up", "a/b", "a.b", "ä", "a" * 61, "a b", "a\nb"]
)
def test_names_are_checked(tmp_path: Path, name: str) -> None:
    result = new_plugin("--dir", tmp_path, "--", name)
    assert "NAME must be lower-case letters" in str(result.exception)
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["json", "class", "task", "trainrun", "metrics"])
def test_taken_names_are_refused(tmp_path: Path, name: str) -> None:
    result = new_plugin(name, "--dir", tmp_path)
    assert "is taken" in str(result.exception)
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert "cannot be written: Permission denied" in str(new_plugin(NAME, "--dir", tmp_path).exception)


@pytest.fixture
def python(tmp_path: Path) -> str:
    """A fresh environment that sees the packages of this one, so that nothing has to be downloaded."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return str(python)


@pytest.mark.timeout(600)
def test_it_installs_passes_its_tests_and_shows_up(tmp_path: Path, python: str) -> None:
    new_plugin(NAME, "--dir", tmp_path)
    folder = tmp_path / NAME
    environment = {**os.environ, "TRAINRUN_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("PYTHONPATH", None)

    def call(*arguments: str) -> str:
        done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install"]
    call(*pip, "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--editable", str(folder))
    workflow = (folder / ".github/workflows/ci.yml").read_text()
    assert re.findall(r"- run: (.*)", workflow) == ["pip install -e '.[test]'", "pytest"]  # which is done here
    assert "3 passed" in call(python, "-m", "pytest", "-p", "no:cacheprovider")
    listed = call(python, "-m", "trainrun", "plugins")
    assert f"{NAME} 0.1.0" in listed
    assert "Log how long an update takes" in listed


@pytest.mark.long
def test_what_it_writes_passes_strict_checks(tmp_path: Path) -> None:
    new_plugin(NAME, "--dir", tmp_path)
    folder = tmp_path / NAME
    for checker in (
        ["mypy", "--strict", "src", "tests"],
        ["ruff", "check", "--select", "E,F,I,UP,B"],
        ["ruff", "format", "--check"],
    ):
        tool = [sys.executable, "-m", *checker, *(["--line-length", "120"] if checker[0] == "ruff" else [])]
        environment = {**os.environ, "MYPYPATH": str(folder / "src")}
        done = subprocess.run(tool, cwd=folder, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
