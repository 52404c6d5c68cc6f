"""A run directory that somebody else made, or may write to: nothing that its files say is done."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trainrun.cli.main import run
from trainrun.launch import leftovers
from trainrun.launch.preflight import Placement
from trainrun.launch.prepare import prepare
from trainrun.plugin.resolve import resolve
from trainrun.recipe import Recipe
from trainrun.rundir import Outcome, RunPaths, create, process
from trainrun.rundir.create import run_ids
from trainrun.rundir.files import write_json
from trainrun.rundir.ownership import strangers
from trainrun.rundir.records import WorkerRecord

STRANGER = 65534
TASK = """
from pathlib import Path

Path({canary!r}).write_text("executed")

from trainrun import hookimpl


@hookimpl
def build_model(device):
    return None
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
Change = Callable[[RunPaths], None]


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "CANARY"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests: describing the built-ins takes as long as importing torch."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def paths(tmp_path: Path, cache: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    """A run that has ended, with a task that leaves a trace where it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINRUN_CACHE_DIR", str(cache))
    (tmp_path / "task.py").write_text(TASK.format(canary=str(canary)))
    (tmp_path / "train.toml").write_text('[task]\nuse = "task.py"\n[train]\nsteps = 1\n[evaluate]\nsplits = []\n')
    resolved = resolve("train.toml")
    typed = Recipe.from_data(resolved.data)
    made = prepare(typed, resolved, Placement(1, {}), tmp_path / "runs", (), quiet=True).paths
    write_json(made.outcome, Outcome("failed", 1, "broke", started=100.0, ended=175.0).to_json())
    canary.unlink()
    (tmp_path / "task.py").write_text(TASK.format(canary=str(canary)) + "# so that it is described anew\n")
    return made


def given_away(paths: RunPaths) -> None:
    for path in (paths.root, *paths.root.rglob("*")):
        os.lchown(path, STRANGER, STRANGER)


def chown(name: str) -> Change:
    return lambda paths: os.chown(paths.root / name, STRANGER, STRANGER)


def opened(paths: RunPaths) -> None:
    paths.root.chmod(0o777)


def a_file_is_open(paths: RunPaths) -> None:
    paths.root.chmod(0o755)
    paths.recipe.chmod(0o666)


def a_folder_is_open(paths: RunPaths) -> None:
    paths.root.chmod(0o750)
    paths.attempts.chmod(0o770)


CHANGES: dict[str, tuple[Change, str]] = {
    "everything": (given_away, "it belongs to user 65534"),
    "the folder": (chown("."), "it belongs to user 65534"),
    "the recipe": (chown("recipe.toml"), "'recipe.toml' belongs to user 65534"),
    "the manifest": (chown("manifest.json"), "'manifest.json' belongs to user 65534"),
    "open to all": (opened, "it can be written to by everybody"),
    "an open file": (a_file_is_open, "'recipe.toml' can be written to by everybody"),
    "an open folder": (a_folder_is_open, "'attempts' can be written to by its group"),
}


