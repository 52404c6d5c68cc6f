from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trainrun.rundir.growing import Growing
from trainrun.rundir.paths import rotated


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rank-0.out"


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def rotate(path: Path) -> None:
    path.replace(rotated(path))


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def texts(growing: Growing) -> list[bytes]:
    return [line.data for line in growing.read()]


def test_whole_lines_once(path: Path) -> None:
    growing = Growing(path)
    assert texts(growing) == []
    append(path, b"one\ntw")
    assert texts(growing) == [b"one"]
    append(path, b"o\nthree")
    assert texts(growing) == [b"two"]
    assert [line.data for line in growing.finish()] == [b"three"]


def test_older_part_comes_first(path: Path) -> None:
    append(path, b"old\nend of old")
    rotate(path)
    append(path, b"new\n")
    assert texts(Growing(path)) == [b"old", b"end of old", b"new"]


def test_nothing_but_an_older_part(path: Path) -> None:
    append(path, b"old\n")
    rotate(path)
    growing = Growing(path)
    assert texts(growing) == [b"old"]
    append(path, b"new\n")
    assert texts(growing) == [b"new"]


def test_renaming_loses_nothing(path: Path) -> None:
    growing = Growing(path)
    append(path, b"1\n")
    assert texts(growing) == [b"1"]
    append(path, b"2\n")
    rotate(path)
    assert texts(growing) == [b"2"]
    append(path, b"3\n")
    assert texts(growing) == [b"3"]
    for number in range(4, 20):
        rotate(path)
        append(path, b"%d\n" % number)
        assert texts(growing) == [b"%d" % number]


def test_no_file_stays_open_without_a_reader(path: Path) -> None:
    before = open_files()
    growing = Growing(path)
    for number in range(10):
        append(path, b"%d\n" % number)
        rotate(path)
        append(path, b"more\n")
        texts(growing)
    assert open_files() <= before + 1
    list(growing.finish())
    assert open_files() == before


def test_endless_line_comes_in_pieces(path: Path) -> None:
    append(path, b"x" * 3_000_000)
    pieces = texts(Growing(path))
    assert pieces
    assert max(map(len, pieces)) < 1_500_000


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_passed_over(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    assert texts(Growing(path)) == []


def test_lines_have_the_time_of_the_stamp_before_them(path: Path) -> None:
    path.with_suffix(".times").write_text("100.5 0\n200 8\nbroken\n150 12\n300")
    append(path, b"one\ntwo\nthree\nfour\n")
    assert [(line.data, line.time) for line in Growing(path).read()] == [
        (b"one", 100.5),
        (b"two", 100.5),
        (b"three", 200.0),
        (b"four", 200.0),
    ]


def test_since_begins_at_the_stamp(path: Path) -> None:
    path.with_suffix(".times").write_text("100 0\n200 4\n300 8\n")
    append(path, b"one\ntwo\nthree\n")
    assert texts(Growing(path, since=250.0)) == [b"two", b"three"]
    assert texts(Growing(path, since=50.0)) == [b"one", b"two", b"three"]


def test_file_that_was_last_changed_before_is_left_out(path: Path) -> None:
    append(path, b"one\n")
    os.utime(path, (100.0, 100.0))
    growing = Growing(path, since=time.time() - 60)
    assert texts(growing) == []
    append(path, b"two\n")
    assert texts(growing) == [b"two"]


def test_without_stamps_lines_are_of_the_last_change(path: Path) -> None:
    append(path, b"one\n")
    os.utime(path, (100.0, 100.0))
    assert [line.time for line in Growing(path).read()] == [100.0]
