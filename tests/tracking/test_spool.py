from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainrun.rundir.files import append_line, encode, write_atomic
from trainrun.rundir.paths import RunPaths
from trainrun.tracking import spool as module
from trainrun.tracking.spool import Position, Record, Spool, last_values

Log = Callable[..., None]
Open = Callable[..., Spool]


@pytest.fixture
def open_spool(paths: RunPaths) -> Iterator[Open]:
    opened: list[Spool] = []

    def open_one(**options: bool) -> Spool:
        opened.append(Spool(paths.metrics, **options))
        return opened[-1]

    yield open_one
    for spool in opened:
        spool.close()


def steps(records: list[Record]) -> list[int]:
    return [record.step for record in records]


def test_reads_what_is_behind_a_position(paths: RunPaths, log: Log, open_spool: Open) -> None:
    log(1, 2, 2, 3)
    spool = open_spool()
    assert [record.end for record in spool.batch(Position())] == [(1, 1), (2, 1), (2, 2), (3, 1)]
    assert steps(spool.batch(Position(2, 1))) == [2, 3]
    assert spool.batch(Position(3, 1)) == []
    log(4)
    assert steps(spool.batch(Position(3, 1))) == [4]


def test_the_same_is_read_again_until_the_position_moves(paths: RunPaths, log: Log, open_spool: Open) -> None:
    log(1, 2)
    spool = open_spool()
    first = spool.batch(Position())
    log(3)
    assert spool.batch(Position())[:2] == first


def test_there_may_be_no_file_yet(paths: RunPaths, log: Log, open_spool: Open) -> None:
    spool = open_spool()
    assert spool.batch(Position()) == []
    log(1)
    assert steps(spool.batch(Position())) == [1]


def test_a_line_without_its_end_is_left_for_later(paths: RunPaths, log: Log, open_spool: Open) -> None:
    log(1)
    whole = paths.metrics.read_bytes()
    paths.metrics.write_bytes(whole + whole[:9])
    spool = open_spool()
    assert len(spool.batch(Position())) == 1
    with paths.metrics.open("ab") as file:
        file.write(whole[9:])
    assert [record.end for record in spool.batch(Position(1, 1))] == [(1, 2)]


def test_lines_that_are_no_records_are_passed_over(paths: RunPaths, log: Log, open_spool: Open) -> None:
    paths.metrics.write_text("[]\n{\n\x00\n" + "[" * 100_000 + "\n")
    log(1)
    assert steps(open_spool().batch(Position())) == [1]


def test_partial_records_are_passed_over(paths: RunPaths, log: Log, open_spool: Open) -> None:
    log(1)
    append_line(paths.metrics, {"step": 2, "time": 1.0, "partial": True, "train/loss": 1.0})
    log(2)
    assert [record.end for record in open_spool().batch(Position())] == [(1, 1), (2, 1)]


def test_numbers_that_json_lacks_come_back(paths: RunPaths, log: Log, open_spool: Open) -> None:
    log(1, a=math.nan, b=math.inf, c=-math.inf, d=3)
    append_line(paths.metrics, {"step": 2, "time": 1.0, "text": "words", "flag": True, "x": 1.5})
    first, second = open_spool().batch(Position())
    assert math.isnan(first.metrics["a"])
    assert (first.metrics["b"], first.metrics["c"], first.metrics["d"]) == (math.inf, -math.inf, 3.0)
    assert second.metrics == {"x": 1.5}


def test_batches_are_limited(paths: RunPaths, log: Log, open_spool: Open) -> None:
    count = 2 * module.BATCH + 10
    log(*range(1, count + 1))
    spool, sizes, after = open_spool(), [], Position()
    while records := spool.batch(after):
        sizes.append(len(records))
        after = records[-1].end
    assert sizes == [module.BATCH, module.BATCH, 10]


