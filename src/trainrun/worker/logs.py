"""A worker's structured log: one JSON line a record."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import structlog


def make_logger(path: Path, **bound: object) -> structlog.typing.FilteringBoundLogger:
    """A logger that appends to `path`, each line written out at once; `bound` goes with every record."""
    logger = structlog.wrap_logger(
        structlog.WriteLogger(path.open("a", buffering=1)),
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
