"""A worker's structured log: one JSON line a record."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO, cast

import structlog


class _Appending:
    """What structlog writes to: a file that is open only while a record is written, so that none is left open.

    A worker's log outlives its training: background threads may write to it until the process ends.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, text: str) -> None:
        """Append `text`, in one piece."""
        with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)

    def flush(self) -> None:
        """Nothing is held back."""


def make_logger(path: Path, **bound: object) -> structlog.typing.FilteringBoundLogger:
    """A logger that appends to `path`, each line written out at once; `bound` goes with every record."""
    logger = structlog.wrap_logger(
        structlog.WriteLogger(cast("TextIO", _Appending(path))),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
    )
    return cast("structlog.typing.FilteringBoundLogger", logger.bind(**bound))
