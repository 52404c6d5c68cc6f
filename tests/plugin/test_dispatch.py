"""Calling hooks: by the compiled way, and by pluggy's where there is a wrapper."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch

from trainrun.errors import HookFailed, WrongReturn
from trainrun.marker import hookimpl, hookspec
from trainrun.plugin.dispatch import Dispatcher
from trainrun.plugin.guard import Fault, Interrupt, hookimpl_traceback
from trainrun.plugin.inspecting import describe_object
from trainrun.plugin.instance import Instance, Role
from trainrun.plugin.links import Member
from trainrun.plugin.specs import by_name, specs_in
from trainrun.rundir.pulse import CRUMB, Pulse

PATIENCE = 20.0
ALL = frozenset({"all", "local_zero", "zero"})


class Specs:
    @staticmethod
    @hookspec(locus="worker", kind="event", ranks="all", host=("number", "table"))
    def on_start(run: Any, number: int, table: Any) -> None: ...

    @staticmethod
    @hookspec(locus="worker", kind="event", ranks="all", host=("number",))
    def on_end(run: Any, number: int) -> None: ...

    @staticmethod
    @hookspec(locus="worker", kind="event", ranks="zero")
    def on_report() -> None: ...

    @staticmethod
    @hookspec(locus="worker", kind="provider", ranks="all")
    def build(run: Any, number: int) -> Any: ...

    @staticmethod
    @hookspec(locus="worker", kind="vote", ranks="all")
    def should(run: Any, number: int) -> Any: ...

    @staticmethod
    @hookspec(locus="worker", kind="event", ranks="all", host=("table",), copied=("table",))
    def on_table(table: Any) -> None: ...

    @staticmethod
    @hookspec(locus="worker", kind="event", ranks="all")
    def on_words(error: Any, calls0: Any, clock: Any, answer: Any, begun: Any, faulty: Any, CAUGHT: Any) -> None: ...


def member(plugin: object, name: str | None = None, role: Role = "plugin", **settings: Any) -> Member:
    made = plugin() if isinstance(plugin, type) else plugin
    kind = type(made)
    name = name or kind.__name__.lower()
    return Member(Instance(name, role, f"m:{kind.__name__}", **settings), made, describe_object("m", kind).impls, name)


def dispatcher(*members: Member, faults: list[Fault] | None = None, ranks: frozenset[str] = ALL, **options: Any) -> Any:
    def unexpected(fault: Fault) -> None:
        if faults is None:
            pytest.fail(str(fault))
        faults.append(fault)

    return Dispatcher(
        members,
        by_name(specs_in(Specs)),
        [Specs],
        ranks=ranks,
        providers=options.get("providers", {}),
        on_fault=options.get("on_fault", unexpected),
        pulse=options.get("pulse"),
    )


def noting(calls: list[Any], name: str, answer: Any = None, **marks: Any) -> Member:
    """A plugin that answers every hook with `answer` and notes what it is given."""

    class Noting:
        @hookimpl(**marks)
        def on_start(self, run: Any, number: int) -> None:
            calls.append((name, "on_start", run, number))

        @hookimpl(**marks)
        def on_end(self, number: int, run: Any) -> None:
            calls.append((name, "on_end", run, number))

        @hookimpl(**marks)
        def build(self, number: int) -> Any:
            calls.append((name, "build", number))
            return answer

        @hookimpl(**marks)
        def should(self, run: Any) -> Any:
            calls.append((name, "should", run))
            return answer

    return member(Noting, name)


def around(calls: list[Any]) -> Member:
    """A wrapper of every kind that changes nothing: pluggy makes the calls."""

    class Around:
        @hookimpl(wrapper=True)
        def on_start(self, run: Any, number: int) -> Generator[None, Any, Any]:
            calls.append(("around", "before", run, number))
            answer = yield
            calls.append(("around", "after", run, number))
            return answer

        @hookimpl(wrapper=True)
        def on_end(self) -> Generator[None, Any, Any]:
            return (yield)

        @hookimpl(wrapper=True)
        def build(self) -> Generator[None, Any, Any]:
            return (yield)

        @hookimpl(wrapper=True)
        def should(self) -> Generator[None, Any, Any]:
            return (yield)

    return member(Around, "around")


@pytest.fixture(params=["compiled", "through pluggy"])
def way(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes a dispatcher that calls by one of the two ways: both must behave alike."""

    def make(*members: Member, **options: Any) -> Any:
        extra = (around([]),) if request.param == "through pluggy" else ()
        return dispatcher(*extra, *members, **options)

    return make


