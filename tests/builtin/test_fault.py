from __future__ import annotations

import pytest

from trainrun import UsageError
from trainrun.builtin.fault import KINDS, PHASES, Fault, parse, parse_all, usage


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sigterm@3", {"kind": "sigterm", "rank": 0, "step": 3}),
        ("sigint2", {"kind": "sigint2", "rank": 0, "step": 0}),
        ("kill:rank1@5", {"kind": "kill", "rank": 1, "step": 5}),
        ("kill:all@5:backward", {"kind": "kill", "rank": None, "step": 5, "phase": "backward"}),
        ("kill:agent@4", {"kind": "kill", "rank": 0, "process": "agent", "step": 4}),
        ("exit:rank1@4", {"kind": "exit", "rank": 1, "code": 0, "step": 4}),
        ("leave:rank1:3@4", {"kind": "leave", "rank": 1, "code": 3, "step": 4}),
        ("raise:rank1@5!", {"kind": "raise", "rank": 1, "step": 5, "always": True}),
        ("hang:rank0@setup", {"kind": "hang", "rank": 0, "phase": "setup"}),
        ("raise:watch-dog.on_step_end@2", {"kind": "raise", "plugin": "watch-dog", "hook": "on_step_end", "step": 2}),
        ("raise:rank1:a.b.on_log", {"kind": "raise", "rank": 1, "plugin": "a.b", "hook": "on_log"}),
        ("kill:agent@6:committed", {"kind": "kill", "rank": 0, "process": "agent", "step": 6, "phase": "committed"}),
        (" stop:rank0@2:evaluation ", {"kind": "stop", "rank": 0, "step": 2, "phase": "evaluation"}),
    ],
)
def test_what_can_be_written(text: str, expected: dict[str, object]) -> None:
    assert parse(text) == Fault(**{"text": text.strip(), **expected})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("kil:rank1@5", "there is no kind 'kil'; did you mean 'kill'?"),
        ("", "there is no kind ''"),
        ("kill@5", "kill takes rankN|all|agent|server|client, got ''"),
        ("kill:rank@5", "kill takes rankN|all|agent|server|client, got 'rank'"),
        ("kill:rank1:9@5", "'9' is one too many"),
        ("exit:rank1:256@5", "'256' is one too many"),
        ("exit:rank1:1:1@5", "'1:1' is one too many"),
        ("nan:rank1@5", "nan takes nothing but a step, as in nan@2"),
        ("nan@5:backward", "nan takes nothing but a step, as in nan@2"),
        ("sigterm:rank1@5", "sigterm takes nothing before the @, got 'rank1'"),
        ("kill:rank1@five", "'@five' is neither a step nor setup"),
        ("kill:rank1@-1", "'@-1' is neither a step nor setup"),
        ("kill:rank1@", "'@' is neither a step nor setup"),
        ("kill:rank1@5:foward", "there is no phase 'foward'; did you mean 'forward'?"),
        ("kill:rank1@5:x", f"there is no phase 'x'; the phases are {', '.join(PHASES)}"),
        ("raise:rank1@5:write", "raise cannot happen within a save (write)"),
        ("raise:watchdog@3", "raise takes rankN|all|[rankN|all:]PLUGIN.HOOK, got 'watchdog'"),
        ("raise:rank1:x:a.on_log", "'rank1:x' is no rank"),
        ("raise:first:a.on_log", "raise takes rankN|all|[rankN|all:]PLUGIN.HOOK, got 'first'"),
    ],
)
def test_what_cannot(text: str, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith(f"fault {text!r}: {what}")
    assert all(kind in message for kind in KINDS)
    assert "\n" not in message


def test_several_in_one_text() -> None:
    assert [fault.text for fault in parse_all(["sigterm@3, kill:rank1@5", "usr1@2,"])] == [
        "sigterm@3", "kill:rank1@5", "usr1@2"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_explained(kind: str) -> None:
    assert KINDS[kind].does
    assert kind in usage()


@pytest.mark.parametrize(
    ("text", "struck"),
    [("kill:rank1@5", "rank 1"), ("kill:all@5", "all ranks"), ("kill:server@5", "the server")],
)
def test_who_is_struck(text: str, struck: str) -> None:
    assert parse(text).struck == struck
