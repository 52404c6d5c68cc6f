"""Fill in the defaults that a schema declares."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from trainrun.recipe.schema import Schema, resolved
from trainrun.recipe.validator import is_null


def complete(data: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """Return a copy of `data` with the defaults of `schema` filled in.

    Optional keys whose default is "nothing" stay absent, because TOML has no null. So do tables within
    options that no default is declared for: what to put there is known to the plugin's model alone.
    Values of the wrong type are kept as they are: saying so is `check`'s.
    """
    tables: dict[str, Any] = {name: {} for name, node in schema["properties"].items() if _is_filled(name, node, schema)}
    return _table({**tables, **data}, schema, schema)


def _is_filled(name: str, node: Schema, root: Schema) -> bool:
    return name not in root.get("required", ()) and only(node, root).get("type") == "object"


def _table(data: Mapping[str, Any], node: Schema, root: Schema) -> dict[str, Any]:
    properties = node.get("properties", {})
    filled = {}
    for name, inner in properties.items():
        if name in data:
            filled[name] = _value(data[name], inner, root)
        elif inner.get("default") is not None:
            filled[name] = deepcopy(inner["default"])
    extra = node.get("additionalProperties")
    filled.update({name: _value(data[name], extra, root) for name in data if name not in properties})
    # Keys that are set keep their order: it is the order in which plugins run.
    return {name: filled[name] for name in (*data, *(new for new in filled if new not in data))} if extra else filled


def _value(value: Any, node: Any, root: Schema) -> Any:
    shape = only(node, root)
    if isinstance(value, dict):
        return _table(value, shape, root)
    if isinstance(value, list):
        return [_value(item, shape.get("items"), root) for item in value]
    return value


def only(node: Any, root: Schema) -> Schema:
    """Return what a subschema asks for, seen through references and "or nothing"."""
    shape = resolved(root, node)
    branches = [branch for branch in shape.get("anyOf", ()) if not is_null(branch)]
    if len(branches) != 1:
        return shape
    beside = {key: value for key, value in shape.items() if key != "anyOf"}
    return only({**branches[0], **beside}, root)