def test_events_call_all_in_plan_order_and_ends_in_reverse(way: Callable[..., Any]) -> None:
    calls: list[Any] = []
    hooks = way(noting(calls, "a"), noting(calls, "b"))
    assert hooks.on_start(7, {}) is None
    hooks.on_end(8)
    assert calls == [
        ("a", "on_start", "a", 7),
        ("b", "on_start", "b", 7),
        ("b", "on_end", "b", 8),
        ("a", "on_end", "a", 8),
    ], "each gets the run that is bound to it"


def test_the_first_answer_of_a_provider_wins(way: Callable[..., Any]) -> None:
    calls: list[Any] = []
    hooks = way(noting(calls, "a"), noting(calls, "b", answer=0), noting(calls, "c", answer="c"))
    assert hooks.build(1) == 0, "also one that is false"
    assert [name for name, *_ in calls] == ["a", "b"]
    assert way(noting([], "a")).build(1) is None


def test_votes_are_gathered_with_their_names(way: Callable[..., Any]) -> None:
    hooks = way(noting([], "a", answer="yes"), noting([], "b"), noting([], "c", answer=False))
    assert hooks.should(1) == [("a", "yes")]
    assert way(noting([], "b")).should(1) == []


def test_hooks_that_nobody_implements_are_none() -> None:
    hooks = dispatcher(noting([], "a"))
    assert hooks.on_report is None
    with pytest.raises(AttributeError, match="there is no hook 'on_strat'"):
        _ = hooks.on_strat


def test_roles_and_providers_decide_who_is_asked_first() -> None:
    class Answers:
        @hookimpl
        def build(self, run: Any) -> Any:
            return run

    members = [
        member(Answers, "defaults", "builtin"),
        member(Answers, "task", "task"),
        member(Answers, "a"),
        member(Answers, "b"),
    ]
    assert dispatcher(*members).build(1) == "a"
    assert dispatcher(*members, providers={"build": "b"}).build(1) == "b"
    assert dispatcher(*members[:2]).build(1) == "task"


@pytest.mark.parametrize(("ranks", "expected"), [
    ({"all"}, ["all"]),
    ({"all", "local_zero"}, ["all", "local"]),
    ({"all", "local_zero", "zero"}, ["all", "local", "zero", "spec"]),
])  # fmt: skip
def test_ranks_gate_each_hookimpl(ranks: set[str], expected: list[str]) -> None:
    calls: list[str] = []

    class Everywhere:
        @hookimpl(ranks="all")
        def on_report(self) -> None:
            calls.append("all")

        @hookimpl(ranks="local_zero")
        def on_start(self) -> None:
            calls.append("local")

        @hookimpl(ranks="zero")
        def on_end(self) -> None:
            calls.append("zero")

        @hookimpl(specname="on_report")
        def by_default(self) -> None:
            calls.append("spec")

    hooks = dispatcher(member(Everywhere), ranks=frozenset(ranks))
    for call, arguments in ((hooks.on_report, ()), (hooks.on_start, (1, {})), (hooks.on_end, (1,))):
        if call:
            call(*arguments)
    assert sorted(calls) == sorted(expected)
    assert hooks.asks_for("on_report", "number") is False


def test_what_a_hookimpl_asks_for_is_known_on_all_ranks() -> None:
    class OnZero:
        @hookimpl(ranks="zero")
        def on_start(self, table: Any) -> None: ...

    hooks = dispatcher(member(OnZero), ranks=frozenset({"all"}))
    assert hooks.on_start is None
    assert hooks.asks_for("on_start", "table")
    assert not hooks.only_builtin("on_start")
    assert hooks.only_builtin("build")


