from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainrun.doctor import storage
from trainrun.doctor.filesystem import Mount, Space
from trainrun.doctor.finding import Finding, Verdict
from trainrun.doctor.probes import PROBES, probe_socket
from trainrun.rundir import scratch

Ask = Callable[..., Finding]

RUN_DIRECTORY = "trainrun.doctor.storage:run_directory"
GIB = 1024**3


@pytest.fixture
def lies_on(monkeypatch: pytest.MonkeyPatch) -> Any:
    def pretend(kind: str = "ext4", options: str = "rw", space: Space = Space(GIB * 9, GIB * 9, None)) -> None:  # noqa: B008
        monkeypatch.setattr(storage, "mount_of", lambda _: Mount("/", kind, frozenset(options.split(","))))
        monkeypatch.setattr(storage, "space_of", lambda _: space)

    pretend()
    return pretend


def test_a_folder_that_is_there(ask: Ask, tmp_path: Path, lies_on: Any) -> None:
    finding = ask(RUN_DIRECTORY, run_dir=str(tmp_path))
    assert finding.status == "ok"
    assert set(finding.facts["seconds"]) == set(PROBES)
    assert list(tmp_path.iterdir()) == [], "nothing is left"


def test_a_folder_that_is_not_there_is_not_made(ask: Ask, tmp_path: Path, lies_on: Any) -> None:
    finding = ask(RUN_DIRECTORY, run_dir=str(tmp_path / "a" / "b"))
    assert finding.status == "ok"
    assert "not there yet" in finding.finding
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_its_place(ask: Ask, tmp_path: Path, lies_on: Any) -> None:
    (tmp_path / "runs").write_text("")
    finding = ask(RUN_DIRECTORY, run_dir=str(tmp_path / "runs"))
    assert finding.status == "failed"
    assert "is not a folder" in finding.finding


def test_a_place_where_nothing_can_be_made(ask: Ask, lies_on: Any) -> None:
    finding = ask(RUN_DIRECTORY, run_dir="/proc/runs")
    assert finding.status == "failed"
    assert "not writable" in finding.finding
    assert "run.dir" in str(finding.advice)


def test_a_folder_that_may_not_be_searched(ask: Ask, tmp_path: Path, lies_on: Any) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may search all")
    (tmp_path / "closed").mkdir(mode=0)
    assert ask(RUN_DIRECTORY, run_dir=str(tmp_path / "closed" / "runs")).status == "failed"


@pytest.mark.parametrize(
    ("kind", "options", "nodes", "status", "words"),
    [
        ("ext4", "rw", 1, "ok", "ext4"),
        ("nfs4", "rw", 1, "ok", "nfs4"),
        ("nfs", "nolock", 1, "ok", "other machines do not see its locks"),
        ("ext4", "rw", 2, "warning", "only this one sees"),
        ("nfs4", "rw", 2, "warning", "late"),
        ("nfs", "nolock", 2, "warning", "two of them could own one run"),
    ],
)
def test_sharing(
    ask: Ask, tmp_path: Path, lies_on: Any, kind: str, options: str, nodes: int, status: str, words: str
) -> None:
    lies_on(kind, options)
    finding = ask(RUN_DIRECTORY, run_dir=str(tmp_path), nodes=nodes)
    assert finding.status == status
    assert words in finding.finding
    assert (finding.advice is None) == (status == "ok")


@pytest.mark.parametrize(
    ("free", "inodes", "status", "words"),
    [
        (0, None, "failed", "full"),
        (1024**2 * 200, None, "warning", "less than 1.0 GiB"),
        (GIB * 5, 10, "warning", "10 more files"),
        (GIB * 5, 10**6, "ok", "5.0 GiB"),
    ],
)
def test_room(ask: Ask, tmp_path: Path, lies_on: Any, free: int, inodes: int | None, status: str, words: str) -> None:
    lies_on(space=Space(GIB * 100, free, inodes))
    finding = ask(RUN_DIRECTORY, run_dir=str(tmp_path))
    assert finding.status == status
    assert words in finding.finding


