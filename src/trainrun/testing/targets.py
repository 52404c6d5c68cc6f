"""Making a test's own plugins loadable: a recipe names plugins by something to import."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from trainrun.errors import UsageError
from trainrun.plugin.cache import Store, cache_folder
from trainrun.plugin.describe import Target
from trainrun.plugin.inspecting import describe_object

if TYPE_CHECKING:
    import pytest


def plugin_name(plugin: object) -> str:
    """Return the name of a plugin that is passed to a run.

    StepCounter is called `step-counter`.
    """
    named = plugin if isinstance(plugin, type | ModuleType) else type(plugin)
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", named.__name__.rpartition(".")[2])
    return words.replace("_", "-").lower()


class LivePlugins:
    """Targets for plugins that exist in this process only: classes from within a test, and instances.

    A module made here holds them. No other process could import it, so their descriptions, for which `resolve` would
    start a process, are put into the cache.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._module = ModuleType(f"trainrun_live_{id(self):x}")
        self._path = folder / f"{self._module.__name__}.py"
        self._path.write_text('"""Stands for the plugins of a test."""\n', encoding="utf-8")
        self._module.__file__ = str(self._path)
        monkeypatch.setitem(sys.modules, self._module.__name__, self._module)
        monkeypatch.setattr(sys, "path", list(sys.path))  # loading by path adds the folder

    def target(self, plugin: object) -> str:
        """Return a target that loads to `plugin`.

        The plugin is a class, a module, or an instance.
        """
        attribute = f"plugin_{len(vars(self._module))}"
        found = plugin if isinstance(plugin, type | ModuleType) else _class_for(plugin)
        setattr(self._module, attribute, found)
        target = f"{self._path}:{attribute}"
        # Validators run when the plugin is made, which is in this process too.
        description = describe_object(target, found)._replace(has_validators=False)
        Store(cache_folder()).put(description.to_json(), description.files, *Target(target).key)
        return target


def importable_target(plugin: object) -> str:
    """Return a target by which other processes can import `plugin`.

    It is a class or module that is written in a file.
    """
    if not isinstance(plugin, type | ModuleType):
        raise UsageError(f"launch_recipe: workers make their own plugins; pass the class, not {plugin!r}")
    name, attribute = _names(plugin)
    if "<locals>" in attribute:
        raise UsageError(f"launch_recipe: workers cannot import {attribute}; define it at the top of its module")
    file = inspect.getsourcefile(plugin)
    if file is None:
        raise UsageError(f"launch_recipe: {plugin!r} is not written in a file that workers could import")
    module = name if _is_importable(name, Path(file)) else file
    return f"{module}:{attribute}" if attribute else module


def _names(plugin: type | ModuleType) -> tuple[str, str]:
    return (plugin.__name__, "") if isinstance(plugin, ModuleType) else (plugin.__module__, plugin.__qualname__)


def _is_importable(module: str, file: Path) -> bool:
    """Return whether a new process would find this file by its module name.

    Not under the names pytest gives to tests.
    """
    spec = PathFinder.find_spec(module.partition(".")[0])
    if spec is None or spec.origin is None:  # a namespace: any folder below a place that only pytest searches is one
        return False
    places = spec.submodule_search_locations or [spec.origin]
    return any(file.resolve().is_relative_to(Path(place).resolve()) for place in places)


def _class_for(instance: object) -> type:
    """Return a class that returns `instance` when it is called.

    Plugins are made by calling their class.
    """
    base = type(instance)

    members = {"__new__": lambda _: instance, "__doc__": base.__doc__, "Options": None}
    return type(base.__name__, (base,), members)


def unload(folder: Path) -> None:
    """Forget the modules that were loaded from below `folder`.

    The next test's modules may then have the same names.
    """
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and Path(file).is_relative_to(folder):
            del sys.modules[name]
    importlib.invalidate_caches()