def test_arguments_may_be_called_anything() -> None:
    seen = []

    class Broken:
        @hookimpl
        def on_words(self, error: Any) -> None:
            raise ValueError(error)

    class Reads:
        @hookimpl
        def on_words(
            self, error: Any, calls0: Any, clock: Any, answer: Any, begun: Any, faulty: Any, CAUGHT: Any
        ) -> None:
            seen.append((error, calls0, clock, answer, begun, faulty, CAUGHT))

    hooks = dispatcher(member(Broken, on_error="warn"), member(Reads), faults=[])
    hooks.on_words(*range(7))
    assert seen == [tuple(range(7))]


# --- errors ---


class Raises:
    error: BaseException = ValueError("broken")

    @hookimpl
    def on_start(self) -> None:
        raise self.error

    @hookimpl
    def build(self) -> None:
        raise self.error

    @hookimpl
    def should(self) -> None:
        raise self.error


@pytest.mark.parametrize("action", ["disable", "warn"])
def test_a_survived_error_is_told_and_the_rest_still_runs(way: Callable[..., Any], action: Any) -> None:
    calls: list[Any] = []
    faults: list[Fault] = []
    hooks = way(member(Raises, on_error=action), noting(calls, "a"), faults=faults)
    hooks.on_start(1, {})
    assert faults == [Fault("raises", "on_start", Raises.error, action)]
    assert [name for name, *_ in calls] == ["a"]


def test_a_fatal_error_in_an_event_is_raised_when_the_rest_has_run(way: Callable[..., Any]) -> None:
    calls: list[Any] = []
    hooks = way(member(Raises), member(Raises, "second"), noting(calls, "a"))
    for _ in range(2):  # nothing of it is left for the next call
        calls.clear()
        with pytest.raises(HookFailed, match="'raises' raised ValueError in on_start: broken") as caught:
            hooks.on_start(1, {})
        assert caught.value.__cause__ is Raises.error
        assert len(caught.value.__notes__) == 1
        assert [name for name, *_ in calls] == ["a"]


@pytest.mark.parametrize("hook", ["build", "should"])
def test_an_error_in_a_provider_or_vote_is_fatal_at_once(way: Callable[..., Any], hook: str) -> None:
    calls: list[Any] = []
    hooks = way(noting(calls, "z"), member(Raises, on_error="warn"))
    if hook == "build":
        hooks = way(member(Raises, on_error="warn"), noting(calls, "z", answer=1))
    with pytest.raises(HookFailed, match=f"'raises' raised ValueError in {hook}"):
        getattr(hooks, hook)(1)


def test_leaving_by_sys_exit_is_a_failure(way: Callable[..., Any]) -> None:
    class Leaves(Raises):
        error = SystemExit(0)

    with pytest.raises(HookFailed, match="raised SystemExit"):
        way(member(Leaves)).on_start(1, {})


def test_ctrl_c_passes_through(way: Callable[..., Any]) -> None:
    class Interrupted(Raises):
        error = KeyboardInterrupt()

    with pytest.raises(KeyboardInterrupt, match="plugin 'interrupted' raised KeyboardInterrupt in on_start"):
        way(member(Interrupted, on_error="warn")).on_start(1, {})


class Own(BaseException):
    """No `Exception`, as asyncio.CancelledError is none."""


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (asyncio.CancelledError(), "raised CancelledError in {}"),
        (Own("mine"), "raised Own in {}: mine"),
        (SystemExit(3), "raised SystemExit in {}: 3"),
        (Mute(), "raised Mute in {}: (no message: its __str__ raised RuntimeError)"),
    ],
)
def test_whatever_is_raised_names_plugin_and_hook(way: Callable[..., Any], error: BaseException, text: str) -> None:
    class Strange(Raises):
        pass

    Strange.error = error
    for hook, arguments in (("on_start", (1, {})), ("build", (1,)), ("should", (1,))):
        with pytest.raises(HookFailed) as caught:
            getattr(way(member(Strange)), hook)(*arguments)
        assert str(caught.value).startswith(f"plugin 'strange' {text.format(hook)}; to run without it")
        assert caught.value.__cause__ is error
    faults: list[Fault] = []
    way(member(Strange, on_error="warn"), faults=faults).on_start(1, {})
    assert [(fault.error, fault.action) for fault in faults] == [(error, "warn")]


