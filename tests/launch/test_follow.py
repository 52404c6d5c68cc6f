from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from trainrun.launch.follow import Follower
from trainrun.rundir.paths import rotated


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rank-0.out"


@pytest.fixture
def follower(path: Path) -> Iterator[Follower]:
    made = Follower(path)
    yield made
    made.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_what_comes_is_read_once(path: Path, follower: Follower) -> None:
    assert follower.read() == b""
    append(path, b"one")
    assert (follower.read(), follower.read()) == (b"one", b"")
    append(path, b"two")
    assert follower.waiting == 3
    assert follower.read() == b"two"


def test_new_file_takes_the_place(path: Path, follower: Follower) -> None:
    append(path, b"a")
    assert follower.read() == b"a"
    append(path, b"b")
    path.rename(rotated(path))
    assert follower.read() == b"b"
    assert follower.read() == b""  # renamed, and no new one yet
    append(rotated(path), b"c")  # what was written after the last look, before the rename
    append(path, b"d")
    assert [follower.read() for _ in range(3)] == [b"c", b"d", b""]


def test_two_changes_between_two_looks(path: Path, follower: Follower) -> None:
    append(path, b"a")
    follower.read()
    for data in (b"b", b"c"):
        path.rename(rotated(path))
        append(path, data)
    assert [follower.read(), follower.read()] == [b"c", b""]


@pytest.mark.parametrize("renamed", [False, True])
def test_goes_on_after_being_closed(path: Path, follower: Follower, renamed: bool) -> None:
    append(path, b"old")
    follower.read()
    follower.close()
    append(path, b"+")
    if renamed:
        path.rename(rotated(path))
        append(path, b"new")
    assert follower.read() + follower.read() == (b"+new" if renamed else b"+")


def test_emptied_file_is_read_anew(path: Path, follower: Follower) -> None:
    append(path, b"long text")
    follower.read()
    path.write_bytes(b"new")
    assert follower.read() == b"new"


def test_from_the_end(path: Path) -> None:
    append(path, b"before")
    follower = Follower(path, from_end=True)
    append(path, b"after")
    assert follower.read() == b"after"
    follower.close()


def test_holds_nothing_open_when_closed(path: Path, follower: Follower) -> None:
    append(path, b"x")
    before = descriptors()
    follower.read()
    assert descriptors() == before + 1
    follower.close()
    follower.close()
    assert descriptors() == before
