from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pydantic
import pytest

from trainrun import Field, PluginOptions, hookimpl, hookspec
from trainrun.plugin.description import Description
from trainrun.plugin.inspecting import describe_object


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