@pytest.mark.parametrize("policy", ["fail", "warn"])
def test_what_trainrun_breaks_off_itself_is_no_error_of_the_plugin(way: Callable[..., Any], policy: Any) -> None:
    class Stopped(Raises):
        error = Interrupt()

    for hook, arguments in (("on_start", (1, {})), ("build", (1,))):
        with pytest.raises(Interrupt) as caught:
            getattr(way(member(Stopped, on_error=policy)), hook)(*arguments)
        assert caught.value is Stopped.error


# --- what votes return ---


def coroutine() -> Any:
    async def vote() -> str:
        return "yes"

    return vote()


class Falsy:
    """As a NumPy comparison returns it: false, but not False."""

    def __bool__(self) -> bool:
        return False


WRONG = {
    "true": (lambda: True, "True"),
    "number": (lambda: 0, "0"),
    "empty": (lambda: "", "''"),
    "blank": (lambda: " \n", r"' \n'"),
    "tensor": (lambda: torch.tensor(False), "a torch.Tensor"),
    "no bool": (Falsy, "a "),
    "coroutine": (coroutine, "a coroutine"),
    "generator": (lambda: (one for one in "yes"), "a generator"),
    "list": (lambda: ["yes"], "a list"),
    "bytes": (lambda: b"yes", "a bytes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_vote_returns_none_false_or_a_reason(way: Callable[..., Any], case: str) -> None:
    make, told = WRONG[case]

    class Votes:
        @hookimpl
        def should(self) -> Any:
            return make()

    line = Votes.should.__code__.co_firstlineno
    start = f"plugin 'votes': should (test_dispatch.py:{line}) returned {told}"
    end = "; return None for no, or a non-empty string with the reason; to run without it: -p no:votes"
    with pytest.raises(HookFailed) as caught:
        way(member(Votes), noting([], "b", answer="yes")).should(1)
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(end)
    assert isinstance(caught.value.__cause__, WrongReturn)
    for action in ("warn", "disable"):
        faults: list[Fault] = []
        hooks = way(member(Votes, on_error=action), noting([], "b", answer="yes"), faults=faults)
        assert hooks.should(1) == [("b", "yes")]
        assert [(fault.instance, fault.hook, fault.action) for fault in faults] == [("votes", "should", action)]


def test_a_vote_that_mutates_is_not_survived(way: Callable[..., Any]) -> None:
    class Votes:
        @hookimpl(mutates=True)
        def should(self) -> Any:
            return 1

    with pytest.raises(HookFailed, match=r"'votes': should \(test_dispatch.py:\d+\) returned 1; return None"):
        way(member(Votes, on_error="warn")).should(1)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ("no", "a wrapper of should returned 'no'; return a list of pairs"),
        (None, "a wrapper of should returned None; return a list of pairs"),
        ([("a", True)], "should returned True; return None for no"),
    ],
)
def test_a_wrapper_of_a_vote_returns_pairs(returned: Any, told: str) -> None:
    class Wraps:
        @hookimpl(wrapper=True)
        def should(self) -> Generator[None, Any, Any]:
            yield
            return returned

    with pytest.raises(HookFailed, match=f"plugin 'wraps': {told}"):
        dispatcher(member(Wraps, on_error="warn"), noting([], "a", answer="yes")).should(1)


def test_a_wrapper_may_take_a_vote_back() -> None:
    class Wraps:
        @hookimpl(wrapper=True)
        def should(self) -> Generator[None, Any, Any]:
            votes = yield
            return [(name, reason) for name, reason in votes if name != "a"] + [("wraps", False)]

    hooks = dispatcher(member(Wraps), noting([], "a", answer="yes"), noting([], "b", answer="b"))
    assert hooks.should(1) == [("b", "b")]


