from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pluggy
from hypothesis import given
from hypothesis import strategies as st

from trainrun import hookspecs
from trainrun.marker import PROJECT
from trainrun.plugin.description import ImplInfo
from trainrun.plugin.instance import Instance, Role
from trainrun.plugin.plan import Entry, Plan, make_plan, register
from trainrun.plugin.specs import by_name, own_specs

SPECS = by_name(own_specs())
HOOKS = ["on_step_start", "on_step_end", "on_log", "should_stop", "build_model", "build_dataset", "training_step"]
Members = list[tuple[Instance, list[ImplInfo]]]


def impl(hook: str, **options: Any) -> ImplInfo:
    return ImplInfo(options.pop("function", hook), hook, **options)


def member(name: str, *impls: ImplInfo, role: Role = "plugin", **options: Any) -> tuple[Instance, list[ImplInfo]]:
    return Instance(name, role, f"m:{name}", **options), list(impls)


def plan(*members: tuple[Instance, list[ImplInfo]], **providers: str) -> Plan:
    return make_plan(members, SPECS, providers, {owner.name: f"reason of {owner.name}" for owner, _ in members})


def names(entries: tuple[Entry, ...]) -> list[str]:
    return [entry.instance.name for entry in entries]


def test_events_run_in_plan_order_and_ends_in_reverse() -> None:
    both = (impl("on_step_start"), impl("on_step_end"), impl("on_update_end"))
    found = plan(member("a", *both), member("b", *both))
    assert names(found["on_step_start"]) == ["a", "b"]
    assert names(found["on_step_end"]) == ["b", "a"]
    assert names(found["on_update_end"]) == ["a", "b"], "it has no _start twin"
    assert found["on_step_end"][0].reason == "reason of b, in reverse"


def test_tryfirst_trylast_and_wrappers_keep_their_meaning() -> None:
    found = plan(
        member("a", impl("on_log", trylast=True)),
        member("b", impl("on_log")),
        member("c", impl("on_log", tryfirst=True)),
        member("d", impl("on_log", wrapper=True)),
    )
    assert names(found["on_log"]) == ["d", "c", "b", "a"]
    assert [entry.reason.partition(", ")[2] for entry in found["on_log"]] == ["wrapper", "tryfirst", "", "trylast"]


def test_providers_ask_plugins_then_the_task_then_built_ins() -> None:
    answer = impl("build_model")
    found = plan(member("defaults", answer, role="builtin"), member("task", answer, role="task"), member("a", answer))
    assert names(found["build_model"]) == ["a", "task", "defaults"]
    assert [entry.winner for entry in found["build_model"]] == [True, False, False]


def test_the_chosen_answer_goes_before_all_others() -> None:
    rivals = [member("a", impl("build_model", tryfirst=True)), member("b", impl("build_model", trylast=True))]
    found = plan(*rivals, build_model="b")
    assert names(found["build_model"]) == ["b", "a"]
    assert found["build_model"][0].reason.startswith("[providers]")


def test_choices_count_for_their_hook_alone() -> None:
    answers = (impl("build_model"), impl("build_dataset"))
    found = plan(member("a", *answers), member("b", *answers), build_model="b", build_dataset="a")
    assert names(found["build_model"]) == ["b", "a"]
    assert names(found["build_dataset"]) == ["a", "b"]


def test_wrappers_of_a_provider_neither_win_nor_lose() -> None:
    found = plan(member("defaults", impl("move_batch"), role="builtin"), member("a", impl("move_batch", wrapper=True)))
    assert [(entry.instance.name, entry.winner) for entry in found["move_batch"]] == [("a", None), ("defaults", True)]


def test_ranks_and_policies_are_the_effective_ones() -> None:
    found = plan(member("a", impl("on_log"), impl("on_step_end", ranks="zero", mutates=True), on_error="disable"))
    (log,) = found["on_log"]
    assert (log.ranks, log.policy) == ("zero", "disable")
    (end,) = found["on_step_end"]
    assert (end.ranks, end.policy) == ("zero", "fail")


def test_several_functions_may_answer_one_hook() -> None:
    found = plan(member("a", impl("on_log", function="one"), impl("on_log", function="two")))
    assert {entry.impl.function for entry in found["on_log"]} == {"one", "two"}


def test_unknown_hooks_are_left_out() -> None:
    assert "on_nothing" not in plan(member("a", impl("on_nothing"))).hooks


def test_json_form_lists_every_hook_in_the_order_of_the_specs() -> None:
    document = plan(member("a", impl("on_log"), distribution="dist", version="1.0")).to_json()
    assert [hook["hook"] for hook in document] == list(SPECS)
    (entry,) = next(hook["implementations"] for hook in document if hook["hook"] == "on_log")
    assert (entry["instance"], entry["distribution"], entry["ranks"]) == ("a", "dist", "zero")


# --- what is shown is what happens -------------------------------------------------------------


@st.composite
def members(draw: st.DrawFn) -> Members:
    roles: list[Role] = draw(st.lists(st.sampled_from(["builtin", "task", "plugin"]), max_size=6))
    return [(Instance(f"p{number}", role, "m:C"), draw(some_impls())) for number, role in enumerate(roles)]


@st.composite
def some_impls(draw: st.DrawFn) -> list[ImplInfo]:
    flags = st.sampled_from(
        [{}, {"tryfirst": True}, {"trylast": True}, {"wrapper": True}, {"wrapper": True, "tryfirst": True}]
    )
    hooks = draw(st.lists(st.sampled_from(HOOKS), max_size=8))
    return [ImplInfo(f"f{number}", hook, **draw(flags)) for number, hook in enumerate(hooks)]


def recorder(called: list[tuple[str, str]]) -> Callable[[Instance, ImplInfo], Callable[..., Any]]:
    """Functions with real signatures, as guards make them, that note when they are called."""

    def original(run: Any) -> None: ...

    def make(owner: Instance, impl: ImplInfo) -> Callable[..., Any]:
        @functools.wraps(original)
        def plain(run: Any) -> None:
            called.append((owner.name, impl.function))

        @functools.wraps(original)
        def wrapper(run: Any) -> Iterator[None]:
            called.append((owner.name, impl.function))
            return (yield)

        return wrapper if impl.wrapper else plain

    return make


@given(members(), st.dictionaries(st.sampled_from(HOOKS), st.sampled_from(["p0", "p1", "p2", "p3"])))
def test_the_plan_is_the_order_in_which_pluggy_calls(found: Members, providers: dict[str, str]) -> None:
    shown = make_plan(found, SPECS, providers, {})
    called: list[tuple[str, str]] = []
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    register(manager, found, recorder(called), SPECS, providers)
    for hook in HOOKS:
        called.clear()
        getattr(manager.hook, hook)(**dict.fromkeys(SPECS[hook].arguments))
        assert called == [(entry.instance.name, entry.impl.function) for entry in shown[hook]]
