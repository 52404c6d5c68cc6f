"""Small files in a run directory: written in the client, and read by people, of whom no one ever sees half of one."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REDACTED = "<redacted>"

_SECRET = re.compile(
    r"pass(word|wd|phrase)?|secret|token|key|auth|credential|cookie|dsn|webhook|session", re.IGNORECASE
)
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


def write(path: Path, content: str) -> None:
    """Put `content` in the place of `path`, for this user only. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(content)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document in the same way.

    Numbers that JSON lacks (NaN, infinities) become texts.
    """
    write(path, json.dumps(_finite(value), allow_nan=False, indent=2, default=str) + "\n")


def append_event(events: Path, event: dict[str, Any]) -> None:
    """Add a line to the run's events.

    Call it in the client while no worker runs.
    """
    line = (json.dumps(_finite(event), allow_nan=False) + "\n").encode()
    descriptor = os.open(events, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in the lines of a file.

    A line that was cut off when its writer was killed is passed over.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def free(path: Path) -> Path:
    """Return `path`, or a free path if it is taken.

    It is `NAME-2.json` and so on: the file of a launch before is kept.
    """
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return found


def masked(name: str, value: str) -> str:
    """Return a variable's value as it may be written down.

    It is not that of a secret, and does not show the login of a URL.
    """
    return REDACTED if _SECRET.search(name) else _USER_IN_URL.sub(f"{REDACTED}@", value)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
