"""Reading and writing small files so that a reader never sees half of one."""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_atomic(path: Path, content: str | bytes) -> None:
    """Put `content` in place of `path`: readers see the old file or the new one, nothing between."""
    data = content.encode() if isinstance(content, str) else content
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        _write_new(scratch, data)
        scratch.replace(path)
    except BaseException:
        with suppress(OSError):
            scratch.unlink()
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically. Numbers that JSON lacks (NaN, infinities) become strings."""
    write_atomic(path, encode(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None if there is no such file or it holds something else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append `record` as one JSON line, in one write, so that lines of several processes do not mix."""
    data = (encode(record) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.write(descriptor, data) != len(data):
            raise OSError(f"{path}: the line was written only in part; is the disk full?")
    finally:
        os.close(descriptor)


def read_lines(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The JSON lines of `path` from byte `offset` on, and the offset to go on from.

    A last line without its end is left for the next call; a line that is no JSON object (its
    writer died within it) is passed over. A missing file has no lines.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except OSError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    records = (_decode(line) for line in whole.splitlines())
    return [record for record in records if record is not None], offset + len(whole)


def encode(value: Any, indent: int | None = None) -> str:
    """JSON text that every JSON reader accepts."""
    try:
        return json.dumps(value, allow_nan=False, indent=indent, default=str)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, indent=indent, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
