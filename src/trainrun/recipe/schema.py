"""The recipe's JSON Schema: made once from the models, then merged with what plugins and task declare.

Everything but `base_schema` is plain work on dictionaries. Validation goes by these schemas, so that
a command that only checks needs neither pydantic's models nor the plugins themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Schema = dict[str, Any]

RESERVED = ("use", "enabled", "on_error", "before", "after", "queue", "when_full")
"""Keys of a plugin's table that are trainrun's, not the plugin's."""

_REF = "#/$defs/"


def base_schema() -> Schema:
    """Return the JSON Schema of `Recipe`.

    It imports pydantic's models, so callers keep the result.
    """
    from trainrun.recipe.model import Recipe  # noqa: PLC0415

    schema = _untitled(Recipe.model_json_schema())
    # Merged away by `read`, so the model does not know it; editors and suggestions do.
    extends = {
        "type": "string",
        "description": "Path of a base recipe, relative to this file; its keys apply unless this file sets them.",
    }
    return {**schema, "properties": {"extends": extends, **schema["properties"]}}


def merge(base: Schema, task: Schema | None, plugins: Mapping[str, Schema]) -> Schema:
    """Return the schema of a recipe with this task and these plugins.

    The plugins are given by instance. `task` is the schema of the task's options. It is None if it is not known: then
    any option is valid. `plugins` maps instance names to the schemas of their options; instances that are not in it may
    hold any key besides the reserved ones. An empty schema means that there are no options.
    """
    merged = {**base, "properties": dict(base["properties"]), "$defs": dict(base["$defs"])}
    if task is not None:
        merged["properties"]["task"] = _with_options(merged, "TaskTable", task, "task")
    tables = {name: _with_options(merged, "PluginTable", schema, f"plugins.{name}") for name, schema in plugins.items()}
    merged["properties"]["plugins"] = {**base["properties"]["plugins"], "properties": tables}
    return merged


def _with_options(merged: Schema, table: str, options: Schema, prefix: str) -> Schema:
    """Return a schema with the table's own keys and the options.

    The options' definitions move into `merged`.
    """
    own = merged["$defs"][table]
    moved = _moved(_untitled(options), prefix)
    for name, schema in moved.pop("$defs", {}).items():
        merged["$defs"][f"{prefix}.{name}"] = schema
    moved = resolved(merged, moved)
    return {
        "type": "object",
        "description": moved.get("description", own.get("description", "")),
        "properties": {**moved.get("properties", {}), **own["properties"]},
        "required": [*own.get("required", []), *moved.get("required", [])],
        "additionalProperties": moved.get("additionalProperties", False),
    }


def resolved(root: Schema, node: Any) -> Schema:
    """Return `node` itself, or what its ``$ref`` stands for.

    The keywords next to the reference are kept.
    """
    seen = 0
    while isinstance(node, dict) and isinstance(node.get("$ref"), str) and seen < 100:
        beside = {key: value for key, value in node.items() if key != "$ref"}
        node = {**root.get("$defs", {}).get(node["$ref"].removeprefix(_REF), {}), **beside}
        seen += 1
    return node if isinstance(node, dict) else {}


def to_draft07(schema: Schema) -> Schema:
    """Return the same schema in draft-07.

    Editors and TOML language servers read draft-07.
    """
    converted = _walk(schema, _draft07_node)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **converted}


def _draft07_node(node: Schema) -> Schema:
    changed = {key: value for key, value in node.items() if key not in {"$defs", "prefixItems", "$schema"}}
    if "$defs" in node:
        changed["definitions"] = node["$defs"]
    if "prefixItems" in node:
        changed["items"] = node["prefixItems"]
        if "items" in node:
            changed["additionalItems"] = node["items"]
    if "anyOf" in node:  # without null, which TOML does not have
        branches = [branch for branch in node["anyOf"] if branch != {"type": "null"}]
        del changed["anyOf"]
        changed = {**branches[0], **changed} if len(branches) == 1 else {**changed, "anyOf": branches}
    if isinstance(node.get("$ref"), str):
        # In draft-07 a reference hides every keyword next to it.
        reference = {"$ref": node["$ref"].replace(_REF, "#/definitions/", 1)}
        del changed["$ref"]
        changed = {**changed, "allOf": [reference]} if changed else reference
    if changed.get("default", 0) is None:
        del changed["default"]
    return changed


def _moved(schema: Schema, prefix: str) -> Schema:
    def rename(node: Schema) -> Schema:
        if isinstance(node.get("$ref"), str):
            return {**node, "$ref": node["$ref"].replace(_REF, f"{_REF}{prefix}.", 1)}
        return node

    return _walk(schema, rename)


def _untitled(schema: Schema) -> Schema:
    """Remove titles, which only repeat the names of the keys."""
    return _walk(schema, lambda node: {key: value for key, value in node.items() if key != "title"})


_NAMED = frozenset({"properties", "$defs", "patternProperties", "definitions"})
_SINGLE = frozenset({"items", "additionalProperties", "propertyNames", "not", "additionalItems"})
_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})


def _walk(node: Any, change: Callable[[Schema], Schema]) -> Schema:
    """Return a copy of the schema with `change` applied to every subschema.

    It is applied to no mere value such as a default.
    """
    walked: Schema = {}
    for key, value in node.items():
        if key in _NAMED and isinstance(value, dict):
            walked[key] = {name: _sub(inner, change) for name, inner in value.items()}
        elif key in _SINGLE:
            walked[key] = _sub(value, change)
        elif key in _LISTS and isinstance(value, list):
            walked[key] = [_sub(inner, change) for inner in value]
        else:
            walked[key] = value
    return change(walked)


def _sub(node: Any, change: Callable[[Schema], Schema]) -> Any:
    return _walk(node, change) if isinstance(node, dict) else node
