"""Reading and writing small files so that a reader never sees half of one."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from trainrun.rundir import untrusted
from trainrun.rundir.secrets import scrub_all

_LARGEST = 64 * 1024 * 1024  # bytes of a file that is read at once
_MOST = 512 * 1024 * 1024  # bytes of lines that are read at once
_STRANGE = re.compile(rb"\\u[dD][89a-fA-F]|[eE]\+?[0-9]{3}|\xed[\xa0-\xbf]")  # what `_mended` may have to mend


def write_atomic(path: Path, content: str | bytes) -> None:
    """Put `content` in place of `path`.

    Readers see the old file or the new one, nothing between.
    """
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
    """Return the JSON object in `path`.

    Returns None if the file is missing or holds no object.
    """
    try:
        return decode(untrusted.read_plain(path, _LARGEST))
    except OSError:
        return None


def read_text(path: Path) -> str | None:
    """Return the text of a small file.

    Returns None if there is no such file, or another thing in its place.
    """
    try:
        return untrusted.read_plain(path, _LARGEST).decode(errors="replace")
    except OSError:
        return None


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append `record` as one JSON line.

    It is one write, so that lines of several processes do not mix. What it says is written without the secrets that
    this process knows.
    """
    data = (encode(scrub_all(record)) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.write(descriptor, data) != len(data):
            raise OSError(f"{path}: the line was written only in part; is the disk full?")
    finally:
        os.close(descriptor)


def read_lines(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Return the JSON lines of `path` from byte `offset`, and the next offset.

    A last line without its end is left for the next call. A line that is no JSON object (its writer died within it) is
    passed over. A missing file has no lines, nor has a pipe or the like. Of a file that is too large to be one of ours
    only the end is read.
    """
    try:
        with os.fdopen(untrusted.open_plain(path), "rb") as file:
            offset = max(offset, os.fstat(file.fileno()).st_size - _MOST)
            parts = list(_written(file, offset))
    except OSError:
        return [], offset
    data = b"".join(part for _, part in parts)
    whole = data[: data.rfind(b"\n") + 1]
    ends = [at + part.rfind(b"\n") + 1 for at, part in parts if b"\n" in part]
    records = (decode(line) for line in whole.split(b"\n"))
    return [record for record in records if record is not None], ends[-1] if ends else offset


def _written(file: BinaryIO, offset: int) -> Iterator[tuple[int, bytes]]:
    """Yield what was written from `offset` on, each part with its place.

    Holes of a sparse file are not read.
    """
    size = os.fstat(file.fileno()).st_size
    while offset < size:
        try:
            start = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            start, end = offset, size
        file.seek(start)
        yield start, file.read(end - start)
        offset = end


def encode(value: Any, indent: int | None = None) -> str:
    """Return JSON text that every JSON reader accepts."""
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


def decode(data: bytes) -> dict[str, Any] | None:
    """Return the JSON object in `data`; None if it is no object.

    Numbers and texts that cannot be shown are replaced. Infinities become text, as in what `encode` writes. Halves of
    surrogate pairs become the sign for what is unknown.
    """
    try:
        value = json.loads(data, parse_constant=str)
        strange = _STRANGE.search(data) is not None
        value = _mended(value) if strange else value
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {_mended(key): _mended(item) for key, item in value.items()}
    return [_mended(item) for item in value] if isinstance(value, list) else value


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
