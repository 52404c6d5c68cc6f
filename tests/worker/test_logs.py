from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from trainrun.rundir.paths import rotated
from trainrun.worker.logs import make_logger

LIMIT = 20_000


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rank-0.jsonl"


def test_first_new_file_has_lost_nothing(path: Path) -> None:
    logger = make_logger(path, LIMIT, rank=0)
    for number in range(150):
        logger.info("told", number=number)
    assert [one["number"] for one in records(rotated(path)) + records(path)] == list(range(150))


def test_kept_within_the_limit_and_what_is_dropped_is_told(path: Path) -> None:
    for number in range(1000):
        make_logger(path, LIMIT, rank=0).info("told", number=number)  # each time one that knows of no former one
    assert path.stat().st_size + rotated(path).stat().st_size <= LIMIT
    first, *rest = records(path)
    assert (first["event"], first["level"]) == ("older records of this log were dropped", "warning")
    numbers = [one["number"] for one in records(rotated(path))[1:] + rest]
    assert numbers == list(range(1000 - len(numbers), 1000))
    assert first["bytes"] > 60_000


def test_record_that_is_larger_than_the_limit(path: Path) -> None:
    logger = make_logger(path, LIMIT)
    for _ in range(3):
        logger.info("x" * 2 * LIMIT)
    assert len(records(path)) == 2


def test_disk_that_cannot_be_written_ends_no_training(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = make_logger(path, LIMIT)
    logger.info("before")
    with monkeypatch.context() as full:
        full.setattr(Path, "open", _full)
        logger.info("lost")
        logger.info("lost too")
    with path.open("a") as file:
        file.write('{"half of a rec')
    logger.info("after")
    before, half, lost, after = [line for line in path.read_text().splitlines() if line]
    assert half == '{"half of a rec'
    assert json.loads(lost)["count"] == 2
    assert [json.loads(line)["event"] for line in (before, lost, after)] == [
        "before",
        "records of this log were lost",
        "after",
    ]


def _full(self: Path, *arguments: Any, **keywords: Any) -> Any:
    raise OSError(28, os.strerror(28), str(self))
