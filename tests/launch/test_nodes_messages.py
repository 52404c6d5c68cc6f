"""The one schema of what nodes say to one another: what it allows, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import get_args

import pytest

from trainrun.launch.nodes import messages
from trainrun.launch.nodes.messages import (
    SMALL,
    Agreed,
    Ask,
    Attempt,
    Beat,
    Ended,
    Hello,
    Kill,
    Lines,
    Message,
    Nudge,
    Over,
    Proof,
    Refused,
    Software,
    Stop,
    Terms,
    Unseen,
    Welcome,
    WireError,
    decode,
    encode,
    fit,
)
from trainrun.rundir.records import Failure, Outcome

HEX = "0123456789abcdef" * 4
SOFTWARE = Software(recipe="1", plugins=[["a", "dist 1 (a:A)", "hash"]], versions={"torch": None}, workers=2)

EVERY: list[Message] = [
    Beat(now=-5),
    Hello(protocol=2, node=1, nodes=2, run="2026-01-01-run"),
    Welcome.to(Path("/shared/läufe/a b\x1b%"), HEX),
    Proof(answer=HEX, challenge=HEX),
    Unseen(problem="grüße\n", host="h"),
    messages.Proved(answer=HEX),
    Refused(reason="no", patience=15.0),
    Terms(software=SOFTWARE),
    Agreed(host="h", differences=["x"]),
    Attempt(attempt=1, host="node0", port=29500),
    Stop(attempt=1, reason="why"),
    Nudge(attempt=1),
    messages.Dump(attempt=1),
    Kill(attempt=1),
    Over(outcome=Outcome("failed", 1, "x", first_failure=Failure(1, "m", "error"), metrics={"a": 0.5})),
    Ended(attempt=1, code=-9, ends=[(0, None, 0), (1, -9, 2**60)]),
    Ask(request="stop", source="SIGINT", now=False),
]


def test_every_message_survives_the_wire() -> None:
    assert {type(message) for message in EVERY} == set(get_args(Message))
    for message in EVERY:
        line = encode(message)
        assert line.count(b"\n") == 1
        assert decode(line[:-1]) == message


def test_messages_may_come_in_any_pieces() -> None:
    data = b"".join(map(encode, EVERY))
    for size in (1, 7, 1000, len(data)):
        lines = Lines()
        found = [message for at in range(0, len(data), size) for message in lines.feed(data[at : at + size])]
        assert found == EVERY


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b"\xff\xfe",
        b"[" * 99999,
        b'{"no": "kind"}',
        b'{"kind": "unknown"}',
        b'{"kind": ["beat"]}',
        b'{"kind": "beat"}',
        b'{"kind": "beat", "now": "noon"}',
        b'{"kind": "beat", "now": 1.0}',
        b'{"kind": "beat", "now": true}',
        b'{"kind": "beat", "now": 1, "more": 1}',
        b'{"kind": "beat", "now": ' + b"9" * 5000 + b"}",
        b'{"kind": "beat", "now": 1' + b"0" * 400 + b"}",
        b'{"kind": "hello", "protocol": 2, "node": Infinity}',
        b'{"kind": "hello", "protocol": 2, "node": NaN}',
        b'{"kind": "hello", "protocol": 2, "node": -1}',
        b'{"kind": "hello", "protocol": 2, "node": 1, "nodes": 2, "run": []}',
        b'{"kind": "refused", "reason": "x", "patience": "abc"}',
        b'{"kind": "refused", "reason": "x", "patience": 1e308}',
        b'{"kind": "refused", "reason": "x", "patience": Infinity}',
        b'{"kind": "refused", "reason": "x", "patience": -1}',
        b'{"kind": "proof", "answer": "\\ud800", "challenge": "' + HEX.encode() + b'"}',
        b'{"kind": "proof", "answer": "x", "challenge": "' + HEX.encode() + b'"}',
        b'{"kind": "proof", "answer": "' + HEX.encode() + b'\\n", "challenge": "' + HEX.encode() + b'"}',
        b'{"kind": "welcome", "run_dir": "relative", "challenge": "' + HEX.encode() + b'"}',
        b'{"kind": "welcome", "run_dir": "/a\\u0000", "challenge": "' + HEX.encode() + b'"}',
        b'{"kind": "attempt", "attempt": 1, "host": "h", "port": 0}',
        b'{"kind": "ended", "attempt": 1, "code": 0, "ends": [[0, 0]]}',
        b'{"kind": "ended", "attempt": 1, "code": 0, "ends": [[-1, 0, 0]]}',
        b'{"kind": "over", "outcome": {"state": "won", "exit_code": 0, "reason": ""}}',
    ],
)
def test_anything_else_is_refused_in_a_short_line(line: bytes) -> None:
    with pytest.raises(WireError, match="no message of trainrun") as refused:
        decode(line)
    assert len(str(refused.value)) <= 200


@pytest.mark.parametrize(("field", "limit"), [("problem", 1000), ("host", 255)])
def test_texts_have_a_longest_length(field: str, limit: int) -> None:
    said = {"kind": "unseen", "problem": "p", "host": "h"}
    assert decode(json.dumps({**said, field: "x" * limit}).encode())
    with pytest.raises(WireError, match=f"unseen.{field}"):
        decode(json.dumps({**said, field: "x" * (limit + 1)}).encode())


def test_a_path_that_holds_a_null_is_no_run_directory() -> None:
    welcome = decode(b'{"kind": "welcome", "run_dir": "/a%00b", "challenge": "' + HEX.encode() + b'"}')
    assert isinstance(welcome, Welcome)
    with pytest.raises(WireError, match="no path"):
        _ = welcome.root


def test_a_run_directory_need_not_be_text() -> None:
    path = Path("/shared/\udcff")
    welcome = decode(encode(Welcome.to(path, HEX))[:-1])
    assert isinstance(welcome, Welcome)
    assert welcome.root == path


def test_an_endless_line_is_refused_before_it_ends_and_after() -> None:
    for data in (b"x" * (SMALL + 1), b'{"kind": "beat", "now": 1' + b" " * SMALL + b"}\n"):
        with pytest.raises(WireError, match=f"a message of more than {SMALL} bytes"):
            list(Lines(SMALL).feed(data))


def test_what_is_no_text_is_sent_as_a_question_mark() -> None:
    assert Stop(attempt=1, reason=fit("a\udc80b")) == Stop(attempt=1, reason="a?b")
    over = decode(encode(Over(outcome=Outcome("failed", 1, "a\udc80b", run="/r\udc80")))[:-1])
    assert isinstance(over, Over)
    assert (over.outcome.reason, over.outcome.run) == ("a?b", "/r?")


def test_an_outcome_may_hold_nan_and_is_cut_to_fit() -> None:
    failure = Failure(0, "m" * 10_000_000, "error", traceback="t" * 10_000_000)
    outcome = Outcome("failed", 1, "r" * 10_000_000, first_failure=failure, metrics={"a": math.nan})
    line = encode(Over.of(outcome))
    assert len(line) < messages.LIMIT
    found = decode(line[:-1])
    assert isinstance(found, Over)
    assert math.isnan(found.outcome.metrics["a"])
    assert found.outcome.reason.startswith("rrr")


def test_fit() -> None:
    assert fit("abc", 3) == "abc"
    assert fit("abcd", 3) == "ab…"
