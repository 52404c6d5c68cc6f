from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainrun.errors import UsageError
from trainrun.launch.terminal import Echo, Tail, say, shown_ranks
from trainrun.rundir.paths import rotated


def test_tail_shows_whole_lines_once(tmp_path: Path) -> None:
    path, shown = tmp_path / "out", list[str]()
    tail = Tail(path, "[rank 0] ", shown.append)
    tail.poll()
    with path.open("ab", buffering=0) as file:
        file.write(b"one\ntw")
        tail.poll()
        tail.poll()
        assert shown == ["[rank 0] one"]
        file.write(b"o\nthree")
    tail.finish()
    assert shown == ["[rank 0] one", "[rank 0] two", "[rank 0] three"]


def test_tail_survives_bytes_that_are_no_text(tmp_path: Path) -> None:
    path, shown = tmp_path / "out", list[str]()
    path.write_bytes(b"a\xffb\n")
    Tail(path, "", shown.append).finish()
    assert shown == ["a\ufffdb"]


def test_flood_is_left_out_with_a_count(tmp_path: Path) -> None:
    path, shown = tmp_path / "out", list[str]()
    path.write_bytes(b"line\n" * 1_000_000 + b"last\n")
    Tail(path, "", shown.append).finish()
    assert "bytes are not shown" in shown[0]
    assert shown[-1] == "last"
    assert len(shown) < 20_000


def test_endless_line_does_not_grow_in_memory(tmp_path: Path) -> None:
    path, shown = tmp_path / "out", list[str]()
    path.write_bytes(b"x" * 300_000)
    Tail(path, "", shown.append).finish()
    assert all(len(line) < 2100 for line in shown)


def test_tail_over_a_change_of_files_and_attempts(tmp_path: Path) -> None:
    path, shown = tmp_path / "rank-0.out", list[str]()
    path.write_bytes(b"of an earlier launch\n")
    tail = Tail(path, "", shown.append, from_end=True)
    with path.open("ab") as file:
        file.write(b"one\ntwo")
    tail.poll()
    with path.open("ab") as file:
        file.write(b" and a half\n")
    path.rename(rotated(path))
    path.write_bytes(b"three\nlast words")
    tail.finish()
    assert shown == ["one", "two and a half", "three", "last words"]
    with path.open("ab") as file:
        file.write(b"\n--- attempt 2 ---\nfour\n")
    tail.finish()
    assert shown[4:] == ["", "--- attempt 2 ---", "four"]


@pytest.mark.parametrize(
    ("ranks", "shown"),
    [("none", []), ("zero", [0]), ("all", [0, 1, 2, 3]), ((3, 0, 3), [0, 3])],
)
def test_shown_ranks(ranks: Echo, shown: list[int]) -> None:
    assert list(shown_ranks(ranks, 4)) == shown


def test_rank_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"--ranks: there is no rank 4; the ranks of this run are 0 to 3"):
        shown_ranks((1, 4), 4)


def test_say_survives_a_reader_that_went_away(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as broken:  # noqa: PTH123
        monkeypatch.setattr("sys.stderr", broken)
        say("nobody hears this")
        monkeypatch.undo()
        with pytest.raises(BrokenPipeError):
            broken.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)