# --- copies ---


def test_no_plugin_changes_a_mapping_for_another(way: Callable[..., Any]) -> None:
    seen: list[Any] = []

    class Spoils:
        @hookimpl
        def on_table(self, table: Any) -> None:
            seen.append((table["loss"], list(table["parts"])))
            table["loss"] = 0.0
            table["parts"].clear()

    hooks, given = way(member(Spoils, "a"), member(Spoils, "b")), {"loss": 1.0, "parts": [1]}
    hooks.on_table(given)
    assert seen == [(1.0, [1]), (1.0, [1])]
    assert given == {"loss": 1.0, "parts": [1]}


# --- wrappers ---


def test_wrappers_stand_around_all_others() -> None:
    calls: list[Any] = []
    dispatcher(noting(calls, "a"), around(calls)).on_start(3, {})
    assert calls == [("around", "before", "around", 3), ("a", "on_start", "a", 3), ("around", "after", "around", 3)]


def wrapping(function: Callable[..., Any]) -> Member:
    class Wraps:
        build = hookimpl(wrapper=True)(function)

    return member(Wraps, on_error="warn")


def test_a_wrapper_may_transform_and_swallow() -> None:
    def build(self: Any, number: int) -> Generator[None, Any, Any]:
        try:
            return (yield) + number
        except ValueError as error:
            return str(error)

    assert dispatcher(wrapping(build), noting([], "a", answer=2)).build(40) == 42
    assert dispatcher(wrapping(build), member(Raises)).build(1) == "broken"


def before(self: Any) -> Generator[None, Any, Any]:
    raise KeyError("before")
    yield


def after(self: Any) -> Generator[None, Any, Any]:
    yield
    raise KeyError("after")


def instead(self: Any) -> Generator[None, Any, Any]:
    try:
        yield
    except ValueError as error:
        raise KeyError("instead") from error


def twice(self: Any) -> Generator[None, Any, Any]:
    yield
    yield


def never(self: Any, number: int) -> Generator[None, Any, Any]:
    if number < 0:
        yield


@pytest.mark.parametrize(
    ("function", "inner", "message"),
    [
        (before, noting([], "a", 1), "raised KeyError in build: 'before'"),
        (after, noting([], "a", 1), "raised KeyError in build: 'after'"),
        (instead, member(Raises), "raised KeyError in build: 'instead'"),
        (twice, noting([], "a", 1), "raised RuntimeError in build: a hook wrapper must yield exactly once"),
        (never, noting([], "a", 1), "raised RuntimeError in build: a hook wrapper must yield exactly once"),
    ],
)
def test_a_wrapper_that_fails_is_named(function: Any, inner: Member, message: str) -> None:
    hooks = dispatcher(wrapping(function), inner)
    for _ in range(2):
        with pytest.raises(HookFailed, match=f"'wraps' {message}"):
            hooks.build(1)


def test_an_error_within_a_wrapper_blames_who_raised_it() -> None:
    with pytest.raises(HookFailed, match="'raises' raised ValueError in build"):
        dispatcher(around([]), member(Raises)).build(1)


# --- calls within calls ---


def test_a_hookimpl_may_call_hooks(way: Callable[..., Any]) -> None:
    holder: list[Any] = []

    class Calls:
        @hookimpl
        def on_start(self, number: int) -> None:
            if number:
                holder[0].on_start(number - 1, {})
            answers.append((number, holder[0].build(number), holder[0].should(number)))

    answers: list[Any] = []
    calls: list[Any] = []
    holder.append(way(member(Calls), noting(calls, "a", answer="x")))
    holder[0].on_start(2, {})
    assert answers == [(number, "x", [("a", "x")]) for number in range(3)]
    assert [call[3] for call in calls if call[1] == "on_start"] == [0, 1, 2]


