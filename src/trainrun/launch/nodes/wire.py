"""Messages between nodes: one JSON object a line, of limited size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

PROTOCOL = 1
LIMIT = 1024 * 1024  # bytes of one message

Message = dict[str, Any]


class WireError(Exception):
    """What came over a connection is no message of this protocol."""


def encode(kind: str, **content: Any) -> bytes:
    """One message as a line."""
    return json.dumps({"kind": kind, **content}).encode() + b"\n"


class Lines:
    """Puts messages together from what a connection delivers."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that `data` completes. Raises WireError for anything that is none."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LIMIT:
            raise WireError(f"a message of more than {LIMIT} bytes")
        for line in lines:
            yield _decode(line)


def _decode(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise WireError("something that is not a message of trainrun")
    return message
