from __future__ import annotations

from typing import Any

import pytest

from trainrun.errors import HookFailed
from trainrun.plugin.description import ImplInfo
from trainrun.plugin.guard import Fault, Guard, failure, policy, switch
from trainrun.plugin.instance import Instance

FRAGILE = Instance("fragile", "plugin", "m:C", distribution="dist", version="1.2", on_error="disable")
STRICT = Instance("strict", "plugin", "m:C")
ERROR = ValueError("broken")


@pytest.mark.parametrize("asked", ["fail", "disable", "warn"])
def test_events_follow_the_policy(asked: Any) -> None:
    assert policy(Instance("p", "plugin", "m:C", on_error=asked), ImplInfo("f", "h"), "event") == asked


@pytest.mark.parametrize(
    ("impl", "kind"),
    [
        (ImplInfo("f", "h"), "provider"),
        (ImplInfo("f", "h"), "vote"),
        (ImplInfo("f", "h", wrapper=True), "event"),
        (ImplInfo("f", "h", mutates=True), "event"),
    ],
)
def test_everything_else_fails_the_run(impl: ImplInfo, kind: Any) -> None:
    assert policy(FRAGILE, impl, kind) == "fail"


def test_a_failure_names_the_plugin_and_the_way_out() -> None:
    found = failure(FRAGILE, "on_log", ERROR)
    assert str(found) == (
        "plugin 'fragile' raised ValueError in on_log: broken; to run without it: -p no:fragile (from dist 1.2)"
    )
    assert (found.instance, found.hook, found.__cause__) == ("fragile", "on_log", ERROR)


def test_what_has_no_switch_says_nothing_of_one() -> None:
    for instance in (Instance("task", "task", "m:C"), Instance("metrics", "builtin", "m:C")):
        assert switch(instance) == ""
        assert str(failure(instance, "h", ERROR)) == f"plugin '{instance.name}' raised ValueError in h: broken"
    assert switch(STRICT) == "to run without it: -p no:strict"


def test_the_first_to_blame_stays_to_blame() -> None:
    inner = failure(STRICT, "on_log", ERROR)
    assert failure(FRAGILE, "on_step_end", inner) is inner


def test_survived_errors_are_told_at_once_and_fatal_ones_raised_at_the_end() -> None:
    faults: list[Fault] = []
    guard = Guard(faults.append)
    guard.failed(FRAGILE, "on_log", "disable", ERROR)
    assert faults == [Fault("fragile", "on_log", ERROR, "disable")]
    guard.settle()
    guard.failed(STRICT, "on_log", "fail", ERROR)
    guard.failed(FRAGILE, "on_log", "fail", KeyError("other"))
    with pytest.raises(HookFailed, match="'strict' raised ValueError") as caught:
        guard.settle()
    assert [note.partition(";")[0] for note in caught.value.__notes__] == [
        "also: plugin 'fragile' raised KeyError in on_log: 'other'"
    ]
    guard.settle()


def test_a_failure_within_is_not_survived_by_the_policy_of_the_caller() -> None:
    guard = Guard(lambda fault: pytest.fail(f"it was survived: {fault}"))
    guard.failed(FRAGILE, "on_log", "warn", failure(STRICT, "inner", ERROR))
    with pytest.raises(HookFailed, match="'strict'"):
        guard.settle()
