"""Every message between nodes: one JSON object a line, with its fields, types and bounds. All other lines are refused.

The classes are the one schema for both directions and both sides. A side must prove that it knows the run's key. Until
then its messages are at most `SMALL` bytes, and nothing that it says ends a launch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from trainrun.rundir.records import Outcome

PROTOCOL = 2
SMALL = 16 * 1024  # bytes of one message before the other side has proved who it is
LIMIT = 4 * 1024 * 1024  # bytes of one message after that
TEXT = 4000  # characters of a text that people read

_LONG = 100_000  # characters of each text of an outcome
_TIME = 2**63  # nanoseconds, or a length of time that no clock reaches

Text = Annotated[str, Field(max_length=TEXT)]
Host = Annotated[str, Field(max_length=255)]
Hex = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
Node = Annotated[int, Field(ge=0, le=65535)]
Number = Annotated[int, Field(ge=0, le=10**9)]
Clock = Annotated[int, Field(ge=-_TIME, le=_TIME)]


class WireError(Exception):
    """What came over a connection is no message of this protocol."""


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Beat(_Message):
    """A sign of life. now: a reading of the sender's monotonic clock, in nanoseconds."""

    kind: Literal["beat"] = "beat"
    now: Clock


class Hello(_Message):
    """A node asks to be let in. run: the one that it was in before it lost its connection.

    Other fields are passed over and all but the protocol may be missing, so that another version can be named.
    """

    model_config = ConfigDict(extra="ignore")

    kind: Literal["hello"] = "hello"
    protocol: Number
    node: Node | None = None
    nodes: Node | None = None
    run: Annotated[str, Field(max_length=255)] | None = None


class Welcome(_Message):
    """Node 0 names the run directory, percent-encoded, and asks for a proof of seeing it."""

    kind: Literal["welcome"] = "welcome"
    run_dir: Annotated[str, Field(max_length=SMALL - 1000, pattern=r"\A/[A-Za-z0-9/%_.~-]*\z")]
    challenge: Hex

    @classmethod
    def to(cls, root: Path, challenge: str) -> Welcome:
        """Make the message. Paths need not be text: they travel as their bytes."""
        return cls(run_dir=quote_from_bytes(bytes(root)), challenge=challenge)

    @property
    def root(self) -> Path:
        """Return the run directory. Raises WireError if it cannot be a path."""
        found = unquote_to_bytes(self.run_dir)
        if b"\0" in found:
            raise WireError("a run directory that is no path")
        return Path(found.decode(errors="surrogateescape"))


class Proof(_Message):
    """The other node knows the run's key, and asks the same of node 0."""

    kind: Literal["proof"] = "proof"
    answer: Hex
    challenge: Hex


class Unseen(_Message):
    """The other node does not see the run directory."""

    kind: Literal["unseen"] = "unseen"
    problem: Annotated[str, Field(max_length=1000)]
    host: Host


class Proved(_Message):
    """Node 0 knows the run's key too."""

    kind: Literal["proved"] = "proved"
    answer: Hex


class Refused(_Message):
    """The connection is closed, for a reason. patience: seconds for which another try may end otherwise."""

    kind: Literal["refused"] = "refused"
    reason: Text
    patience: Annotated[float, Field(ge=0, le=60)] = 0.0


class Software(_Message):
    """What a node trains with, to be compared: see `launch.nodes.match`."""

    recipe: str
    plugins: list[Annotated[list[str], Field(min_length=3, max_length=3)]]
    versions: dict[str, str | None]
    workers: Number


class Terms(_Message):
    """What node 0 trains with."""

    kind: Literal["terms"] = "terms"
    software: Software


class Agreed(_Message):
    """The other node has compared; with differences it leaves."""

    kind: Literal["agreed"] = "agreed"
    host: Host
    differences: Annotated[list[Text], Field(max_length=100)]


class Attempt(_Message):
    """Start the workers of an attempt, which meet at the store."""

    kind: Literal["attempt"] = "attempt"
    attempt: Number
    host: Host
    port: Annotated[int, Field(ge=1, le=65535)]


class Stop(_Message):
    """Ask the workers of an attempt to stop after this step."""

    kind: Literal["stop"] = "stop"
    attempt: Number
    reason: Text


class Nudge(_Message):
    """Have the workers look at the attempt's requests."""

    kind: Literal["nudge"] = "nudge"
    attempt: Number


class Dump(_Message):
    """Have the workers write their stacks."""

    kind: Literal["dump"] = "dump"
    attempt: Number


class Kill(_Message):
    """End the workers now."""

    kind: Literal["kill"] = "kill"
    attempt: Number


class Over(_Message):
    """The run has ended."""

    model_config = ConfigDict(allow_inf_nan=True)  # metrics may be nan

    kind: Literal["over"] = "over"
    outcome: Outcome

    @classmethod
    def of(cls, outcome: Outcome) -> Over:
        """Make the message; texts that are too long for one are cut."""
        failure = outcome.first_failure
        if failure is not None:
            trace = failure.traceback and fit(failure.traceback, _LONG)
            failure = replace(failure, message=fit(failure.message, _LONG), traceback=trace)
        return cls(outcome=replace(outcome, reason=fit(outcome.reason, _LONG), first_failure=failure))


class Ended(_Message):
    """How the workers of the other node ended in an attempt. ends: rank, exit code and when it was last seen alive."""

    kind: Literal["ended"] = "ended"
    attempt: Number
    code: Annotated[int, Field(ge=-255, le=255)]
    ends: Annotated[list[tuple[Number, Clock | None, Clock]], Field(max_length=10_000)]


class Ask(_Message):
    """A person at the other node asks for a stop or a checkpoint. now: not for the first time."""

    kind: Literal["ask"] = "ask"
    request: Literal["stop", "checkpoint"]
    source: Annotated[str, Field(max_length=255)]
    now: bool


FromNode0 = Welcome | Proved | Refused | Terms | Attempt | Stop | Nudge | Dump | Kill | Over
ToNode0 = Hello | Proof | Unseen | Agreed | Ended | Ask
Message = Beat | FromNode0 | ToNode0


def encode(message: Message) -> bytes:
    """Return one message as a line."""
    content = message.model_dump(warnings=False)
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def decode(line: bytes) -> Message:
    """Return the message of one line. Raises WireError for anything that the schema does not allow."""
    try:
        return _schema().validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise WireError(fit(f"no message of trainrun ({where}{': ' if where else ''}{first['msg']})", 200)) from None


def fit(text: str, limit: int = TEXT) -> str:
    """Cut a text to what a message has room for.

    Half of a surrogate pair becomes a question mark.
    """
    shown = text if len(text) <= limit else text[: limit - 1] + "…"
    return shown.encode("utf-8", "replace").decode()


class Lines:
    """Puts messages together from what a connection delivers. limit: bytes of one message."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._rest = bytearray()
        self._searched = 0  # bytes of it that hold no end of a line

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that `data` completes.

        Each is decoded when it is asked for. Raises WireError.
        """
        self._rest += data
        while (end := self._rest.find(b"\n", self._searched)) >= 0:
            line, self._searched = bytes(self._rest[:end]), 0
            del self._rest[: end + 1]
            self._require_short(len(line))
            yield decode(line)
        self._searched = len(self._rest)
        self._require_short(len(self._rest))

    def _require_short(self, size: int) -> None:
        if size > self.limit:
            raise WireError(f"a message of more than {self.limit} bytes")


@cache
def _schema() -> TypeAdapter[Message]:
    annotated: Any = Annotated[Message, Field(discriminator="kind")]
    return TypeAdapter(annotated)
