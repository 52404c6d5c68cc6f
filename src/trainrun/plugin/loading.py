"""From an instance to the live plugin, in the process in which it runs."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from trainrun.errors import PluginProblem, Problem
from trainrun.plugin import import_errors
from trainrun.plugin.description import Description
from trainrun.plugin.guard import CAUGHT, Interrupt
from trainrun.plugin.inspecting import brought_specs, describe_object, options_of, stray_impl
from trainrun.plugin.instance import Instance
from trainrun.plugin.options import PluginOptions
from trainrun.plugin.targets import load, see_working_folder


@dataclass(frozen=True)
class Loaded:
    """An imported plugin. `plugin` holds the hookimpls; `hookspecs` is what it brings, to give to pluggy."""

    instance: Instance
    plugin: object
    options: PluginOptions | None
    description: Description
    hookspecs: type | ModuleType | None


def load_plugin(instance: Instance) -> Loaded:
    """Import the target and make the plugin.

    Raises PluginProblem if it cannot be used, with the cause.
    """
    see_working_folder()
    try:
        found = load(instance.target)
        description = describe_object(instance.target, found)
        options = _options(instance, found) if description.ok else None
        plugin = _make(found, options) if description.ok else found
        stray = stray_impl(plugin) if description.ok else None
    except Interrupt:
        raise
    except CAUGHT as error:
        what = import_errors.summary(error, whole=True)  # the message about wrong options has several lines
        raise _problem(instance, what, import_errors.user_traceback(error)) from error
    if not description.ok:
        raise _problem(instance, description.error or "it cannot be used")
    if stray is not None:
        raise _problem(instance, stray)
    return Loaded(instance, plugin, options, description, brought_specs(found))


def _options(instance: Instance, found: object) -> PluginOptions | None:
    model = options_of(found)
    return None if model is None else model.from_table(instance.options)


def _make(found: object, options: PluginOptions | None) -> object:
    if not isinstance(found, type):
        return found
    return found() if options is None else found(options)


def _problem(instance: Instance, what: str, traceback: str | None = None) -> PluginProblem:
    problem = Problem(instance.where, f"cannot be loaded: {what}", instance.switch or None, traceback=traceback)
    return PluginProblem([problem])
