"""One save, broken off at each of its calls to the file system: by the end of the process, and by errors.

The calls are counted where Python makes them; written files are opened so that each write and close is one of them.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from trainrun.checkpoint import choose, clear, scan, step_of, verify
from trainrun.worker.checkpoint import shards
from trainrun.worker.checkpoint.finite import Claims
from trainrun.worker.checkpoint.reader import read_tensors
from trainrun.worker.checkpoint.snapshot import Snapshot
from trainrun.worker.checkpoint.staging import Staging
from trainrun.worker.checkpoint.writer import About, SaveFailed, Writer
from trainrun.worker.parent import die_with_parent
from trainrun.worker.world import World

SAVED, FAILED, WRONG = 0, 3, 9
KILL, KILL_ALL = "kill", "kill all"
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
CALLS = ("open", "mkdir", "rename", "replace", "link", "fsync", "unlink", "rmdir", "scandir", "listdir", "readv")
MUTATING = {"open for writing", "write", "close", "mkdir", "rename", "replace", "link", "fsync"}

Strike = Callable[[str], None]


class Counted(io.FileIO):
    """A file that is written to: each write and the close count."""

    strike: Strike

    def write(self, data: Any) -> int:
        def half() -> None:
            io.FileIO.write(self, bytes(data)[: len(data) // 2])

        type(self).strike("write", half)  # type: ignore[call-arg]
        return super().write(data)

    def close(self) -> None:
        was_open = not self.closed
        super().close()
        if was_open:
            type(self).strike("close")


class Calls:
    """Counts the calls to the file system of this process from `begin` on, and strikes at one of them.

    fault: kills the process, or raises that error; lasting: at all later ones too that would need room on the disk.
    """

    def __init__(self, at: int, fault: str, *, lasting: bool) -> None:
        self.made: list[str] = []
        self._at = at
        self._fault = fault
        self._lasting = lasting

    def begin(self, patches: pytest.MonkeyPatch) -> None:
        kind = type("Kind", (Counted,), {"strike": staticmethod(self._strike)})
        plain = io.open

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if "b" in mode and set(mode) & set("wxa"):
                if not isinstance(file, int):
                    self._strike("open for writing")
                return io.BufferedWriter(kind(file, mode.replace("b", "")))
            return plain(file, mode, *args, **kwargs)

        for module, name, call in (
            (io, "open", opened),
            (builtins, "open", opened),
            *((os, name, self._counted(name, getattr(os, name))) for name in CALLS),
        ):
            patches.setattr(module, name, call)

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            writes = name == "open" and args[1] & (os.O_WRONLY | os.O_RDWR)
            self._strike("open for writing" if writes else name)
            return None if name == "fsync" else call(*args, **kwargs)  # what it does no test without power cuts sees

        return counted

    def _strike(self, name: str, half: Callable[[], None] = lambda: None) -> None:
        self.made.append(name)
        number = len(self.made)
        if number == self._at or (self._lasting and number > self._at > 0 and name in MUTATING):
            half()
            if self._fault == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(ERRORS[self._fault], os.strerror(ERRORS[self._fault]))


# --- a save ---


def snapshot(step: int, rank: int) -> Snapshot:
    staging = Staging()
    staging.begin()
    tensors = {"model/weight": torch.full((64, 64), float(step)), "optimizer/weight/exp_avg": torch.ones(64)}
    return Snapshot(
        step=step,
        epoch=1,
        samples_seen=step * 8,
        reason="it is due",
        shards=shards.stage(tensors, rank, staging),
        training={"place": {"step": step}, "optimizer": {"groups": []}},
        own={"rng": torch.arange(100) + rank},
        plugins={"same": {"a": 1}, "own": {"rank": rank}},
        missing={},
        disabled=(),
        metrics={"loss": 0.5},
        claims=Claims((0.5, 8), {"weight": torch.Size((64, 64))}, frozenset()),
    )


def writer(checkpoints: Path, rank: int, size: int, share: Callable[[object], list[Any]]) -> Writer:
    about = About("run", 1, {}, {}, {"torch": "2"}, {"length": 9}, "none")
    return Writer(checkpoints, about, World(rank, rank, 0, size, size, 1), share=share, keep=2)


def save_alone(checkpoints: Path, step: int) -> Path:
    return writer(checkpoints, 0, 1, lambda value: [value]).write(snapshot(step, 0))


def exchange(rank: int, peer: socket.socket) -> Callable[[object], list[Any]]:
    stream = peer.makefile("rwb")

    def share(mine: object) -> list[Any]:
        stream.write(json.dumps(mine).encode() + b"\n")
        stream.flush()
        theirs = json.loads(stream.readline() or b"null")
        if theirs is None:
            raise ConnectionError("the other rank is gone")
        return [mine, theirs] if rank == 0 else [theirs, mine]

    return share


def save_in(pid_of: list[int], checkpoints: Path, calls: list[Calls], report: Path | None) -> list[int]:
    """One save of step 3 by as many forked ranks as there are `calls`; answers with how each ended."""
    pairs = socket.socketpair()
    for rank, counted in enumerate(calls):
        pid = os.fork()
        if pid == 0:
            pairs[1 - rank].close()
            _save(rank, len(calls), checkpoints, counted, pairs[rank], report)
        pid_of.append(pid)
    for one in pairs:
        one.close()
    return [os.waitstatus_to_exitcode(os.waitpid(pid_of.pop(0), 0)[1]) for _ in calls]


def _save(rank: int, size: int, folder: Path, calls: Calls, peer: socket.socket, report: Path | None) -> NoReturn:
    code = WRONG
    try:
        die_with_parent()
        share = exchange(rank, peer) if size > 1 else lambda value: [json.loads(json.dumps(value))]
        saver, taken = writer(folder, rank, size, share), snapshot(3, rank)
        calls.begin(pytest.MonkeyPatch())
        try:
            saver.write(taken)
            code = SAVED
        except SaveFailed:
            code = FAILED
        if report is not None:
            (report / f"{rank}").write_text("\n".join(calls.made))
    finally:
        os._exit(code)


# --- the sweep ---


@pytest.fixture
def template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two checkpoints: the third makes the first one needless."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    folder = tmp_path / "template" / "checkpoints"
    folder.parent.mkdir()
    for step in (1, 2):
        save_alone(folder, step)
    return folder


@pytest.fixture
def copied(template: Path, tmp_path: Path) -> Callable[[], Path]:
    """A fresh copy of the two checkpoints."""

    def copy() -> Path:
        shutil.rmtree(tmp_path / "case", ignore_errors=True)
        shutil.copytree(template, tmp_path / "case" / "checkpoints")
        return tmp_path / "case" / "checkpoints"

    return copy


@pytest.fixture
def pids() -> Iterator[list[int]]:
    """Of forked ranks; those that are left are ended."""
    started: list[int] = []
    yield started
    for pid in started:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def violations(folder: Path, ends: list[int], *, taken_back: bool = True) -> list[str]:
    """What must never be, after a save that was struck; the folder is then cleared and saved into again.

    taken_back: a save that has failed must not be there, not even a whole one.
    """
    names = {path.name for path in folder.iterdir()}
    wrong = [f"{path.name}: {reasons}" for path in folder.iterdir() if step_of(path.name) and (reasons := verify(path))]
    steps = [found.step for found in scan(folder)]
    if steps not in ([2, 1], [3, 2, 1], [3, 2]):
        wrong.append(f"there are the steps {steps}")
    if 3 in steps and FAILED in ends and taken_back:
        wrong.append("a save that has failed is there")
    if 3 not in steps and SAVED in ends:
        wrong.append("a save that was told good is not there")
    if SAVED in ends and FAILED in ends:
        wrong.append(f"the ranks ended with {ends}")
    if choose(folder).path != folder / f"step-{steps[0]:06}" or {path.name for path in folder.iterdir()} != names:
        wrong.append("the choice is another one than the newest, or has renamed something")
    clear(folder)
    if left := [path.name for path in folder.iterdir() if step_of(path.name) is None]:
        wrong.append(f"left over: {left}")
    after = save_alone(folder, 4)
    if verify(after) or not torch.all(read_tensors(after, "model/")["weight"] == 4.0):
        wrong.append("the next save is not good")
    return wrong


def nothing() -> Calls:
    return Calls(0, KILL, lasting=False)


def counts(pids: list[int], folder: Path, size: int) -> list[list[str]]:
    """The calls that each rank makes in a save without faults."""
    ends = save_in(pids, folder, [nothing() for _ in range(size)], folder.parent)
    assert ends == [SAVED] * size
    assert [found.step for found in scan(folder)] == [3, 2]
    return [(folder.parent / str(rank)).read_text().splitlines() for rank in range(size)]


def test_a_process_that_ends_at_any_call(copied: Callable[[], Path], pids: list[int]) -> None:
    calls = len(counts(pids, copied(), 1)[0])
    found = {}
    for at in range(1, calls + 1):
        folder = copied()
        assert save_in(pids, folder, [Calls(at, KILL, lasting=False)], None) == [-signal.SIGKILL]
        if wrong := violations(folder, []):
            found[at] = wrong
    assert found == {}
    assert calls > 20
    print(f"{calls} calls, ended at each: no violation")  # noqa: T201


@pytest.mark.parametrize(
    ("error", "lasting"),
    [
        ("ENOSPC", True),
        ("EIO", False),
        pytest.param("ENOSPC", False, marks=pytest.mark.long),
        pytest.param("EIO", True, marks=pytest.mark.long),
    ],
)
def test_an_error_at_any_call(error: str, lasting: bool, copied: Callable[[], Path], pids: list[int]) -> None:
    names = counts(pids, copied(), 1)[0]
    published = len(names) - names[::-1].index("rename")
    found, failed = {}, 0
    for at in range(1, len(names) + 1):
        folder = copied()
        with pytest.MonkeyPatch.context() as patches:
            saver, taken = writer(folder, 0, 1, lambda value: [value]), snapshot(3, 0)
            Calls(at, error, lasting=lasting).begin(patches)
            try:
                saver.write(taken)
                end = SAVED
            except SaveFailed:
                end = FAILED
        failed += end == FAILED
        # Where the disk takes nothing more a name cannot be taken back either; what it names is whole.
        if wrong := violations(folder, [end], taken_back=not lasting):
            found[f"{error} at call {at}: {names[at - 1]}"] = wrong
    assert found == {}
    assert 20 < failed < published
    print(f"{len(names)} calls, {error} at each: {failed} saves failed, no violation")  # noqa: T201


def two_ranks(copied: Callable[[], Path], pids: list[int], every: int) -> None:
    names = counts(pids, copied(), 2)
    found, made = {}, 0
    for struck, fault in ((0, KILL), (1, KILL), (0, "ENOSPC"), (1, "EIO")):
        for at in range(1 + struck, len(names[struck]) + 1, every):
            folder = copied()
            calls = [Calls(at, fault, lasting=False) if rank == struck else nothing() for rank in range(2)]
            ends = save_in(pids, folder, calls, None)
            made += 1
            if wrong := violations(folder, ends):
                found[f"{fault} on rank {struck} at call {at}: {names[struck][at - 1]}"] = wrong
            if fault == KILL:
                assert ends[struck] == -signal.SIGKILL
            else:
                assert WRONG not in ends
    assert found == {}
    print(f"{[len(one) for one in names]} calls of two ranks, {made} cases: no violation")  # noqa: T201


def test_two_ranks(copied: Callable[[], Path], pids: list[int]) -> None:
    two_ranks(copied, pids, 6)


@pytest.mark.long
def test_two_ranks_at_every_call(copied: Callable[[], Path], pids: list[int]) -> None:
    two_ranks(copied, pids, 1)


def test_every_file_is_on_the_disk_before_its_checkpoint_has_its_name(
    copied: Callable[[], Path], pids: list[int]
) -> None:
    """Nothing is written into a file after it was synced for the last time, and the name comes after all that."""
    folder = copied()
    unsynced: set[str] = set()
    looked: list[int] = []
    with pytest.MonkeyPatch.context() as patches:
        saver, taken = writer(folder, 0, 1, lambda value: [value]), snapshot(3, 0)
        sync, rename = os.fsync, os.rename

        def synced(descriptor: int) -> None:
            found = os.fstat(descriptor)
            sizes[found.st_ino] = found.st_size
            sync(descriptor)

        def renamed(source: Path, target: Path) -> None:
            if step_of(Path(target).name) == 3:
                for path in [source, *Path(source).rglob("*")]:
                    found = path.stat()
                    looked.append(found.st_ino)
                    if sizes.get(found.st_ino) != found.st_size:
                        unsynced.add(path.name)
            rename(source, target)

        sizes: dict[int, int] = {}
        patches.setattr(os, "fsync", synced)
        patches.setattr(os, "rename", renamed)
        saver.write(taken)
    assert unsynced == set()
    assert len(looked) == 10