def test_locks_that_lock_nobody_out(ask: Ask, tmp_path: Path, lies_on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, how: None)
    finding = ask(RUN_DIRECTORY, run_dir=str(tmp_path))
    assert finding.status == "failed"
    assert "flock does not work there: a second lock was granted" in finding.finding


def test_a_file_system_without_pipes(ask: Ask, tmp_path: Path, lies_on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "mkfifo", refuse)
    finding = ask(RUN_DIRECTORY, run_dir=str(tmp_path))
    assert finding.status == "failed"
    assert "mkfifo does not work there: Operation not permitted" in finding.finding
    assert "mkfifo" not in finding.facts["seconds"]
    assert list(tmp_path.iterdir()) == []


def test_temporary(ask: Ask) -> None:
    finding = ask("trainrun.doctor.storage:temporary")
    assert finding.status != "failed"
    assert tempfile.gettempdir() in finding.finding


def test_no_temporary_directory(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", fail)
    finding = ask("trainrun.doctor.storage:temporary")
    assert finding.status == "failed"
    assert "TMPDIR" in str(finding.advice)


def test_another_temporary_directory_than_wanted(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lies_on: Any
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nothing"))
    finding = ask("trainrun.doctor.storage:temporary")
    assert finding.status == "warning"
    assert f"because {tmp_path / 'nothing'} cannot be written to" in finding.finding


def test_a_temporary_directory_too_deep_for_sockets(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lies_on: Any
) -> None:
    folder = tmp_path / ("deep" * 30)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    finding = ask("trainrun.doctor.storage:temporary")
    assert finding.status == "warning"
    assert "its path is too long for sockets, which are made in /tmp instead" in finding.finding
    assert list(folder.iterdir()) == []
    monkeypatch.setattr(scratch, "_SHORT", ())
    finding = ask("trainrun.doctor.storage:temporary")
    assert finding.status == "failed"
    assert f"TMPDIR={folder} is too long for sockets" in finding.finding


def test_nothing_may_be_executed(ask: Ask, lies_on: Any) -> None:
    lies_on(options="rw,noexec")
    assert "compiled models fail" in ask("trainrun.doctor.storage:temporary").finding


@pytest.mark.parametrize(
    ("total", "free", "loaders", "status", "words"),
    [
        (64, 64, 0, "warning", "that is little"),
        (64, 64, 4, "warning", "that is little"),
        (1024, 10, 0, "warning", "nearly full"),
        (1024, 900, 4, "ok", "900 MiB of 1.0 GiB free"),
    ],
)
def test_shared_memory(
    tmp_path: Path, lies_on: Any, total: int, free: int, loaders: int, status: str, words: str
) -> None:
    lies_on(space=Space(total * 1024**2, free * 1024**2, None))
    verdict = Verdict("shared memory")
    storage.judge_shared(verdict, tmp_path, loaders)
    assert verdict.finding().status == status
    assert words in verdict.finding().finding


@pytest.mark.parametrize(("loaders", "status"), [(0, "warning"), (2, "failed")])
def test_no_shared_memory(tmp_path: Path, loaders: int, status: str) -> None:
    verdict = Verdict("shared memory")
    storage.judge_shared(verdict, tmp_path / "shm", loaders)
    assert verdict.finding().status == status
    assert "data.workers = 0" in str(verdict.finding().advice)


def test_this_machines_shared_memory(ask: Ask) -> None:
    assert ask("trainrun.doctor.storage:shared_memory").finding


def test_a_cache_that_is_not_writable(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", "/proc/cache")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    finding = ask("trainrun.doctor.storage:cache")
    assert finding.status == "warning"
    assert "TRAINRUN_CACHE_DIR" in str(finding.advice)


@pytest.mark.parametrize("name", PROBES)
def test_each_probe_works_here(name: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert PROBES[name](tmp_path) >= 0


def test_a_folder_that_everybody_can_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(OSError, match="everybody can read"):
        PROBES["private folders"](tmp_path)


def test_sockets_can_be_made(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        probe_socket(Path(folder))
