"""A worker's structured log: one JSON line a record."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO, cast

import structlog

from trainrun.rundir.paths import rotated
from trainrun.rundir.secrets import scrub, scrub_all

_LIMIT = 64 * 1024 * 1024
_DROPPED = "older records of this log were dropped"


class _Appending:
    """What structlog writes to: a file that is open only while a record is written, so that none is left open.

    A worker's log outlives its training: background threads may write to it until the process ends. It is kept
    within `limit` bytes, and what cannot be written is counted: a full disk must not end a run.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._half = limit // 2
        self._lost = 0

    def write(self, text: str) -> None:
        """Append `text`, in one piece."""
        try:
            size = self._size()
            if size and size + len(text) > self._half:
                self._rotate()
            if self._lost:
                # The line before it may have been written in part: this one has to begin anew.
                self._append("\n" + _record("records of this log were lost", count=self._lost))
                self._lost = 0
            self._append(text)
        except OSError:
            self._lost += 1

    def flush(self) -> None:
        """Do nothing: no record is held back."""

    def _append(self, text: str) -> None:
        with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)

    def _size(self) -> int:
        with suppress(FileNotFoundError):
            return self._path.stat().st_size
        return 0

    def _rotate(self) -> None:
        old = rotated(self._path)
        dropped = _dropped(self._path) + (old.stat().st_size if old.exists() else 0)
        with suppress(FileNotFoundError):
            self._path.replace(old)
        if dropped:
            self._append(_record(_DROPPED, bytes=dropped))


def _without_secrets(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    found: structlog.typing.EventDict = scrub_all({**event, "event": scrub(str(event.get("event", "")))})
    return found


def _record(event: str, **values: object) -> str:
    stamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"event": event, **values, "level": "warning", "timestamp": stamp}) + "\n"


def _dropped(path: Path) -> int:
    """Return how many bytes were dropped before this file was begun.

    The file's first line says so.
    """
    try:
        with path.open("rb") as file:
            first = json.loads(file.readline(1000))
        return int(first["bytes"]) if first["event"] == _DROPPED else 0
    except (OSError, ValueError, TypeError, KeyError):
        return 0


def make_logger(path: Path, limit: int = _LIMIT, **bound: object) -> structlog.typing.FilteringBoundLogger:
    """Return a logger that appends to `path`, each line at once.

    `bound` is part of every record. limit: bytes that are kept; when half of them are written, the file is renamed and
    a new one begun.
    """
    logger = structlog.wrap_logger(
        structlog.WriteLogger(cast("TextIO", _Appending(path, limit))),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            _without_secrets,
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
    )
    return cast("structlog.typing.FilteringBoundLogger", logger.bind(**bound))
