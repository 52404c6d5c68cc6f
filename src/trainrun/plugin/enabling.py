"""Which plugins a recipe and the command line turn on, and as what."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.machinery import PathFinder
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from trainrun.builtin import BUILTINS
from trainrun.errors import Problem
from trainrun.plugin.catalogue import clash, target_of_builtin
from trainrun.plugin.conditions import conditions, known, unknown, unmet
from trainrun.plugin.describe import Target
from trainrun.plugin.description import Description
from trainrun.plugin.discovery import PLUGINS, EntryPoint, Installed
from trainrun.plugin.distributions import OWNERS, advice
from trainrun.plugin.instance import TASK, Instance, Role
from trainrun.plugin.targets import absolute, is_path, split
from trainrun.recipe.complete import complete
from trainrun.recipe.document import Document
from trainrun.recipe.schema import Schema
from trainrun.recipe.source import Location
from trainrun.recipe.suggest import did_you_mean

_OFF = "no:"
_BUILTINS = dict(BUILTINS)


class Wish(NamedTuple):
    """The mention of a plugin: `place` says in which file or option, `why` by what.

    `table` is what the recipe says about it.
    """

    name: str
    role: Role
    use: str
    place: Location
    why: str
    table: Mapping[str, Any] = MappingProxyType({})


class Request(NamedTuple):
    """A wish for a plugin that was found. Only its location is known yet."""

    wish: Wish
    instance: Instance
    target: Target


class Enabled:
    """What is to be on, in the order in which it was named, and what stood in the way."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.recipe_problems: list[Problem] = []
        self.plugin_problems: list[Problem] = []
        self.off: set[str] = set()
        self.notes: list[str] = []

    def leave_out_incomplete(self, descriptions: Mapping[str, Description]) -> None:
        """Drop plugins of `run.autoload` that need options, with a note.

        Only a table can give these options.
        """
        for request in [one for one in self.requests if one.wish.why == "autoload"]:
            schema = descriptions[request.instance.target].options_schema or {}
            if missing := schema.get("required"):
                self.requests.remove(request)
                self.notes.append(
                    f"run.autoload leaves out {request.wish.name}, because {', '.join(missing)} has no default;"
                    f" to enable it, set it in [plugins.{request.wish.name}]"
                )


def enable(document: Document, installed: Installed, schema: Schema, switches: Sequence[str] = ()) -> Enabled:
    """Enable all plugins that are asked for.

    These are built-ins, the task, the recipe's plugins, then those of `-p` and of autoload.

    schema: that of a recipe without plugins, for the defaults of what conditions name.
    """
    return _Enabling(document, installed, schema, switches).result


