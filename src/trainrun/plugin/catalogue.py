"""Every plugin that is built in or installed, broken ones included."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import trainrun
from trainrun.builtin import BUILTINS
from trainrun.errors import Problem
from trainrun.plugin.describe import Target, describe
from trainrun.plugin.description import Description, SpecInfo
from trainrun.plugin.discovery import EntryPoint, Installed, discover
from trainrun.plugin.hookcheck import check_hooks
from trainrun.plugin.instance import Instance
from trainrun.plugin.specs import by_name, own_specs

_HERE = str(Path(trainrun.__file__).parent)
_BUILTINS = dict(BUILTINS)


class Listed(NamedTuple):
    """One plugin of the catalogue.

    `error` says why it cannot be used, and `switch` how to do without it. Both are None if it works.
    """

    instance: Instance
    description: Description
    error: str | None = None
    switch: str | None = None

    @property
    def status(self) -> str:
        """Return built-in, installed or broken."""
        if self.error:
            return "broken"
        return "built-in" if self.instance.role == "builtin" else "installed"

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `json.dump`."""
        return {
            "name": self.instance.name,
            "status": self.status,
            "distribution": self.instance.distribution,
            "version": self.instance.version,
            "target": self.instance.target,
            "summary": self.description.summary,
            "hooks": sorted({impl.hook for impl in self.description.impls}),
            "on_error": self.description.on_error,
            "options": self.description.options_schema,
            "file": self.description.file,
            "line": self.description.line,
            "error": self.error,
            "traceback": self.description.traceback,
            "switch": self.switch,
        }


class Catalogue(NamedTuple):
    """All plugins, the built-in ones first, and all hooks, with those that plugins bring."""

    plugins: tuple[Listed, ...]
    specs: Mapping[str, SpecInfo]
    commands: Mapping[str, Sequence[EntryPoint]]

    @property
    def broken(self) -> list[Listed]:
        """Return the plugins that cannot be used."""
        return [one for one in self.plugins if one.error]


def catalogue(*, refresh: bool = False) -> Catalogue:
    """Return every plugin that is installed or built in.

    refresh: describe each plugin again, even if the cache has a description.
    """
    installed = discover()
    everything = list(_all(installed))
    descriptions = describe([target for _, target in everything], installed.fingerprint, refresh=refresh)
    specs = by_name(own_specs(), *(description.specs for description in descriptions.values()))
    listed = [_listed(instance, descriptions[target.target], installed, specs) for instance, target in everything]
    return Catalogue(tuple(listed), specs, installed.commands)


def _all(installed: Installed) -> Iterator[tuple[Instance, Target]]:
    for name in _BUILTINS:
        target = target_of_builtin(name)
        yield Instance(name, "builtin", target.target), target
    for name, entries in installed.plugins.items():
        for entry in entries:
            yield Instance(name, "plugin", entry.value, name, entry.distribution, entry.version), Target.of(entry)


def _listed(
    instance: Instance, description: Description, installed: Installed, specs: Mapping[str, SpecInfo]
) -> Listed:
    entries = installed.plugins.get(instance.name, ())
    taken = instance.role == "plugin" and instance.name in _BUILTINS
    if taken or (instance.role == "plugin" and len(entries) > 1):
        return Listed(instance, description, clash(instance.name, entries).what, "uninstall one of them")
    if not description.ok:
        return Listed(instance, description, description.error, instance.switch)
    problems = check_hooks(instance, description, specs)
    return Listed(instance, description, *((problems[0].what, problems[0].hint) if problems else ()))


def target_of_builtin(name: str) -> Target:
    """Return the target of a built-in plugin of this installation.

    One Python may see several installations, by `PYTHONPATH`.
    """
    return Target(_BUILTINS[name], location=_HERE)


def clash(name: str, entries: Sequence[EntryPoint]) -> Problem:
    """Return the problem of a plugin name that is taken.

    Several distributions bring a plugin of that name, or one of them the name of a built-in.
    """
    owners = ["trainrun itself"] if name in _BUILTINS else []
    what = f"several distributions bring it: {'; '.join([*owners, *map(str, entries)])}"
    return Problem(
        f"plugin {name}", what, f"uninstall one; to run without it: -p {shlex.quote(f'no:{name}')}, or enabled = false"
    )
