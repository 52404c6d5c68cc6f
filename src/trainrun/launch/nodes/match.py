"""What must be the same on all nodes: recipe, plugins with their versions and order, torch, number of workers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import tomli

from trainrun.launch.differences import source_hash
from trainrun.launch.manifest import versions
from trainrun.plugin.instance import Instance
from trainrun.plugin.resolve import Resolved
from trainrun.recipe.freeze import freeze

_SHOWN = 20  # differences that are named


def software(resolved: Resolved, workers: int) -> dict[str, Any]:
    """Return what one node has: plain values, to be sent and compared."""
    return {
        "recipe": digest(freeze(resolved.data, resolved.schema)),
        "plugins": [[one.name, _shown(one), source_hash(resolved, one)] for one in resolved.instances],
        "versions": versions(),
        "workers": workers,
    }


def digest(text: str) -> str:
    """Return a hash of the saved recipe."""
    return hashlib.sha256(text.encode()).hexdigest()


def differences(first: Mapping[str, Any], mine: Mapping[str, Any], who: str) -> list[str]:
    """Return how this node differs from node 0, in words.

    who: how to name this node, for example "node 1 (host b)".
    """
    found = [
        *_in_plugins(first["plugins"], mine["plugins"], who),
        *(
            f"{name}: node 0 has {theirs}, {who} has {mine['versions'].get(name)}"
            for name, theirs in first["versions"].items()
            if theirs != mine["versions"].get(name)
        ),
    ]
    if first["workers"] != mine["workers"]:
        found.append(f"launch.workers: node 0 starts {first['workers']} workers, {who} would start {mine['workers']}")
    return found[:_SHOWN]


def recipe_differences(first: str, mine: str, who: str) -> list[str]:
    """Return which keys of two saved recipes differ."""
    theirs, own = dict(_flat((), tomli.loads(first))), dict(_flat((), tomli.loads(mine)))
    keys = [key for key in dict.fromkeys([*theirs, *own]) if theirs.get(key) != own.get(key)]
    return [f"{'.'.join(key)}: node 0 has {_value(theirs, key)}, {who} has {_value(own, key)}" for key in keys[:_SHOWN]]


def _in_plugins(first: list[list[str]], mine: list[list[str]], who: str) -> Iterator[str]:
    theirs, own = {name: rest for name, *rest in first}, {name: rest for name, *rest in mine}
    for name in dict.fromkeys([*theirs, *own]):
        if name not in own:
            yield f"plugin {name}: node 0 has {theirs[name][0]}, {who} has none"
        elif name not in theirs:
            yield f"plugin {name}: node 0 has none, {who} has {own[name][0]}"
        elif theirs[name][0] != own[name][0]:
            yield f"plugin {name}: node 0 has {theirs[name][0]}, {who} has {own[name][0]}"
        elif theirs[name][1] != own[name][1]:
            yield f"plugin {name}: the source of {own[name][0]} on {who} is not that of node 0"
    if list(theirs) != list(own) and set(theirs) == set(own):
        yield f"order of plugins: node 0 has {', '.join(theirs)}; {who} has {', '.join(own)}"


def _shown(instance: Instance) -> str:
    if instance.distribution:
        return f"{instance.distribution} {instance.version} ({instance.target})"
    return f"built-in {instance.target}" if instance.role == "builtin" else instance.target


def _flat(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat((*path, key), item)
    else:
        yield path, value


def _value(values: Mapping[tuple[str, ...], Any], key: tuple[str, ...]) -> str:
    return repr(values[key]) if key in values else "nothing"
