"""The recipe that `trainrun init --full` writes: each table and key of the schema, those that differ from it live."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from trainrun.recipe.freeze import toml_value
from trainrun.recipe.schema import Schema, resolved

_HEAD = """\
# A recipe for trainrun with every key. What begins with "# " is commented out and shows the default; if
# it has none, a value of the right type. Remove the mark to change it. The task, the optimizer and
# plugins have keys of their own, which `trainrun check --print` shows.
"""
_NAMES = {"plugins": "NAME"}  # tables whose names the recipe chooses
_EXAMPLES: Mapping[str, Any] = {"integer": 1, "number": 1.0, "string": "", "boolean": True, "object": {}}


def full(schema: Schema, live: Mapping[str, Any]) -> str:
    """Return a commented recipe.

    schema: that of recipes, as `base_schema` makes it.
    live: the recipe whose values are not commented out.
    """
    tables, lines = [], [_HEAD]
    for key, raw in schema["properties"].items():
        node = resolved(schema, raw)
        if node.get("type") == "object":
            tables.append((key, node))
        else:
            lines.append(_line(schema, key, node, live))
    for key, node in tables:
        lines += ["", *_table(schema, key, node, live.get(key, {}))]
    return "\n".join(lines) + "\n"


def _table(schema: Schema, name: str, node: Schema, live: Mapping[str, Any]) -> Iterator[str]:
    if not node.get("properties"):
        yield from _named(schema, name, node)
        return
    yield f"[{name}]{_note(node)}"
    groups = []
    for key, raw in node["properties"].items():
        found = resolved(schema, raw)
        items = resolved(schema, found.get("items", {}))
        if items.get("properties"):
            groups.append((f"{name}.{key}", found, items))
        else:
            yield _line(schema, key, found, live, required=key in node.get("required", ()))
    for key, found, items in groups:
        yield f"# [[{key}]]{_note(found)}"
        for inner, raw in items["properties"].items():
            yield _line(schema, inner, resolved(schema, raw), {}, required=inner in items.get("required", ()))


def _named(schema: Schema, name: str, node: Schema) -> Iterator[str]:
    """Yield a table whose keys are names that the recipe chooses.

    It is commented out, for none is known.
    """
    inner = resolved(schema, node.get("additionalProperties") or {})
    if not inner.get("properties"):
        yield f"# [{name}]{_note(node)}"
        return
    yield f"# [{name}.{_NAMES.get(name, 'NAME')}]{_note(inner) or _note(node)}"
    for key, raw in inner["properties"].items():
        yield _line(schema, key, resolved(schema, raw), {})


def _line(schema: Schema, key: str, node: Schema, live: Mapping[str, Any], *, required: bool = False) -> str:
    default = node.get("default")
    if key in live:
        standard = "" if default is None or default == live[key] else f" Default: {toml_value(default)}."
        return f"{key} = {toml_value(live[key])}{_note(node, standard)}"
    lacking = " Required." if required else " Not set by default."
    value = _example(schema, node) if default is None else default
    return f"# {key} = {toml_value(value)}{_note(node, lacking if default is None else '')}"


def _example(schema: Schema, node: Schema) -> Any:
    """Return an example value for a key that has no default.

    It is of the right type.
    """
    if "enum" in node or "const" in node:
        return node.get("enum", [node.get("const")])[0]
    branches = [resolved(schema, one) for one in node.get("anyOf", ())]
    if branches:
        return _example(schema, next(one for one in branches if one.get("type") != "null"))
    if node.get("type") == "array":
        parts = node.get("prefixItems") or [node.get("items", {})] * max(1, node.get("minItems", 1))
        return [_example(schema, resolved(schema, part)) for part in parts]
    return _EXAMPLES[node.get("type", "string")]


def _note(node: Schema, more: str = "") -> str:
    """Return the description as a comment of one line."""
    text = " ".join(str(node.get("description", "")).split()) + more
    if planned := node.get("x-planned"):
        text += f" Not acted on yet: {planned}."
    if missing := node.get("x-unavailable"):
        values = ", ".join(map(json.dumps, missing.get("values", ()))) or "another value"
        text += f" An error for now: {values}, because {missing['why']}."
    return f"  # {text.strip()}" if text.strip() else ""