class _Enabling:
    def __init__(self, document: Document, installed: Installed, schema: Schema, switches: Sequence[str]) -> None:
        self.result = Enabled()
        self._document = document
        self._schema = schema
        self._installed = installed
        self._tables = {name: table for name, table in _table(document.data, "plugins").items() if _is_table(table)}
        self._on = {name: f"-p #{number}" for number, name in enumerate(switches, 1) if not name.startswith(_OFF)}
        self._off = {
            name.removeprefix(_OFF): f"-p #{number}" for number, name in enumerate(switches, 1) if name.startswith(_OFF)
        }
        self._check_off()
        self._add_builtins()
        self._add_task()
        self._add_tables()
        self._add_backend()
        self._add_switches()
        self._add_autoload()

    # --- who is asked for ---

    def _add_builtins(self) -> None:
        for name in _BUILTINS:
            table = self._tables.get(name, {})
            if "use" not in table and self._is_on(name, None, table):
                wish = Wish(name, "builtin", name, self._place("plugins", name), "built-in", table)
                self._request(wish, target_of_builtin(name))

    def _add_task(self) -> None:
        table = _table(self._document.data, "task")
        use = table.get("use")
        if isinstance(use, str) and use:
            self._find(Wish(TASK, "task", use, self._place("task", "use"), "task", table))

    def _add_tables(self) -> None:
        for name, table in self._tables.items():
            use = table.get("use", name)
            place = self._place("plugins", name)
            if name in _BUILTINS and "use" not in table:
                continue
            if name == TASK:
                self._wrong(place, f"plugins.{name}: the name is taken by the recipe's task", "choose another name")
            elif isinstance(use, str) and self._is_on(name, use, table):
                self._find(Wish(name, "plugin", use, place, "recipe order", table))

    def _add_backend(self) -> None:
        backend = _table(self._document.data, "launch").get("backend", "local")
        if isinstance(backend, str) and backend not in _BUILTINS and not self._has(backend):
            self._find(Wish(backend, "plugin", backend, self._place("launch", "backend"), "launch.backend"))

    def _add_switches(self) -> None:
        for name, place in self._on.items():
            if not self._has(name) and name not in self._tables:
                self._find(Wish(name, "plugin", name, Location(place), place))

    def _add_autoload(self) -> None:
        if _table(self._document.data, "run").get("autoload") is not True:
            return
        for name, (first, *_) in self._installed.plugins.items():
            used = any(request.instance.plugin == name for request in self.result.requests)
            # The examples are tasks: as plugins they would implement hooks in place of the recipe's own task.
            if not used and name not in {*self._tables, *self._off} and first.distribution != "trainrun":
                self._find(Wish(name, "plugin", name, self._place("run", "autoload"), "autoload"))

    # --- on or off ---

    def _is_on(self, name: str, use: str | None, table: Mapping[str, Any]) -> bool:
        if name in self._off or use in self._off:
            on = False
        else:
            on = name in self._on or self._wanted(name, table.get("enabled", True))
        if not on:
            self.result.off.add(name)
        return on

    def _wanted(self, name: str, enabled: Any) -> bool:
        """Return whether the table's `enabled` turns the plugin on.

        A value of the wrong type is left to the check.
        """
        if not isinstance(enabled, Mapping):
            return enabled is not False
        wanted = conditions(enabled)
        for key in unknown(wanted, self._schema):
            hint = did_you_mean(key, known(self._schema)) or 'keys are written as in train.precision = "bf16"'
            self._wrong(self._place("plugins", name, "enabled"), f"plugins.{name}.enabled: no recipe has {key!r}", hint)
        why = unmet(wanted, complete(self._document.data, self._schema))
        if why is not None:
            self.result.notes.append(f"plugin {name} is off, because {why}")
        return why is None

    def _check_off(self) -> None:
        names = {*_BUILTINS, *self._tables, *self._installed.plugins}
        for name, place in self._off.items():
            if name not in names:
                self._wrong(Location(place), f"no plugin is called {name!r}", did_you_mean(name, sorted(names)))
            elif name in self._on:
                self._wrong(Location(place), f"{name!r} is turned on by {self._on[name]} and off", "leave out one")

    def _has(self, name: str) -> bool:
        return any(request.instance.name == name for request in self.result.requests)

    # --- what it stands for ---

    def _find(self, wish: Wish) -> None:
        entries = self._installed.plugins.get(wish.use, ())
        if len(entries) > 1 or (entries and wish.use in _BUILTINS):
            self.result.plugin_problems.append(clash(wish.use, entries))
        elif entries:
            self._request(wish, Target.of(entries[0]), entries[0])
        elif wish.use in _BUILTINS:
            self._request(wish, target_of_builtin(wish.use))
        elif _is_target(wish.use) or (wish.role == "task" and _is_module(wish.use)):
            self._find_target(wish)
        else:
            self._unknown(wish)

    def _find_target(self, wish: Wish) -> None:
        target = absolute(wish.use, self._document.path.parent)
        module, _ = split(target)
        entry = next((one for one in self._installed.entry_points if (one.group, one.value) == (PLUGINS, target)), None)
        if is_path(target) and not Path(module).is_file():
            self._wrong(wish.place, f"there is no file {wish.use!r}", "paths are relative to the recipe's folder")
        elif not is_path(target) and not _is_module(module):
            self._unknown(wish)
        else:
            self._request(wish, Target.of(entry) if entry else Target(target), entry)

    def _unknown(self, wish: Wish) -> None:
        names = [*self._installed.plugins, *(() if wish.role == "task" else _BUILTINS)]
        hint = advice(wish.use) if wish.use in OWNERS else did_you_mean(wish.use, names) or advice(wish.use)
        if wish.role == "task" and wish.use not in OWNERS:
            hint += "; or name a module or a file such as tasks/mine.py"
        self._wrong(wish.place, f"{wish.role} {wish.use!r} is not installed", hint)

    def _request(self, wish: Wish, target: Target, entry: EntryPoint | None = None) -> None:
        instance = Instance(wish.name, wish.role, target.target)
        if entry:
            instance = replace(instance, plugin=entry.name, distribution=entry.distribution, version=entry.version)
        self.result.requests.append(Request(wish, instance, target))

    def _place(self, *key: str) -> Location:
        return self._document.locate(key)

    def _wrong(self, place: Location, what: str, hint: str | None = None) -> None:
        self.result.recipe_problems.append(place.problem(what, hint))


def _table(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a table of an unchecked document.

    A value of the wrong type is left to the check.
    """
    found = data.get(key)
    return found if isinstance(found, dict) else {}


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_target(use: str) -> bool:
    return any(mark in use for mark in ":./")


def _is_module(name: str) -> bool:
    """Return whether the top-level package can be found; nothing is imported for that."""
    top = name.partition(".")[0]
    return top in sys.builtin_module_names or (top.isidentifier() and PathFinder.find_spec(top) is not None)