def test_a_failure_in_an_inner_call_fails_the_run_and_blames_the_inner(way: Callable[..., Any]) -> None:
    holder: list[Any] = []

    class Calls:
        @hookimpl
        def on_start(self) -> None:
            holder[0].build(1)

    holder.append(way(member(Calls, on_error="disable"), member(Raises, "inner", on_error="warn"), faults=[]))
    with pytest.raises(HookFailed, match="'inner' raised ValueError in build"):
        holder[0].on_start(1, {})


# --- taking plugins out ---


def test_a_disabled_plugin_is_out_of_every_hook(way: Callable[..., Any]) -> None:
    calls: list[Any] = []
    hooks = way(noting(calls, "a", answer="a"), noting(calls, "b", answer="b"))
    hooks.on_start(1, {})
    assert hooks.disable("a")
    assert not hooks.disable("a")
    assert not hooks.disable("unknown")
    calls.clear()
    hooks.on_start(1, {})
    assert {name for name, *_ in calls} == {"b"}
    assert hooks.build(1) == "b"
    assert "a" not in [one.instance.name for one in hooks.members]
    rows = {(row.instance, row.hook): row.calls for row in hooks.cost.table()}
    assert rows["a", "on_start"] == 1, "what it has cost is not forgotten"
    assert rows["b", "on_start"] == 2


def test_disabling_the_only_one_leaves_nobody() -> None:
    hooks = dispatcher(noting([], "a"))
    hooks.disable("a")
    assert hooks.on_start is None


def test_a_plugin_may_be_disabled_from_within_a_call() -> None:
    holder: list[Any] = []
    calls: list[Any] = []

    class Disables:
        @hookimpl
        def on_start(self) -> None:
            holder[0].disable("a")

    holder.append(dispatcher(member(Disables), noting(calls, "a")))
    holder[0].on_start(1, {})
    assert len(calls) == 1, "the call at hand goes on"
    holder[0].on_start(1, {})
    assert len(calls) == 1


def test_two_instances_of_a_plugin_bring_the_same_hooks() -> None:
    hooks = Dispatcher(
        [noting([], "a")],
        by_name(specs_in(Specs)),
        [Specs, Specs],
        ranks=ALL,
        providers={},
        on_fault=lambda fault: None,
    )
    assert hooks.on_start


# --- cost ---


