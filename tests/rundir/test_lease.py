from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainrun.errors import EnvironmentProblem, ExitCode, LeaseLost, UsageError
from trainrun.rundir import Lease, RunPaths, held, holder
from trainrun.rundir import lease as module
from trainrun.rundir.files import read_lines
from trainrun.rundir.lease import SILENCE, LeaseInfo, recorded

PATIENCE = 20.0

# Takes the lease if it can, says so, and holds it until its stdin ends.
HOLDER = """
import sys
from pathlib import Path
from trainrun.rundir import Lease, RunPaths
Lease.acquire(RunPaths(Path(sys.argv[1])))
print("won", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path)


@contextmanager
def holding(paths: RunPaths) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the run."""
    command = [sys.executable, "-c", HOLDER, str(paths.root)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "won\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def leave(paths: RunPaths, content: object, *, age: float = 0.0, number: int = 1) -> Path:
    """A record as somebody else left it `age` seconds ago."""
    paths.lease.mkdir(exist_ok=True)
    record = paths.lease / str(number)
    record.write_text(content if isinstance(content, str) else json.dumps(content))
    then = time.time() - age
    os.utime(record, (then, then))
    return record


def info(**changes: Any) -> LeaseInfo:
    return replace(LeaseInfo.own(), **changes)


def elsewhere(**changes: Any) -> LeaseInfo:
    return info(host="elsewhere", boot="another boot", **changes)


def takeovers(paths: RunPaths) -> list[dict[str, Any]]:
    return [event for event in read_lines(paths.events)[0] if event["event"] == "lease_takeover"]


def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_one_owner_at_a_time(paths: RunPaths) -> None:
    lease = Lease.acquire(paths)
    owner = held(paths)
    assert owner is not None
    assert owner.pid == os.getpid()
    with pytest.raises(UsageError, match=f"owned by process {os.getpid()} on"):
        Lease.acquire(paths)
    lease.release()
    assert held(paths) is None
    assert recorded(paths) is None
    Lease.acquire(paths).release()
    assert takeovers(paths) == []


def test_release_twice_is_once(paths: RunPaths) -> None:
    first = Lease.acquire(paths)
    first.release()
    second = Lease.acquire(paths)
    first.release()
    assert held(paths) == second.info.heard_at(held(paths).heard)  # type: ignore[union-attr]
    second.release()


def test_death_gives_the_lease_up_and_the_takeover_is_noted(paths: RunPaths) -> None:
    with holding(paths) as process:
        assert held(paths) is not None
        process.kill()
        process.communicate()
        assert held(paths) is None
        last = recorded(paths)
        assert last is not None
        assert last.pid == process.pid
    Lease.acquire(paths).release()
    (event,) = takeovers(paths)
    assert event["former"] == f"process {process.pid} on {last.host}"
    assert event["reason"] == "it died"


def test_without_locks_the_numbers_decide(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    no_locks(monkeypatch)
    lease = Lease.acquire(paths)
    with pytest.raises(UsageError, match="owned by process"):
        Lease.acquire(paths)
    lease.release()
    Lease.acquire(paths).release()


def test_without_links_too(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links")

    no_locks(monkeypatch)
    monkeypatch.setattr(os, "link", refuse)
    lease = Lease.acquire(paths)
    with pytest.raises(UsageError, match="owned by process"):
        Lease.acquire(paths)
    lease.release()


def test_only_the_newest_record_is_kept(paths: RunPaths) -> None:
    for _ in range(5):
        Lease.acquire(paths).release()
    assert sorted(entry.name for entry in paths.lease.iterdir()) == ["5", "lock"]


# --- who is taken to be gone ---


def test_of_a_holder_on_this_machine_the_process_decides() -> None:
    assert info(heard=0.0).is_alive
    assert not info(start_time=1).is_alive, "the pid is another process's by now"


def test_after_a_restart_of_the_machine_the_holder_is_gone() -> None:
    before = holder._boot_time() - 1.0
    assert 0.0 < before < time.time()
    assert info(boot="another boot", heard=before).gone(before) == "its machine was restarted"
    # Another machine of the same name, since this one has been up.
    assert info(boot="another boot", heard=time.time()).is_alive


def test_of_a_holder_elsewhere_its_heartbeat_decides() -> None:
    now = time.time()
    assert elsewhere(heard=now - SILENCE + 5).gone(now) is None
    assert elsewhere(heard=now + 3600).gone(now) is None, "a clock that is ahead"
    assert elsewhere(heard=now - 90).gone(now) == "nothing was heard of it for 90 s"


def test_of_a_holder_in_another_container_the_lock_decides() -> None:
    now = time.time()
    other = info(namespace=1, pid=1, start_time=1)
    assert other.gone(now) is None
    assert other.gone(now, locked=True) == "it died"
    assert info(namespace=1).heard_at(now - 90).gone(now) is not None


# --- records that somebody left ---


def test_stale_record_of_another_machine_is_taken_over(paths: RunPaths) -> None:
    leave(paths, elsewhere(pid=7).to_json(), age=90)
    Lease.acquire(paths).release()
    (event,) = takeovers(paths)
    assert event["former"] == "process 7 on elsewhere"
    assert event["reason"].startswith("nothing was heard of it for 9")


def test_young_record_of_another_machine_is_not(paths: RunPaths) -> None:
    leave(paths, elsewhere(pid=7).to_json(), age=30)
    with pytest.raises(UsageError, match="owned by process 7 on elsewhere"):
        Lease.acquire(paths)
    assert [entry.name for entry in paths.lease.iterdir() if entry.name not in {"1", "lock"}] == []


BROKEN = ["", "garbage", "[1]", "{}", "[" * 100_000, '{"host": "a", "boot": "b", "pid": "x"}', '{"version": 9}']


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:20] or "empty")
def test_broken_record_is_somebodys_while_it_is_young(paths: RunPaths, text: str) -> None:
    leave(paths, text)
    assert held(paths) is None
    with pytest.raises(UsageError, match="owned by an unknown process"):
        Lease.acquire(paths)
    leave(paths, text, age=90)
    Lease.acquire(paths).release()
    (event,) = takeovers(paths)
    assert event["former"].startswith(str(paths.lease / "1"))


def test_record_of_a_later_version_is_understood(paths: RunPaths) -> None:
    leave(paths, {**elsewhere(pid=7).to_json(), "version": 2, "colour": "blue"})
    owner = held(paths)
    assert owner is not None
    assert owner.pid == 7


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_record_that_is_no_file(paths: RunPaths, make: Callable[[Path], None]) -> None:
    paths.lease.mkdir()
    make(paths.lease / "3")
    os.utime(paths.lease / "3", (1.0, 1.0), follow_symlinks=False)
    assert held(paths) is None
    lease = Lease.acquire(paths)
    assert held(paths) is not None
    lease.release()


def test_lease_that_is_no_folder(paths: RunPaths) -> None:
    paths.lease.write_text("")
    assert held(paths) is None
    with pytest.raises(EnvironmentProblem, match="cannot be claimed"):
        Lease.acquire(paths)


# --- races ---


def test_late_claim_of_a_low_number_is_no_lease(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another took 2, gave it up, and a third took 3 and cleared, all while this process was about to link 2."""
    leave(paths, elsewhere().to_json(), age=90)
    link = os.link

    def late(source: Path, target: Path) -> None:
        if target.name == "2" and not (paths.lease / "3").exists():
            leave(paths, elsewhere(pid=33).to_json(), number=3)
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(UsageError, match="process 33 on elsewhere"):
        Lease.acquire(paths)
    assert not (paths.lease / "2").exists()


def test_lost_answer_of_a_file_server(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    lease = Lease.acquire(paths)
    owner = held(paths)
    assert owner is not None
    assert owner.pid == os.getpid()
    lease.release()
    assert held(paths) is None


# --- the owner's side ---


def test_heartbeat_touches_the_record(paths: RunPaths) -> None:
    lease = Lease.acquire(paths)
    os.utime(paths.lease / "1", (1.0, 1.0))
    lease.beat()
    owner = recorded(paths)
    assert owner is not None
    assert time.time() - owner.heard < SILENCE
    lease.check()
    lease.release()


def test_heart_beats_by_itself(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.01)
    lease = Lease.acquire(paths)
    os.utime(paths.lease / "1", (1.0, 1.0))
    deadline = time.monotonic() + PATIENCE
    while (paths.lease / "1").stat().st_mtime < 2.0:
        assert time.monotonic() < deadline
        os.sched_yield()
    lease.release()


def test_owner_learns_that_it_was_replaced(paths: RunPaths) -> None:
    lease = Lease.acquire(paths)
    leave(paths, elsewhere(pid=8).to_json(), number=2)
    lease.beat()
    with pytest.raises(LeaseLost, match="process 8 on elsewhere has taken this run over") as caught:
        lease.check()
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    lease.release()
    owner = held(paths)
    assert owner is not None
    assert owner.pid == 8


def test_run_directory_that_is_gone(paths: RunPaths) -> None:
    lease = Lease.acquire(paths)
    paths.lease.rename(paths.root / "moved")
    with pytest.raises(OSError, match="No such file"):
        lease.beat()
    lease.release()
