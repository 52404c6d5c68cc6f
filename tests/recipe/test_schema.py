from __future__ import annotations

from typing import Any

from trainrun.recipe import base_schema, complete, merge, to_draft07
from trainrun.recipe.model import PluginTable
from trainrun.recipe.schema import RESERVED

OPTIONS: dict[str, Any] = {
    "type": "object",
    "title": "Options",
    "additionalProperties": False,
    "properties": {"title": {"type": "string", "default": "t"}, "deep": {"$ref": "#/$defs/Deep"}},
    "required": ["deep"],
    "$defs": {"Deep": {"type": "object", "properties": {"again": {"$ref": "#/$defs/Deep"}}}},
}


def test_the_reserved_keys_are_those_of_the_model() -> None:
    assert set(RESERVED) == set(PluginTable.model_fields)


def test_every_field_of_the_recipe_is_described() -> None:
    schema = base_schema()
    for name, table in schema["$defs"].items():
        assert table["description"], name
        for key, field in table["properties"].items():
            assert field.get("description"), f"{name}.{key}"


def test_merging_keeps_the_definitions_of_plugins_apart(schema: dict[str, Any]) -> None:
    merged = merge(schema, OPTIONS, {"a": OPTIONS, "b": {}})

    tables = merged["properties"]["plugins"]["properties"]
    assert tables["a"]["properties"]["deep"] == {"$ref": "#/$defs/plugins.a.Deep"}
    assert merged["$defs"]["plugins.a.Deep"]["properties"]["again"] == {"$ref": "#/$defs/plugins.a.Deep"}
    assert merged["properties"]["task"]["properties"]["deep"] == {"$ref": "#/$defs/task.Deep"}
    assert merged["properties"]["task"]["required"] == ["use", "deep"]
    assert tables["a"]["properties"]["title"] == {"type": "string", "default": "t"}
    assert set(tables["b"]["properties"]) == set(RESERVED)
    assert tables["b"]["additionalProperties"] is False


def test_merging_changes_neither_schema(schema: dict[str, Any]) -> None:
    before = repr((schema, OPTIONS))
    merge(schema, OPTIONS, {"a": OPTIONS})

    assert repr((schema, OPTIONS)) == before


def test_defaults_of_plugins_and_task_are_filled_in(schema: dict[str, Any]) -> None:
    data = complete({"task": {"use": "x"}, "plugins": {"a": {"deep": {}}}}, merge(schema, OPTIONS, {"a": OPTIONS}))

    assert data["task"] == {"use": "x", "title": "t"}
    assert data["plugins"]["a"]["title"] == "t"
    assert data["plugins"]["a"]["queue"] == 1000
    assert "on_error" not in data["plugins"]["a"]
    assert data["optimizer"] == {"name": "adamw", "groups": []}


def test_plugins_keep_the_order_of_the_recipe(schema: dict[str, Any]) -> None:
    merged = merge(schema, None, {name: {} for name in "abc"})

    assert list(complete({"plugins": {"c": {}, "z": {}, "a": {}}}, merged)["plugins"]) == ["c", "z", "a"]


def test_defaults_are_not_shared(schema: dict[str, Any]) -> None:
    complete({}, schema)["evaluate"]["splits"].append("x")

    assert complete({}, schema)["evaluate"]["splits"] == ["eval"]


def test_draft_07_has_no_newer_keywords(schema: dict[str, Any]) -> None:
    converted = to_draft07(merge(schema, OPTIONS, {"a": OPTIONS}))
    text = repr(converted)

    assert converted["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert "$defs" not in text
    assert "prefixItems" not in text
    assert "'type': 'null'" not in text
    assert _references_alone(converted)
    assert "#/definitions/plugins.a.Deep" in text


def _references_alone(node: Any) -> bool:
    """In draft-07 a reference hides the keywords beside it, so nothing may stand there."""
    if isinstance(node, dict):
        return ("$ref" not in node or len(node) == 1) and all(map(_references_alone, node.values()))
    return all(map(_references_alone, node)) if isinstance(node, list) else True
