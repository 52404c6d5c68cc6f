from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainrun.plugin import targets
from trainrun.testing.targets import unload


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    unload(tmp_path)


def test_relative_paths_start_at_the_recipe(tmp_path: Path) -> None:
    assert targets.absolute("tasks/a.py:Task", tmp_path) == f"{tmp_path}/tasks/a.py:Task"
    assert targets.absolute("package.module:Task", tmp_path) == "package.module:Task"


def test_loads_a_module_and_what_is_in_it() -> None:
    assert targets.load("trainrun.errors") is sys.modules["trainrun.errors"]
    assert targets.load("trainrun.errors:ExitCode.OK") == 0


def test_loads_a_file_under_its_stem_so_that_other_processes_can(folder: Path) -> None:
    (folder / "my_task.py").write_text("class Task: ...")
    task = targets.load(f"{folder}/my_task.py:Task")
    assert getattr(task, "__module__", None) == "my_task"
    assert str(folder) in sys.path


def test_names_the_attribute_that_is_missing() -> None:
    with pytest.raises(ImportError, match=r"trainrun\.errors has no 'Nothing'"):
        targets.load("trainrun.errors:Nothing")


def test_refuses_a_file_whose_name_is_taken(folder: Path) -> None:
    (folder / "json.py").write_text("")
    with pytest.raises(ImportError, match="rename it"):
        targets.load(f"{folder}/json.py")


def test_names_a_missing_file(folder: Path) -> None:
    with pytest.raises(ImportError, match="there is no file"):
        targets.load(f"{folder}/nothing.py")


def test_guesses_sources_without_importing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "never_imported.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(folder)
    assert targets.guess_files("never_imported:Plugin") == [str(folder / "never_imported.py")]
    assert "never_imported" not in sys.modules