def test_an_outage_does_not_fill_the_memory(log: Log, open_spool: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BYTES", 100)
    log(*range(1, 50))
    spool = open_spool()
    assert {len(spool.batch(Position())) for _ in range(20)} == {3}


def rewrite(path: Path, kept: int) -> None:
    """As the metrics plugin does when a run goes on from an earlier step."""
    whole = path.read_bytes().splitlines(keepends=True)
    write_atomic(path, b"".join(line for line in whole if f'"step": {kept + 1}' not in line.decode()))


def test_a_file_that_was_cut_back_is_read_anew(paths: RunPaths, log: Log, open_spool: Open) -> None:
    log(1, 2, 3)
    spool = open_spool()
    assert steps(spool.batch(Position())) == [1, 2, 3]
    rewrite(paths.metrics, 2)
    log(3, 4)
    assert steps(spool.batch(Position(3, 1))) == [4]
    assert spool.left(Position(1, 1)) == 3


def test_a_file_that_shrinks_in_place_is_read_anew(paths: RunPaths, log: Log, open_spool: Open) -> None:
    log(1, 2, 3)
    spool = open_spool()
    spool.batch(Position(3, 1))
    with paths.metrics.open("r+b") as file:
        file.truncate(0)
    log(4)
    assert steps(spool.batch(Position(3, 1))) == [4]


def test_whole_steps_wait_for_the_next(paths: RunPaths, log: Log, open_spool: Open) -> None:
    log(1, 2)
    spool = open_spool(whole_steps=True)
    assert steps(spool.batch(Position())) == [1]
    log(2, accuracy=1.0)
    assert spool.batch(Position(1, 1)) == []
    assert steps(spool.batch(Position(1, 1), final=True)) == [2, 2]
    log(3)
    assert steps(spool.batch(Position(1, 1))) == [2, 2]


def test_a_step_with_more_records_than_a_batch_is_not_in_the_way(paths: RunPaths, log: Log, open_spool: Open) -> None:
    log(*[1] * (module.BATCH + 5), 2, 3)
    spool = open_spool(whole_steps=True)
    first = spool.batch(Position())
    assert set(steps(first)) == {1}
    rest = spool.batch(first[-1].end, final=True)
    assert len(first) + len(rest) == module.BATCH + 7


def test_the_last_value_of_each_metric(paths: RunPaths, log: Log) -> None:
    log(1, 2, loss=2.0)
    log(2, accuracy=0.5)
    log(3, loss=1.0)
    assert last_values(paths.metrics) == {"loss": 1.0, "accuracy": 0.5}
    assert last_values(paths.root / "none") == {}


events = st.lists(st.one_of(st.just("log"), st.just("again"), st.just("read"), st.integers(0, 12)), max_size=60)


@settings(max_examples=150, deadline=None)
@given(events, st.booleans())
def test_each_record_arrives_once_and_none_is_missing(
    tmp_path_factory: pytest.TempPathFactory, events: list[Any], whole: bool
) -> None:
    """Whatever the order of logging, reading, and going on from an earlier step: the curve is that of the file."""
    path = tmp_path_factory.mktemp("spool") / "metrics.jsonl"
    spool, after, got, step, furthest = Spool(path, whole_steps=whole), Position(), [], 0, 0
    written: list[tuple[int, int]] = []

    def deliver(final: bool = False) -> None:
        nonlocal after
        while records := spool.batch(after, final=final):
            got.extend(record.step for record in records)
            after = records[-1].end

    for event in [*events, "log"]:
        if event == "log":
            step += 1
            append_line(path, {"step": step, "time": 1.0, "loss": 1.0})
            written.append((step, 0))
        elif event == "read":
            deliver()
        elif isinstance(event, int) and event < step:
            step = event  # the run goes on from here
            written = [one for one in written if one[0] <= step]
            write_atomic(path, "".join(encode({"step": s, "time": 1.0, "loss": 1.0}) + "\n" for s, _ in written))
        furthest = max(furthest, step)
    while step < furthest:
        step += 1
        append_line(path, {"step": step, "time": 1.0, "loss": 1.0})
    deliver(final=True)
    spool.close()
    assert got == list(range(1, furthest + 1))