@needs_root
@pytest.mark.parametrize("title", CHANGES)
def test_resume_refuses_before_anything_is_imported(
    title: str, paths: RunPaths, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, why = CHANGES[title]
    change(paths)
    for arguments in (["resume", "latest"], ["resume", str(paths.root), "--trust-checkpoint"], ["sync"], ["stop"]):
        assert run(arguments) == 4
        said = capsys.readouterr().err
        assert why in said
        assert "chown -R 0" in said
        assert "-o checkpoint.resume=CHECKPOINT" in said
    assert not canary.exists()
    assert not paths.control.exists()


@needs_root
def test_commands_that_read_import_nothing(paths: RunPaths, canary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given_away(paths)
    before = {path: path.stat().st_mtime_ns for path in paths.root.rglob("*")}
    for command in ("ps", "status", "why", "logs", "watch", "checkpoints"):
        for more in ([], ["--json"]):
            assert run([command, *more]) == 0
            shown = capsys.readouterr()
            assert paths.run_id in shown.out + shown.err or command == "logs"
    assert not canary.exists()
    assert {path: path.stat().st_mtime_ns for path in paths.root.rglob("*")} == before


def test_ones_own_is_resumed(paths: RunPaths, canary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So that what is refused above is not refused for another reason: the task is imported."""
    assert strangers(paths.root) == []
    paths.root.chmod(0o700)
    paths.recipe.chmod(0o666)  # in a folder that nobody else can enter
    assert run(["resume", "latest", "-o", "train.steps=0"]) == 2
    assert canary.exists()


@needs_root
def test_a_link_that_somebody_else_has_laid(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    link = paths.root.parent / "mine"
    link.symlink_to(paths.root.name)
    assert strangers(paths.root, link) == []
    os.lchown(link, STRANGER, STRANGER)
    assert run(["resume", "mine"]) == 4
    assert f"the link {link} on the way to it belongs to user 65534" in capsys.readouterr().err
    assert run(["status", "mine"]) == 0


@pytest.mark.parametrize("target", ["loop", "nowhere"])
def test_links_that_lead_nowhere(target: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("/nowhere/at/all")
    assert strangers(tmp_path, tmp_path / target) != []


@pytest.fixture
def of_root() -> Iterator[RunPaths]:
    """A run of root in a folder that everybody can enter."""
    folder = Path(tempfile.mkdtemp(prefix="trainrun-test-"))
    folder.chmod(0o755)
    yield create(folder, "test")
    shutil.rmtree(folder)


@needs_root
@pytest.mark.parametrize(
    ("mode", "why"),
    [
        (0o700, "this user may not look into it"),
        (0o755, "this run never started"),  # what root has made is trusted, as is all else that root does
        (0o777, "it can be written to by everybody"),
    ],
)
def test_another_user(mode: int, why: str, of_root: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (of_root.logs, of_root.attempts, of_root.root):
        folder.chmod(mode)
    import trainrun.launch.resume  # noqa: F401 - another user may not read it where it lies

    os.seteuid(STRANGER)
    try:
        code = run(["resume", str(of_root.root)])
    finally:
        os.seteuid(0)
    assert why in capsys.readouterr().err
    assert code == (2 if mode == 0o755 else 4)


@needs_root
def test_records_of_a_stranger_end_no_process(paths: RunPaths) -> None:
    """Somebody's process says that it is one of the run's, and the run's records name another one."""
    victim = subprocess.Popen(["sleep", "60"], start_new_session=True)
    bait = subprocess.Popen(["sleep", "60"], env={process.RUN_DIR_VARIABLE: str(paths.root)}, start_new_session=True)
    try:
        started = process.start_time(victim.pid) or 0
        paths.attempt(1).mkdir()
        record = WorkerRecord(victim.pid, victim.pid, started, 0, "training")
        write_json(paths.worker_record(1, 0), record.to_json())
        paths.lease.mkdir()
        dead = {"version": 1, "host": os.uname().nodename, "boot": process.boot_id(), "pid": 1, "start_time": 1}
        write_json(paths.lease / "1", {**dead, "since": 1.0, "namespace": 0})
        given_away(paths)
        assert leftovers.clear(paths.root.parent) == []
        assert (victim.poll(), bait.poll()) == (None, None)
    finally:
        for one in (victim, bait):
            one.send_signal(signal.SIGKILL)
            one.wait()


@needs_root
def test_runs_of_others_that_cannot_be_entered_hide_none(of_root: RunPaths) -> None:
    closed = create(of_root.root.parent, "closed")
    for folder in (of_root.logs, of_root.attempts, of_root.root):
        folder.chmod(0o755)
    os.seteuid(STRANGER)
    try:
        found = run_ids(of_root.root.parent)
    finally:
        os.seteuid(0)
    assert found == [of_root.run_id]
    assert set(run_ids(of_root.root.parent)) == {of_root.run_id, closed.run_id}