def test_calls_and_times_are_counted(way: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    for module in ("dispatch", "generated"):
        monkeypatch.setattr(f"trainrun.plugin.{module}.perf_counter", lambda: float(next(ticks)))
    calls: list[Any] = []
    hooks = way(noting(calls, "a"), noting(calls, "b", answer="b"), noting(calls, "c"))
    for _ in range(3):
        hooks.on_start(1, {})
        hooks.build(1)
        hooks.should(1)
    rows = {(row.instance, row.hook): row for row in hooks.cost.table()}
    assert {key: row.calls for key, row in rows.items() if key[0] != "around"} == {
        **{(name, hook): 3 for name in "abc" for hook in ("on_start", "should")},
        ("a", "build"): 3,
        ("b", "build"): 3,
    }, "c is not asked when b answers"
    assert all(row.total_seconds >= row.calls and row.max_seconds >= 1 for row in rows.values())
    for name in "abc":
        assert rows[name, "on_start"].total_seconds == 3


def test_a_wrapper_is_not_charged_for_what_it_stands_around(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("trainrun.plugin.dispatch.perf_counter", lambda: now[0])

    def build(self: Any) -> Generator[None, Any, Any]:
        now[0] += 1
        answer = yield
        now[0] += 2
        return answer

    class Slow:
        @hookimpl
        def build(self) -> int:
            now[0] += 100
            return 1

    hooks = dispatcher(wrapping(build), member(Slow))
    hooks.build(1)
    assert {row.instance: row.total_seconds for row in hooks.cost.table()} == {"slow": 100, "wraps": 3}


# --- in the background ---


class Behind:
    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.open = threading.Event()

    @hookimpl(background=True)
    def on_start(self, run: Any, number: int, table: Any) -> None:
        assert self.open.wait(PATIENCE)
        self.seen.append((run, number, table, threading.current_thread() is threading.main_thread()))


def test_background_calls_get_snapshots_on_their_own_thread(way: Callable[..., Any]) -> None:
    behind, table = Behind(), {"loss": 1.0}
    hooks = way(member(behind))
    hooks.on_start(1, table)
    table["loss"] = 2.0
    hooks.on_start(2, table)
    behind.open.set()
    assert hooks.drain(PATIENCE) == {}
    assert behind.seen == [("behind", 1, {"loss": 1.0}, False), ("behind", 2, {"loss": 2.0}, False)]


def test_lost_background_calls_are_counted_by_instance() -> None:
    behind = Behind()
    hooks = dispatcher(member(behind, queue=1))
    for number in range(4):
        hooks.on_start(number, {})
    lost = hooks.drain(0.01)
    behind.open.set()
    hooks.drain(PATIENCE)
    # The first may still wait in the queue when the second comes, and be dropped; what hangs at the end is lost too.
    assert {name: one.count for name, one in lost.items()} == {"behind": 4}


@pytest.mark.parametrize("action", ["fail", "disable", "warn"])
@pytest.mark.parametrize(
    "error",
    [ValueError("behind"), asyncio.CancelledError(), SystemExit(1), KeyboardInterrupt(), Own(), Mute()],
    ids=repr,
)
def test_background_errors_are_told_from_their_thread(action: Any, error: BaseException) -> None:
    class Broken:
        @hookimpl(background=True)
        def on_start(self) -> None:
            raise error

    faults: list[Fault] = []
    # With room for one: a thread that has ended would leave the third call waiting for ever.
    hooks = dispatcher(member(Broken, on_error=action, queue=1, when_full="block"), faults=faults)
    for _ in range(3):
        hooks.on_start(1, {})
    assert hooks.drain(PATIENCE) == {}
    assert len(faults) == 3, "the thread has outlived each of them"
    for fault in faults:
        assert (fault.instance, fault.hook, fault.action) == ("broken", "on_start", action)
        assert (fault.error.__cause__ if action == "fail" else fault.error) is error
        if action == "fail":
            assert str(fault.error).startswith(f"plugin 'broken' raised {type(error).__name__} in on_start")


def test_what_waits_for_a_disabled_plugin_is_left_out() -> None:
    behind = Behind()
    hooks = dispatcher(member(behind))
    hooks.on_start(1, {})
    hooks.on_start(2, {})
    hooks.disable("behind")
    behind.open.set()
    hooks.drain(PATIENCE)
    assert len(behind.seen) <= 1


# --- what a pulse shows ---


class Shown:
    """A pulse, and the hookimpl that it shows."""

    def __init__(self) -> None:
        self.pulse = Pulse()
        self.found: list[tuple[str, str] | None] = []
        self._names = {
            self.pulse.crumb(name, hook): (name, hook)
            for name in ("a", "b", "around", "nests", "outer")
            for hook in ("on_start", "on_end", "build", "should")
        }

    def look(self) -> tuple[str, str] | None:
        return self._names.get(self.pulse.slots[CRUMB])

    def plugin(self, name: str, answer: Any = None) -> Member:
        class Looks:
            @hookimpl
            def on_start(inner) -> None:
                self.found.append(self.look())

            @hookimpl
            def build(inner) -> Any:
                self.found.append(self.look())
                return answer

            @hookimpl
            def should(inner) -> Any:
                self.found.append(self.look())
                return answer

        return member(Looks, name)


@pytest.mark.parametrize("hook", ["on_start", "build", "should"])
def test_the_pulse_shows_each_hookimpl_while_it_runs(way: Callable[..., Any], hook: str) -> None:
    shown = Shown()
    hooks = way(shown.plugin("a"), shown.plugin("b"), pulse=shown.pulse)
    getattr(hooks, hook)(*((1, {}) if hook == "on_start" else (1,)))
    assert sorted(filter(None, shown.found)) == [("a", hook), ("b", hook)]
    assert shown.look() is None


@pytest.mark.parametrize("hook", ["build", "should"])
def test_the_pulse_shows_nothing_after_an_answer(way: Callable[..., Any], hook: str) -> None:
    shown = Shown()
    hooks = way(shown.plugin("a", "answer"), pulse=shown.pulse)
    getattr(hooks, hook)(1)
    assert (shown.found, shown.look()) == ([("a", hook)], None)


def test_a_hook_called_by_a_hook_gives_the_outer_one_back(way: Callable[..., Any]) -> None:
    shown = Shown()

    class Nests:
        @hookimpl
        def on_start(self) -> None:
            shown.found.append(shown.look())
            hooks.build(1)
            shown.found.append(shown.look())

    hooks = way(member(Nests, "nests"), shown.plugin("b", 1), pulse=shown.pulse)
    hooks.on_start(1, {})
    nests, inner = ("nests", "on_start"), ("b", "build")
    assert shown.found == [nests, inner, nests, ("b", "on_start")]
    assert shown.look() is None


def test_a_survived_error_leaves_nothing_in_the_pulse(way: Callable[..., Any]) -> None:
    shown = Shown()

    class Raises:
        @hookimpl
        def on_start(self) -> None:
            raise ValueError

    faults: list[Fault] = []
    hooks = way(member(Raises, "a", on_error="warn"), shown.plugin("b"), pulse=shown.pulse, faults=faults)
    hooks.on_start(1, {})
    assert (shown.found, shown.look(), len(faults)) == ([("b", "on_start")], None, 1)


def test_the_pulse_shows_a_wrapper_only_while_it_works() -> None:
    shown = Shown()

    class Outer:
        @hookimpl(wrapper=True)
        def build(self) -> Generator[None, Any, Any]:
            shown.found.append(shown.look())
            answer = yield
            shown.found.append(shown.look())
            return answer

    hooks = dispatcher(member(Outer, "outer"), shown.plugin("a", 1), pulse=shown.pulse)
    assert hooks.build(1) == 1
    assert shown.found == [("outer", "build"), ("a", "build"), ("outer", "build")]
    assert shown.look() is None


def test_without_a_pulse_nothing_is_noted() -> None:
    shown = Shown()
    hooks = dispatcher(shown.plugin("a"))
    hooks.on_start(1, {})
    assert shown.found == [None]


class Clumsy:
    @hookimpl
    def on_start(self) -> None:
        raise ValueError("no")


class ClumsyLater:
    @hookimpl(background=True)
    def on_start(self) -> None:
        raise ValueError("no")


def test_tracebacks_begin_with_the_hookimpl(way: Callable[..., Any]) -> None:
    with pytest.raises(HookFailed) as caught:
        way(member(Clumsy)).on_start(1, None)
    assert caught.value.__cause__ is not None
    first = hookimpl_traceback(caught.value.__cause__).splitlines()[1]
    assert f'"{__file__}"' in first
    assert first.endswith("in on_start")


def test_tracebacks_of_the_background_begin_with_the_hookimpl() -> None:
    faults: list[Fault] = []
    hooks = dispatcher(member(ClumsyLater, on_error="warn"), faults=faults)
    hooks.on_start(1, None)
    assert hooks.drain(10.0) == {}
    (fault,) = faults
    first = hookimpl_traceback(fault.error).splitlines()[1]
    assert f'"{__file__}"' in first
    assert first.endswith("in on_start")


def test_it_is_said_whose_provider_returned_something() -> None:
    task = member(noting([], "task").plugin, "task", role="task")
    plugin, second = noting([], "first"), noting([], "second")
    assert dispatcher(task).whose("build") == "; build is that of task (m:Noting)"
    both = dispatcher(task, plugin)
    assert both.provider("build").name == "first"  # plugins are asked before the task
    both_names = "plugin first (m:Noting), or if it returned None of task (m:Noting)"
    assert both.whose("build") == f"; build is that of {both_names}"
    chosen = dispatcher(task, plugin, second, providers={"build": "second"})
    assert chosen.provider("build").name == "second"
