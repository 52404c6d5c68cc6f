from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from trainrun.rundir.files import append_line, encode, read_json, read_lines, write_atomic, write_json


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    write_atomic(path, b"new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_json_is_strict_also_for_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"loss": float("nan"), "list": [float("inf"), 1.5], "path": tmp_path})
    assert read_json(tmp_path / "a.json") == {"loss": "nan", "list": ["inf", 1.5], "path": str(tmp_path)}
    assert json.loads(encode({"x": -float("inf")})) == {"x": "-inf"}


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_read_json_answers_none_for_anything_else(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    assert read_json(path) is None


def test_read_lines_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, {"a": 1})
    records, offset = read_lines(path)
    assert records == [{"a": 1}]
    with path.open("ab") as file:
        file.write(b'{"a": 2}\nnot json\n{"a": 3')
    records, offset = read_lines(path, offset)
    assert records == [{"a": 2}]
    with path.open("ab") as file:
        file.write(b"}\n")
    assert read_lines(path, offset)[0] == [{"a": 3}]


def test_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none", 5) == ([], 5)


def _append(path: Path, writer: int) -> None:
    for number in range(200):
        append_line(path, {"writer": writer, "number": number, "fill": "x" * 300})


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append, args=(path, writer)) for writer in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    records = read_lines(path)[0]
    assert len(records) == 600
    assert {record["writer"] for record in records} == {0, 1, 2}
