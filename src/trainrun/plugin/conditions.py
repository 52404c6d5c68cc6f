"""Conditions such as `enabled = { train.precision = "bf16" }`: the plugin is on only if the recipe has these values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainrun.recipe.plain import lookup
from trainrun.recipe.schema import Schema, resolved

_OPEN = ("task", "plugins")  # tables whose keys are not trainrun's alone


def conditions(table: Mapping[str, Any]) -> dict[str, Any]:
    """Map dotted keys to wanted values.

    The table is what TOML makes of ``train.precision = "bf16"``.
    """
    return dict(_flat(table, ""))


def unmet(wanted: Mapping[str, Any], data: Mapping[str, Any]) -> str | None:
    """Return the condition that does not hold in a recipe.

    Returns None if all hold.

    data: the recipe with its defaults.
    wanted: from `conditions`; a list stands for any of its members.
    """
    for key, values in wanted.items():
        present, found = lookup(data, tuple(key.split(".")))
        if not any(present and _same(found, value) for value in (values if isinstance(values, list) else [values])):
            return f"{key} is {repr(found) if present else 'not set'}"
    return None


def unknown(wanted: Mapping[str, Any], schema: Schema) -> list[str]:
    """Return the keys that no recipe has."""
    return [key for key in wanted if not _declared(key.split("."), schema)]


def known(schema: Schema) -> list[str]:
    """Return the keys that conditions may name.

    Those of task and plugins are left out.
    """
    return [key for name in schema["properties"] if name not in _OPEN for key in _keys(name, schema)]


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _same(found: Any, wanted: Any) -> bool:
    """Return whether two values are equal and of one kind.

    `true` is no 1.
    """
    return isinstance(found, bool) == isinstance(wanted, bool) and bool(found == wanted)


def _declared(parts: list[str], schema: Schema) -> bool:
    return (parts[0] in _OPEN and len(parts) > 1) or ".".join(parts) in known(schema)


def _keys(name: str, schema: Schema) -> Iterator[str]:
    node = resolved(schema, schema["properties"][name])
    yield from (f"{name}.{key}" for key in node.get("properties", {}))
