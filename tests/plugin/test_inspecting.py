from __future__ import annotations

import asyncio
import functools
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pluggy
import pydantic
import pytest

from trainrun import Field, PluginOptions, hookimpl, hookspec
from trainrun.plugin.description import Description
from trainrun.plugin.inspecting import describe_object, stray_impl


class Full:
    """Count things. And more.

    Details.
    """

    class Options(PluginOptions):
        limit: int = Field(3, ge=1, live=True)

    before = "metrics"
    after = ("a", "b")
    on_error = "disable"
    poll_interval = 2.5

    def __init__(self, options: Options) -> None:
        raise AssertionError("describing must not make the plugin")

    @property
    def surprise(self) -> None:
        raise AssertionError("describing must not read properties")

    @hookimpl(ranks="zero", background=True)
    def on_log(self, metrics, step=0): ...

    @hookimpl(specname="on_step_end", tryfirst=True, mutates=True)
    def later(self, *, loss, **rest): ...

    @staticmethod
    @hookimpl
    def on_epoch_start(epoch): ...

    @hookimpl(wrapper=True)
    def training_step(self, batch):
        return (yield)

    def on_step_start(self): ...


def test_describes_everything_a_class_declares() -> None:
    found = describe_object("here:Full", Full)
    assert found.ok
    assert found.summary == "Count things."
    assert (found.before, found.after) == (("metrics",), ("a", "b"))
    assert (found.on_error, found.poll_interval, found.live) == ("disable", 2.5, ("limit",))
    assert found.options_schema is not None
    assert found.options_schema["properties"]["limit"]["minimum"] == 1
    assert found.unmarked == ("on_step_start",)
    assert found.file == __file__
    assert found.files == (__file__,)


def test_describes_each_hookimpl() -> None:
    impls = {impl.function: impl for impl in describe_object("here:Full", Full).impls}
    assert set(impls) == {"on_log", "later", "on_epoch_start", "training_step"}
    assert (impls["on_log"].ranks, impls["on_log"].background) == ("zero", True)
    assert impls["on_log"].arguments == ("metrics", "step")
    assert (impls["later"].hook, impls["later"].tryfirst, impls["later"].mutates) == ("on_step_end", True, True)
    assert (impls["later"].keyword_only, impls["later"].var_keyword) == (("loss",), True)
    assert impls["on_epoch_start"].arguments == ("epoch",)
    assert impls["training_step"].wrapper


def test_survives_json() -> None:
    found = describe_object("here:Full", Full)
    assert Description.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_module_is_a_plugin_too() -> None:
    module = ModuleType("a_task", "Train nothing.")
    vars(module).update(on_log=hookimpl(lambda step: None), helper=lambda: None)
    found = describe_object("a_task", module)
    assert found.ok
    assert [(impl.hook, impl.arguments) for impl in found.impls] == [("on_log", ("step",))]


def test_finds_the_hookspecs_that_a_plugin_brings() -> None:
    class Specs:
        @hookspec(locus="worker", kind="event", ranks="zero", host=("count",))
        def on_counted(self, run, count):
            """Something was counted."""

    class Counter:
        hookspecs = Specs

    (spec,) = describe_object("here:Counter", Counter).specs
    assert (spec.hook, spec.arguments, spec.host) == ("on_counted", ("run", "count"), ("count",))


class Nested(pydantic.BaseModel):
    even: int

    @pydantic.field_validator("even")
    @classmethod
    def check(cls, value: int) -> int:
        return value


def test_notices_validators_anywhere_in_the_options() -> None:
    class Checked:
        class Options(PluginOptions):
            nested: Nested | None = None

        def __init__(self, options: Any) -> None: ...

    assert describe_object("here:Checked", Checked).has_validators
    assert not describe_object("here:Full", Full).has_validators


def _class(**attributes: Any) -> type:
    return type("Plugin", (), attributes)


class Abstract(ABC):
    @abstractmethod
    def missing(self) -> None: ...


class Unspeakable(PluginOptions):
    callback: Callable[[], int]


@pytest.mark.parametrize(
    ("plugin", "error"),
    [
        (3, "a class or a module, not an int"),
        (_class(Options=int), "Options must be a subclass"),
        (_class(Options=Full.Options), "it is made with the options"),
        (_class(__init__=lambda self, options: None), "it is made with no arguments"),
        (_class(before=3), "before must be"),
        (_class(on_error="explode"), "on_error must be one of"),
        (_class(poll_interval=-1), "poll_interval must be"),
        (_class(on_log=hookimpl(wrapper=True)(lambda self: None)), "needs a function with one yield"),
        (Abstract, "it is abstract"),
        (_class(Options=Unspeakable, __init__=lambda self, options: None), "no JSON Schema"),
    ],
)
def test_says_what_cannot_be_used(plugin: object, error: str) -> None:
    found = describe_object("here:Plugin", plugin)
    assert not found.ok
    assert found.error is not None
    assert error in found.error


