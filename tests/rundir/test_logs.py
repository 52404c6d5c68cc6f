from __future__ import annotations

import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from trainrun.rundir import RunPaths, create
from trainrun.rundir.logs import Entry, Logs, Wanted


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return create(tmp_path, "logs")


def stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")


def log(path: Path, *records: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def record(moment: float, event: str, level: str = "info", **fields: Any) -> dict[str, Any]:
    return {"event": event, "level": level, "timestamp": stamp(moment), "run": "x", "rank": 0, **fields}


def told(entries: Iterable[Entry]) -> list[tuple[float, str, int | None, str]]:
    return [(entry.time, entry.source, entry.rank, entry.text) for entry in entries]


def test_files_are_put_in_the_order_of_time(paths: RunPaths) -> None:
    log(paths.client_log, {"time": 100.0, "event": "launch_start"}, {"time": 140.0, "event": "launch_end"})
    log(paths.rank_log(0), record(110.0, "zero"), record(130.0, "zero again"))
    log(paths.rank_log(11), record(120.0, "eleven"))
    paths.rank_output(1).write_text("printed\n")
    os.utime(paths.rank_output(1), (125.0, 125.0))
    assert told(Logs(paths, Wanted()).read()) == [
        (100.0, "client", None, "launch_start"),
        (110.0, "records", 0, "zero"),
        (120.0, "records", 11, "eleven"),
        (125.0, "output", 1, "printed"),
        (130.0, "records", 0, "zero again"),
        (140.0, "client", None, "launch_end"),
    ]


def test_fields_are_what_was_logged(paths: RunPaths) -> None:
    log(paths.rank_log(0), record(110.0, "zero", "warning", step=3))
    (entry,) = Logs(paths, Wanted()).read()
    assert (entry.level, dict(entry.fields)) == ("warning", {"step": 3})
    assert entry.to_json()["time"] == "1970-01-01T00:01:50.000+00:00"


def test_what_is_wanted(paths: RunPaths) -> None:
    for rank in range(3):
        log(paths.rank_log(rank), record(100.0, f"info {rank}"), record(100.0, f"bad {rank}", "error"))
        paths.rank_output(rank).write_text(f"output {rank}\n")
    paths.agent_log.write_text("agent\n")

    def texts(wanted: Wanted) -> set[str]:
        return {entry.text for entry in Logs(paths, wanted).read()}

    everything = {f"{kind} {rank}" for kind in ("info", "bad", "output") for rank in range(3)} | {"agent"}
    assert texts(Wanted()) == everything
    assert texts(Wanted(frozenset({"agent"}))) == {"agent"}
    assert texts(Wanted(frozenset({"output"}), frozenset({1}))) == {"output 1"}
    assert texts(Wanted(frozenset({"records"}), frozenset({1}))) == {"info 1", "bad 1"}
    one = {"info 1", "bad 1", "output 1", "agent"}
    assert texts(Wanted(ranks=frozenset({1}))) == one
    assert texts(Wanted(ranks=frozenset({1}), serious_of_all=True)) == one | {"bad 0", "bad 2"}


def test_since(paths: RunPaths) -> None:
    log(paths.rank_log(0), record(100.0, "early"), record(200.0, "late"))
    paths.rank_output(0).write_text("first\nsecond\n")
    (paths.logs / "rank-0.times").write_text("100 0\n200 6\n")
    assert {entry.text for entry in Logs(paths, Wanted(since=150.0)).read()} == {"late", "second"}


def test_line_that_is_no_record_is_shown_as_it_is(paths: RunPaths) -> None:
    log(paths.rank_log(0), record(100.0, "one"))
    with paths.rank_log(0).open("ab") as file:
        file.write(b'{"event": "hal\n[1]\n\xff\n')
    log(paths.rank_log(0), record(110.0, "two"), {"event": 7, "timestamp": "yesterday"})
    entries = list(Logs(paths, Wanted()).read())
    assert [entry.text for entry in entries] == ["one", '{"event": "hal', "[1]", "\ufffd", "two", "7"]
    assert [entry.time for entry in entries] == [100.0, 100.0, 100.0, 100.0, 110.0, 110.0]


def test_new_entries_and_new_files(paths: RunPaths) -> None:
    logs = Logs(paths, Wanted())
    assert list(logs.read()) == []
    log(paths.rank_log(0), record(100.0, "one"))
    assert [entry.text for entry in logs.read()] == ["one"]
    log(paths.rank_log(0), record(101.0, "two"))
    paths.rank_output(5).write_text("no end")
    assert [entry.text for entry in logs.read(arrived=150.0)] == ["two"]
    assert told(logs.read(last=True, arrived=2e9)) == [(2e9, "output", 5, "no end")]


def test_other_files_are_left_alone(paths: RunPaths) -> None:
    for name in ("rank-x.out", "rank-.out", "rank-0.times", "notes.txt", "rank-1.1.out"):
        (paths.logs / name).write_text("1 1\n")
    assert [entry.rank for entry in Logs(paths, Wanted()).read()] == []


def test_agents_of_several_nodes(paths: RunPaths) -> None:
    paths.node_log(0).write_text("first\n")
    paths.node_log(3).write_text("fourth\n")
    entries = Logs(paths, Wanted(frozenset({"agent"}))).read()
    assert {(entry.text, entry.fields.get("node")) for entry in entries} == {("first", None), ("fourth", "3")}


def test_only_an_older_part_is_left(paths: RunPaths) -> None:
    paths.rank_output(0).touch()
    paths.rank_output_old(0).write_text("older\n")
    assert [entry.text for entry in Logs(paths, Wanted()).read()] == ["older"]
