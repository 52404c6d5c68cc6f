from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trainrun_callbacks.git_info import GitInfo, GitInfoOptions

AUTHOR = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]


@pytest.fixture(autouse=True)
def _no_other_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    return folder


@pytest.fixture
def launch(tmp_path: Path) -> Any:
    (tmp_path / "run").mkdir()
    return SimpleNamespace(paths=SimpleNamespace(root=tmp_path / "run"))


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    git(folder, "add", ".")
    git(folder, *AUTHOR, "commit", "-q", "-m", "Something")


def plugin(folder: Path, **options: Any) -> GitInfo:
    return GitInfo(GitInfoOptions(folder=str(folder), **options))


def info(launch: Any, name: str = "info.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((launch.paths.root / "git" / name).read_text(encoding="utf-8"))
    return found


def test_a_clean_tree(repository: Path, launch: Any) -> None:
    commit(repository, a="1\n")
    (repository / "unknown").touch()
    git(repository, "remote", "add", "origin", "https://me:hunter2@example.org/team/project.git")
    assert plugin(repository, clean=True).check_recipe() is None
    plugin(repository).on_launch_start(launch)
    told = info(launch)
    assert told["commit"] == git(repository, "rev-parse", "HEAD")
    assert (told["branch"], told["dirty"], told["changed"]) == ("main", False, [])
    assert told["remote"] == "https://<redacted>@example.org/team/project.git"
    assert sorted(path.name for path in (launch.paths.root / "git").iterdir()) == ["info.json"]


def test_changes_are_kept_as_a_patch_that_can_be_applied(repository: Path, launch: Any) -> None:
    commit(repository, a="1\n", b="1\n", c="1\n")
    (repository / "a").write_bytes(b"2 \xff\n")
    (repository / "b").unlink()
    (repository / "ä c").write_text("new\n", encoding="utf-8")
    git(repository, "add", "ä c")
    veto = plugin(repository, clean=True).check_recipe()
    assert veto == "clean = true, and files are changed: a, b, ä c; commit them, or set clean = false"
    plugin(repository).on_launch_start(launch)
    assert info(launch)["changed"] == ["a", "b", "ä c"]
    git(repository, "reset", "-q", "--hard")
    git(repository, "apply", str(launch.paths.root / "git" / "changes.patch"))
    assert (repository / "a").read_bytes() == b"2 \xff\n"
    assert not (repository / "b").exists()
    assert (repository / "ä c").exists()


def test_files_that_git_does_not_know_count_where_asked_for(repository: Path) -> None:
    commit(repository, a="1\n")
    for number in range(12):
        (repository / f"new-{number:02}").touch()
    veto = plugin(repository, clean=True, untracked=True).check_recipe()
    assert veto is not None
    assert "new-00, " in veto
    assert "new-09 and 2 more" in veto


def test_a_large_difference_is_left_out(repository: Path, launch: Any) -> None:
    commit(repository, a="1\n")
    (repository / "a").write_text("2\n" * 1000, encoding="utf-8")
    plugin(repository, diff=100).on_launch_start(launch)
    assert info(launch)["why_no_patch"] == "it has more than 100 bytes"
    assert not (launch.paths.root / "git" / "changes.patch").exists()


def test_a_run_that_is_launched_again_keeps_both(repository: Path, launch: Any) -> None:
    commit(repository, a="1\n")
    plugin(repository).on_launch_start(launch)
    commit(repository, a="2\n")
    plugin(repository).on_launch_start(launch)
    assert info(launch)["commit"] != info(launch, "info-2.json")["commit"]


def test_no_commit_yet(repository: Path, launch: Any) -> None:
    plugin(repository).on_launch_start(launch)
    assert (info(launch)["commit"], info(launch)["branch"]) == (None, "main")


def test_no_repository(tmp_path: Path, launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    veto = plugin(folder, clean=True).check_recipe()
    assert veto is not None
    assert "is in no git repository" in veto
    plugin(folder).on_launch_start(launch)
    assert info(launch) == {"repository": None}
    monkeypatch.setenv("PATH", str(folder))
    assert plugin(folder, clean=True).check_recipe() == veto


@pytest.mark.parametrize("silent", ["status", "diff"])
def test_what_git_cannot_say_is_no_clean_tree(
    repository: Path, launch: Any, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    commit(repository, a="1\n")
    run = subprocess.run

    def slow(command: list[str], **how: Any) -> Any:
        if silent in command:
            raise subprocess.TimeoutExpired(command, 30)
        return run(command, **how)

    monkeypatch.setattr(subprocess, "run", slow)
    veto = plugin(repository, clean=True).check_recipe()
    plugin(repository).on_launch_start(launch)
    told = info(launch)
    if silent == "status":
        assert veto == f"clean = true, and git cannot say which files are changed in {repository}; set clean = false"
        assert (told["dirty"], told["changed"]) == (None, None)
    else:
        assert veto is None
        assert (told["patch"], told["why_no_patch"]) == (None, "git gave none")