# --- what would never be called ---


class Coroutine:
    @hookimpl
    async def on_log(self) -> None: ...


class Generator:
    @hookimpl
    def on_log(self) -> Any:
        yield


class AsyncWrapper:
    @hookimpl(wrapper=True)
    async def on_log(self) -> Any:
        yield


class Marks:
    def __init__(self) -> None:
        self.on_log = hookimpl(lambda metrics: None)


class Old:
    @pluggy.HookimplMarker("trainrun")(hookwrapper=True)
    def on_log(self) -> Any:
        yield


def partly() -> type:
    """A hook that is a partial, with the mark of the function that it calls."""
    made = functools.partial(lambda self, step: None)
    made.__dict__.update(vars(hookimpl(lambda self: None)))
    return _class(on_log=made)


@pytest.mark.parametrize(
    ("plugin", "error"),
    [
        (Coroutine, "on_log (test_inspecting.py:{}): async functions are not awaited, so its body would never run"),
        (AsyncWrapper, "on_log (test_inspecting.py:{}): async functions are not awaited"),
        (
            Generator,
            "on_log (test_inspecting.py:{}): it has a yield, so its body would never run; use hookimpl(wrapper",
        ),
        (Marks, "__init__ (test_inspecting.py:{}) marks a hook, which would not be called; mark a method"),
        (Old, "on_log (test_inspecting.py:{}): hookwrapper=True is pluggy's old style; use hookimpl(wrapper=True)"),
        (partly(), "on_log is marked with hookimpl, but is a partial object: only functions are called"),
    ],
)
def test_what_would_never_be_called_is_refused(plugin: type, error: str) -> None:
    found = describe_object("here:Plugin", plugin)
    assert not found.ok
    code = next((one.__code__ for one in vars(plugin).values() if inspect.isfunction(one)), None)
    assert error.format(code.co_firstlineno if code else "") in str(found.error)


def test_a_decorated_async_function_that_is_run_is_right() -> None:
    def run(function: Any) -> Any:
        @functools.wraps(function)
        def sync(self: Any) -> None:
            asyncio.run(function(self))

        return sync

    async def on_log(self: Any) -> None: ...

    assert describe_object("here:Plugin", _class(on_log=hookimpl(run(on_log)))).ok


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_the_mark_may_stand_above_or_below(kind: Any) -> None:
    def above(*, first: str) -> Any:
        namespace: dict[str, Any] = {"kind": kind, "hookimpl": hookimpl}
        exec(f"def on_log({first}metrics): ...", namespace)
        return namespace["on_log"]

    first = "cls, " if kind is classmethod else ""
    plugins = [_class(on_log=hookimpl(kind(above(first=first)))), _class(on_log=kind(hookimpl(above(first=first))))]
    for plugin in plugins:
        found = describe_object("here:Plugin", plugin)
        assert [(impl.hook, impl.arguments) for impl in found.impls] == [("on_log", ("metrics",))]
        assert found.unmarked == ()


def test_other_callables_that_are_not_marked_are_noted() -> None:
    assert describe_object("here:Plugin", _class(on_log=functools.partial(print))).unmarked == ("on_log",)


@pytest.mark.parametrize("value", [functools.partial(print), Full, print, property(lambda self: None), 3])
def test_only_functions_are_marked(value: Any) -> None:
    with pytest.raises(TypeError, match=r"hookimpl marks functions, and this is a \w+ object; write a function"):
        hookimpl(value)


def test_options_that_hookimpl_does_not_take() -> None:
    with pytest.raises(TypeError, match="takes no 'hookwrapper', which is pluggy's old style; use wrapper=True"):
        hookimpl(hookwrapper=True)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="takes no 'rank'; its options are ranks, background"):
        hookimpl(rank="zero")  # type: ignore[call-overload]


def test_a_made_plugin_that_holds_a_hook_is_told() -> None:
    class Holds:
        @hookimpl
        def on_log(self) -> None: ...

        def __init__(self) -> None:
            self.on_step_end = MARKED
            self.callback = self.on_log  # a method of the class may be kept

    assert describe_object("here:Plugin", Holds).ok
    assert stray_impl(Holds()) == (
        "its attribute on_step_end is marked with hookimpl, but only methods of the class are called"
    )


MARKED = hookimpl(lambda step: None)


@pytest.mark.parametrize(
    "error", [SyntaxError("invalid syntax"), SystemError("AST constructor recursion depth mismatch")]
)
def test_a_source_that_cannot_be_read_leaves_the_line_unknown(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(inspect, "getsourcelines", fail)
    monkeypatch.setattr(inspect, "getsource", fail)
    described = describe_object("here:Full", Full)
    assert described.line == 0
    assert described.doc.startswith("Count things.")
